"""Decide what a weight file lacks: keys that today's engines ask for, one function per kind.

The published LLaVA-Llama-3 files are from before these keys. `mend` writes what is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava_ollama import resources
from llava_ollama.errors import GGUFError
from llava_ollama.gguf import checks

if TYPE_CHECKING:
    from llava_ollama.gguf.reader import Header

MENDED_FROM = "llava_ollama.mended_from"
"""The sha256 of the file that a mended one was made of."""
MENDED_KEYS = "llava_ollama.mended_keys"
"""The keys in which the two differ."""


@dataclass(frozen=True)
class Change:
    """A key that gets a value, new or in place of its old one, and the sentence that says so."""

    key: str
    value: str | int | bool | tuple[int, ...]
    reason: str


def planned(header: Header, layers: int | None = None) -> list[Change]:
    """Return what `mend` would change in this file.

    `layers` is how many blocks the vision tower was trained with; None where nobody knows, which
    then stays as it is.

    Raises:
        GGUFError: something is missing, and what belongs there cannot be told.
    """
    if checks.is_projector(header):
        wanted = _projector_type(header) + _feature_layer(header, layers)
    elif checks.has_llama3_vocabulary(header):
        wanted = _llama3(header)
    else:
        wanted = []
    return [change for change in wanted if header.metadata.get(change.key) != change.value]


def provenance(changes: list[Change], source: str) -> list[Change]:
    """Return the changes with the two that tell of them; `source` is the original's sha256.

    No version of ours is among them: the same original has to give the same bytes for ever.
    """
    if not changes:
        return []
    keys = ", ".join(change.key for change in changes)
    return [*changes, Change(MENDED_FROM, source, ""), Change(MENDED_KEYS, keys, "")]


def sentence(header: Header, change: Change) -> str:
    """Return in words what a change does to this file."""
    if change.key.endswith("chat_template"):
        return f"added `{change.key}`, the Llama-3-instruct template: {change.reason}"
    value = _shown(change.value)
    if change.key in header.metadata:
        old = header.metadata[change.key]
        return f"set `{change.key}` to `{value}`, it was `{old}`: {change.reason}"
    return f"added `{change.key}` = `{value}`: {change.reason}"


def chat_template() -> str:
    """Return the Llama-3-instruct chat template as Meta published it, in Jinja."""
    text = resources.find("templates/llama3-instruct.jinja").read_text(encoding="utf-8")
    return text.removesuffix("\n")


def _projector_type(header: Header) -> list[Change]:
    if checks.projector_type(header) is not None:
        return []
    if not checks.is_llava(header):
        raise GGUFError(
            f"`{header.path}` names no projector type, and its tensors are not those of LLaVA",
            hint="Convert it again with llama.cpp's convert_hf_to_gguf.py --mmproj",
        )
    return [Change("clip.projector_type", "mlp", "llama.cpp loads no projector without it")]


def _feature_layer(header: Header, layers: int | None) -> list[Change]:
    blocks = checks.blocks(header)
    if layers is None or blocks is None:
        return []
    if layers > blocks.stored:
        raise GGUFError(
            f"`{header.path}` stores {blocks.stored} blocks of its vision tower, not `{layers}`",
            hint="Give the number of blocks that it was trained with",
        )
    if not blocks.short_of(layers):
        return []
    reason = f"engines run only {blocks.run} blocks without it (llama.cpp issue 25817)"
    return [Change(checks.FEATURE_LAYER, (layers,), reason)]


def _llama3(header: Header) -> list[Change]:
    ends = checks.token_ids(header, "<|eot_id|>")
    if len(ends) > 1:
        raise GGUFError(
            f"`{header.path}` has the token `<|eot_id|>` {len(ends)} times, as {ends}",
            hint="Convert the model again from its original",
        )
    end = ends[0]
    changes = [
        Change("tokenizer.ggml.eos_token_id", end, "a turn ends with `<|eot_id|>`"),
        Change("tokenizer.ggml.eot_token_id", end, "a turn ends with `<|eot_id|>`"),
    ]
    bpe = header.text("tokenizer.ggml.model") == "gpt2"
    if bpe and header.text("tokenizer.ggml.pre") in (None, "", "default"):
        reason = "text is split as in training"
        changes.insert(0, Change("tokenizer.ggml.pre", "llama-bpe", reason))
    if "tokenizer.ggml.add_bos_token" not in header.metadata:
        reason = "a prompt begins with `<|begin_of_text|>`"
        changes.append(Change("tokenizer.ggml.add_bos_token", True, reason))
    if header.text("tokenizer.chat_template") is None:
        reason = "llama-server falls back to ChatML without it"
        changes.append(Change("tokenizer.chat_template", chat_template(), reason))
    return changes


def _shown(value: str | float | tuple[int, ...]) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
