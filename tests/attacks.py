"""Text that tries to be more than text: what is sent to real engines to see that it is not."""

from __future__ import annotations

LLAMA3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_250|>",
)
"""Control tokens; the tiny model has the first five."""
MARKS = ("[img]", "[img-0]", "[img-1]", "[img-7]", "[img-00]", "<__media__>", "<__image__>")
"""Where a picture goes, in the words of Ollama and of llama.cpp."""
