"""Many pictures: a journal that survives anything, and a runner that keeps every host busy.

`sources` find pictures, the `journal` remembers what is to be asked and what was answered, the
`runner` asks. Pictures, answers and states are told apart by the values in `work`.
"""
