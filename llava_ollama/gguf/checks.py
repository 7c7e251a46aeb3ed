"""Judge weight files by their headers: what each is, whether two fit, and what engines will miss.

`pair` refuses what cannot work; `health` tells what works less well than it could.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llava_ollama.errors import GGUFError
from llava_ollama.findings import Finding

if TYPE_CHECKING:
    from llava_ollama.gguf.reader import Header, Tensor

Kind = Literal["model", "projector", "other"]

FEATURE_LAYER = "clip.vision.feature_layer"
_WHOLE_CLIP_L = (1024, 24)
"""Width and number of blocks."""
MAX_IMAGE_SIZE = 8192
"""Pixels. The largest vision encoders of today see 1,000 to 4,000."""

_MARKERS = ("<|start_header_id|>", "<|eot_id|>")
_NUMBERED = re.compile(r"mm\.(\d{1,4})\.(weight|bias)", re.ASCII)


def kind(header: Header) -> Kind:
    """Return what the file is; `other` is an adapter, a calibration file and the like."""
    architecture = header.text("general.architecture")
    purpose = header.text("general.type")
    if architecture == "clip" or purpose == "mmproj":
        return "projector"
    if purpose in ("adapter", "imatrix") or embedding_length(header) is None:
        return "other"
    return "model"


def is_projector(header: Header) -> bool:
    """Tell whether the file is a projector (mmproj)."""
    return kind(header) == "projector"


def has_llama3_vocabulary(header: Header) -> bool:
    """Tell whether the vocabulary has the tokens that the Llama-3-instruct template is made of."""
    return all(token_ids(header, marker) for marker in _MARKERS)


def token_ids(header: Header, token: str) -> tuple[int, ...]:
    """Return the ids of `token` in the vocabulary: one, unless it is missing or repeated."""
    tokens = header.array("tokenizer.ggml.tokens")
    return tokens.positions(token) if tokens is not None else ()


def embedding_length(model: Header) -> int | None:
    """Return the width of the model's embeddings, if the header says it."""
    return model.integer(f"{model.text('general.architecture')}.embedding_length")


def output_width(projector: Header) -> int | None:
    """Return the width of what the projector gives to the model, if the header says it.

    The last layer's shape counts. `clip.vision.projection_dim` is asked only where there is no
    such layer: converters before 2025 wrote CLIP's own dimension there (768 beside 4,096).
    """
    widths = {
        int(match[1]): tensor.shape[-1]
        for tensor in projector.tensors
        if tensor.shape and (match := _NUMBERED.fullmatch(tensor.name))
    }
    if widths:
        return widths[max(widths)]
    if any(tensor.name.startswith("mm.") for tensor in projector.tensors):
        return None
    return projector.integer("clip.vision.projection_dim")


def image_size(projector: Header) -> int:
    """Return the side of the square that the projector sees, in pixels.

    Raises:
        GGUFError: the header does not say it, or not credibly.
    """
    size = projector.integer("clip.vision.image_size")
    if size is None or not 0 < size <= MAX_IMAGE_SIZE:
        said = "no" if size is None else f"an impossible ({size})"
        raise GGUFError(
            f"`{projector.path}` has {said} `clip.vision.image_size`",
            hint="Name a LLaVA projector (mmproj)",
        )
    return size


def pair(model: Header, projector: Header) -> None:
    """Refuse two files that cannot work together.

    Raises:
        GGUFError: they are swapped, of the same kind, incomplete, or of different widths.
    """
    _kinds(model, projector)
    _whole(model)
    _whole(projector)
    wanted, given = embedding_length(model), output_width(projector)
    if wanted is not None and given is not None and wanted != given:
        raise GGUFError(
            f"`{projector.path}` is the projector of another model: its output is {given:,} wide,"
            f" `{model.path}` takes {wanted:,}",
            hint="Use the projector that was published with the model",
        )


def _kinds(model: Header, projector: Header) -> None:
    kinds = (kind(model), kind(projector))
    if kinds == ("projector", "model"):
        raise GGUFError(
            f"`{model.path}` is a projector and `{projector.path}` is a model: they are swapped",
            hint=f"Use --model-file {_quoted(projector)} --mmproj-file {_quoted(model)}",
        )
    for header in (model, projector):
        if kind(header) == "other":
            what = header.text("general.type") or header.text("general.architecture") or "unknown"
            raise GGUFError(
                f"`{header.path}` is neither a model nor a projector (its kind is `{what}`)",
                hint="A model and its projector (mmproj) are needed",
            )
    if kinds == ("model", "model"):
        raise GGUFError(
            f"`{model.path}` and `{projector.path}` are both models: no projector is named",
            hint="The projector's file name has `mmproj` in it, mostly",
        )
    if kinds == ("projector", "projector"):
        raise GGUFError(
            f"`{model.path}` and `{projector.path}` are both projectors: no model is named",
            hint="The model is the larger file, and has the quant in its name, mostly",
        )


def _whole(header: Header) -> None:
    parts = header.integer("split.count") or 1
    if parts > 1:
        number = (header.integer("split.no") or 0) + 1
        raise GGUFError(
            f"`{header.path}` is part {number} of {parts}",
            hint="Join the parts with `llama-gguf-split --merge FIRST-PART OUT`",
        )


def health(header: Header) -> list[Finding]:
    """Return what engines will miss in this file; nothing for a healthy one."""
    if is_projector(header):
        return _projector_health(header)
    return _llama3_health(header) if has_llama3_vocabulary(header) else _model_health(header)


def _model_health(header: Header) -> list[Finding]:
    """Judge a model of another family: only what needs no knowledge of its vocabulary."""
    findings = []
    if header.text("tokenizer.ggml.model") == "gpt2" and not header.text("tokenizer.ggml.pre"):
        findings.append(_warning("pre-tokenizer", _NO_PRE))
    if header.text("tokenizer.chat_template") is None:
        findings.append(_warning("chat template", _NO_TEMPLATE))
    return findings


_NO_PRE = "names no `tokenizer.ggml.pre`: engines split text otherwise than in training"
_NO_TEMPLATE = "has no `tokenizer.chat_template`: llama-server falls back to ChatML"


def _llama3_health(header: Header) -> list[Finding]:
    fix = _mend(header)
    findings = []
    if header.text("tokenizer.ggml.pre") in (None, "", "default"):
        # Measured: the beginning of text is then left out as well, 76 prompt tokens for 77.
        findings.append(_warning("pre-tokenizer", _NO_PRE, fix))
    end, ends = header.integer("tokenizer.ggml.eos_token_id"), token_ids(header, "<|eot_id|>")
    if end not in ends:
        detail = f"says that text ends with token {end}; a turn ends with {ends[0]}, `<|eot_id|>`"
        findings.append(_warning("end of turn", detail, fix))
    if header.text("tokenizer.chat_template") is None:
        findings.append(_warning("chat template", _NO_TEMPLATE, fix))
    return findings


def _projector_health(header: Header) -> list[Finding]:
    findings = []
    if projector_type(header) is None:
        detail = "names no `clip.projector_type`: llama.cpp does not load it, Ollama does"
        findings.append(_warning("projector type", detail, _mend(header)))
    found = blocks(header)
    if found is not None and may_run_short(header):
        detail = (
            f"names no `{FEATURE_LAYER}`: engines run {found.run} of its {found.stored} blocks"
            " (llama.cpp issue 25817)"
        )
        fix = (
            f"{_mend(header)}, or `llava-ollama install` with `--mend`; add `--layers N` for a file"
            " that the catalog does not know"
        )
        findings.append(_warning("feature layer", detail, fix))
    return findings


@dataclass(frozen=True)
class Blocks:
    """The blocks of a LLaVA projector's vision tower: stored in the file, and run by engines.

    Engines run one less than is stored unless the file names a feature layer:
    https://github.com/ggml-org/llama.cpp/issues/25817. Measured on the tiny pair: 26 of 60 pictures
    right without the key, 60 of 60 with it.
    """

    stored: int
    run: int
    settled: bool
    """Whether that is right for sure: a feature layer is named, or the last block does nothing."""

    def short_of(self, layers: int) -> bool:
        """Tell whether engines run less than the `layers` that it was trained with."""
        return not self.settled and self.run < layers


def blocks(projector: Header) -> Blocks | None:
    """Return the blocks of a LLaVA projector; None for any other, of which nothing is known."""
    stored = projector.integer("clip.vision.block_count") or 0
    if stored < 1 or not is_llava(projector):
        return None
    named = projector.array(FEATURE_LAYER)
    if named is not None:
        run = max((layer for layer in named if isinstance(layer, int)), default=stored - 1)
        return Blocks(stored, run, settled=True)
    settled = FEATURE_LAYER in projector.metadata or _does_nothing(projector, stored - 1)
    return Blocks(stored, stored - 1, settled=settled)


def may_run_short(projector: Header) -> bool:
    """Tell whether engines may run too few blocks, as far as the header tells.

    CLIP-L has 24, and LLaVA takes what the last but one gives: with all of them stored the right
    number is run. A file with 23 was cut to them when it was converted.
    """
    found = blocks(projector)
    width = projector.integer("clip.vision.embedding_length")
    return found is not None and not found.settled and (width, found.stored) != _WHOLE_CLIP_L


def projector_type(header: Header) -> str | None:
    """Return the type that the projector names, in the new key or the old one."""
    return header.text("clip.projector_type") or header.text("clip.vision.projector_type")


def is_llava(header: Header) -> bool:
    """Tell whether the projector's own tensors are LLaVA's two layers and nothing else."""
    layers = {tensor.name.split(".")[1] for tensor in header.tensors if tensor.name[:3] == "mm."}
    return layers == {"0", "2"} and projector_type(header) in (None, "mlp")


def _does_nothing(header: Header, block: int) -> bool:
    """Tell whether the block passes on what it gets, so that it may be run or not.

    Some converters add such a block to be right either way: both of its outputs are zero.
    """
    for part in ("attn_out", "ffn_down"):
        for end in ("weight", "bias"):
            tensor = header.tensor(f"v.blk.{block}.{part}.{end}")
            if tensor is not None and not _zero(header, tensor):
                return False
    return header.tensor(f"v.blk.{block}.attn_out.weight") is not None


def _zero(header: Header, tensor: Tensor) -> bool:
    """Tell whether all numbers of an F16 or F32 tensor are 0 or -0."""
    width, left = {"F16": 2, "F32": 4}.get(tensor.type), tensor.size
    if width is None:
        return False
    # A few MB at most where all are zero; any other file differs in the first read.
    with header.path.open("rb") as file:
        file.seek(tensor.offset)
        while left > 0:
            data = file.read(min(left, 1 << 16))
            minus = data[width - 1 :: width].count(0x80)
            if not data or data.count(0) + minus < len(data):
                return False
            left -= len(data)
    return True


def _warning(check: str, detail: str, fix: str = "") -> Finding:
    return Finding(check, "warning", detail, fix)


def _mend(header: Header) -> str:
    out = header.path.with_name(f"{header.path.stem}-mended{header.path.suffix}")
    return f"llava-ollama mend {_quoted(header)} -o {shlex.quote(str(out))}"


def _quoted(header: Header) -> str:
    return shlex.quote(str(header.path))
