"""Transfer: how verified bytes get into a daemon. `interface` is the seam, beside it the ways."""

from __future__ import annotations

from llava_ollama.transfer.interface import (
    Blob,
    Brought,
    Choice,
    Cost,
    How,
    Name,
    Transfer,
    choose,
)
from llava_ollama.transfer.link import Link
from llava_ollama.transfer.pull import Pull
from llava_ollama.transfer.upload import Upload

__all__ = [
    "Blob", "Brought", "Choice", "Cost", "How", "Link", "Name", "Pull", "Transfer", "Upload",
    "choose",
]  # fmt: skip
