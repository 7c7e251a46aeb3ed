"""What a person wants to know of a weight file before using it, all of it from its header."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava_ollama.errors import GGUFError
from llava_ollama.findings import Finding
from llava_ollama.gguf import checks, reader
from llava_ollama.gguf.changes import MENDED_FROM

if TYPE_CHECKING:
    from pathlib import Path

    from llava_ollama.gguf.reader import Header

# https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h, llama_ftype
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4_MOE",
}  # fmt: skip
_GUESSED = 1024
"""Added to a file type that the converter did not know for sure."""
_PAIR = 2


@dataclass(frozen=True)
class Summary:
    """What one header says; None where it does not. Sizes in bytes, images in pixels."""

    kind: checks.Kind
    name: str | None
    architecture: str | None
    file_type: str
    version: int
    size: int
    tensors: int
    elements: int
    """Numbers in all tensors: the model's parameters."""
    context_length: int | None
    embedding_length: int | None
    """A model's own width, and for a projector that of what it gives to the model."""
    vocabulary: str | None
    tokens: int | None
    projector_type: str | None
    image_size: int | None
    blocks: int | None
    blocks_run: int | None
    """How many of them engines run: without a feature layer, one less of a LLaVA projector."""
    mended_from: str | None
    """The sha256 of the file that it says `mend` has made it of."""


@dataclass(frozen=True)
class Inspected:
    """One file: its summary, None where it cannot be read, and what was found."""

    path: Path
    summary: Summary | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Inspection:
    """Some files, and of two whether they belong together."""

    files: tuple[Inspected, ...]
    pairing: Finding | None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All that was found."""
        found = [finding for file in self.files for finding in file.findings]
        return (*found, *((self.pairing,) if self.pairing else ()))


def inspect(paths: Sequence[Path]) -> Inspection:
    """Read the headers of GGUF files; a damaged file is a finding, no exception."""
    headers = [_read(path) for path in paths]
    files = tuple(
        Inspected(path, None, (header,))
        if isinstance(header, Finding)
        else Inspected(path, summarize(header), tuple(checks.health(header)))
        for path, header in zip(paths, headers, strict=True)
    )
    readable = [header for header in headers if not isinstance(header, Finding)]
    pairing = _pairing(*readable) if len(paths) == len(readable) == _PAIR else None
    return Inspection(files, pairing)


def summarize(header: Header) -> Summary:
    """Return what a header says."""
    architecture = header.text("general.architecture")
    projector = checks.is_projector(header)
    width = checks.output_width(header) if projector else checks.embedding_length(header)
    blocks = header.integer(
        "clip.vision.block_count" if projector else f"{architecture}.block_count"
    )
    tower = checks.blocks(header) if projector else None
    tokens = header.array("tokenizer.ggml.tokens")
    return Summary(
        kind=checks.kind(header),
        name=header.text("general.name"),
        architecture=architecture,
        file_type=_file_type(header),
        version=header.version,
        size=header.size,
        tensors=len(header.tensors),
        elements=sum(math.prod(tensor.shape) for tensor in header.tensors),
        context_length=header.integer(f"{architecture}.context_length"),
        embedding_length=width,
        vocabulary=_vocabulary(header),
        tokens=len(tokens) if tokens is not None else None,
        projector_type=checks.projector_type(header),
        image_size=header.integer("clip.vision.image_size"),
        blocks=blocks,
        blocks_run=blocks if not projector else tower.run if tower else None,
        mended_from=header.text(MENDED_FROM),
    )


def _read(path: Path) -> Header | Finding:
    try:
        return reader.read(path)
    except GGUFError as exc:
        return Finding("file", "error", exc.message, exc.hint or "")


def _pairing(one: Header, other: Header) -> Finding:
    """Judge two files in either order, since a kind is seen from a header."""
    model, projector = (other, one) if checks.is_projector(one) else (one, other)
    try:
        checks.pair(model, projector)
    except GGUFError as exc:
        return Finding("pairing", "error", exc.message, exc.hint or "")
    width = checks.embedding_length(model)
    if checks.output_width(projector) is None:
        return Finding("pairing", "warning", "the projector does not say how wide its output is")
    return Finding("pairing", "ok", f"the projector's output is {width:,} wide, as the model takes")


def _file_type(header: Header) -> str:
    """Return the quant that the file names, else the type that most of its bytes have."""
    said = header.integer("general.file_type")
    if said is not None and said % _GUESSED in _FILE_TYPES:
        return _FILE_TYPES[said % _GUESSED]
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type] += tensor.size
    return f"mostly {sizes.most_common(1)[0][0]}" if sizes else "no tensors"


def _vocabulary(header: Header) -> str | None:
    model = header.text("tokenizer.ggml.model")
    if model is None:
        return None
    pre = header.text("tokenizer.ggml.pre")
    llama3 = " with Llama-3's turns" if checks.has_llama3_vocabulary(header) else ""
    return f"{model}, pre-tokenizer {pre or 'not named'}{llama3}"
