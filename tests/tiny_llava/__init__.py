"""The recipe of the tiny LLaVA: pictures, words, model, training, export, evaluation.

`python -m tests.tiny_llava` (or `make tiny-llava`) runs it whole. Nothing of it is in the wheel.
"""
