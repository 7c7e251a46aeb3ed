"""The names of the files that the recipe makes; what only asks them needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """The three files."""

    f16: str = "tiny-llava-f16.gguf"
    int4: str = "tiny-llava-int4.gguf"
    projector: str = "tiny-llava-mmproj-f16.gguf"


NAMES = Names()
FILES = (NAMES.int4, NAMES.f16, NAMES.projector)
