"""What a daemon says of its models, read from its replies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from llava_ollama import modelfile
from llava_ollama.errors import UsageProblem
from llava_ollama.package import Package, ParameterValue, parameters

_T = TypeVar("_T")
_LARGEST_IMAGE = 8192
_LARGEST_SIZE = 1 << 63
"""Pixels and bytes; what says more is no daemon's word."""
_ACTING = (2, 3)
"""LLAMA_TOKEN_TYPE_UNKNOWN and _CONTROL (llama.h). Tokens that a model's maker added, 4, are found
as well, but are text: Gemma's are blanks and HTML tags."""
_BLOB = re.compile(r"sha256[-:]([0-9a-f]{64})$")
_TIME = re.compile(r"(\d+-\d+-\d+T\d+:\d+:\d+)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True)
class Shown:
    """What a daemon says of one installed model."""

    name: str
    sources: tuple[str, ...]
    """The digests after FROM: the model's, then the projectors'."""
    template: str
    system: str
    parameters: Mapping[str, ParameterValue]
    capabilities: tuple[str, ...]
    projector_info: Mapping[str, Any]
    details: Mapping[str, Any]
    control: tuple[str, ...] = ()
    """The control tokens of the model's vocabulary, where the daemon was asked for it."""

    @classmethod
    def read(cls, name: str, reply: Mapping[str, Any]) -> Shown:
        """Read the reply of `/api/show` for the model `name`."""
        found = modelfile.sources(str(reply.get("modelfile", "")))
        return cls(
            name=name,
            sources=tuple(m[1] for value in found if (m := _BLOB.search(value))),
            template=str(reply.get("template") or ""),
            system=str(reply.get("system") or ""),
            parameters=_parameters(str(reply.get("parameters") or "")),
            capabilities=tuple(map(str, _kind(reply, "capabilities", list))),
            projector_info=_kind(reply, "projector_info", dict),
            details=_kind(reply, "details", dict),
            control=_control(_kind(reply, "model_info", dict)),
        )

    @property
    def image_size(self) -> int | None:
        """The side in pixels of the square that the model sees, where the daemon says so."""
        size = self.projector_info.get("clip.vision.image_size")
        if isinstance(size, int | float) and 1 <= size <= _LARGEST_IMAGE:
            return int(size)
        return None

    @property
    def blocks_run(self) -> int | None:
        """How many blocks of a LLaVA projector's vision tower are run, where the daemon says so.

        It is one less than is stored, unless a feature layer is named (llama.cpp issue 25817); then
        None, since the number that it names is often left out of the reply.
        """
        said = self.projector_info
        stored = said.get("clip.vision.block_count")
        llava = said.get("clip.projector_type", "mlp") == "mlp"
        if isinstance(stored, int) and llava and "clip.vision.feature_layer" not in said:
            return stored - 1
        return None

    @property
    def has_vision(self) -> bool:
        """Whether the model sees pictures."""
        return "vision" in self.capabilities

    def package(self) -> Package | None:
        """Return the installed package, or None when it is not one model and one projector."""
        if len(self.sources) != 2:  # noqa: PLR2004 - a model and a projector
            return None
        return Package(*self.sources, self.template, self.system, self.parameters)


@dataclass(frozen=True)
class Listed:
    """One line of the daemon's list."""

    name: str
    size: int
    manifest_digest: str
    modified_ns: int = 0
    """When its manifest was written, in nanoseconds since 1970; 0 where the daemon does not say."""

    @classmethod
    def read(cls, reply: Mapping[str, Any]) -> Listed:
        """Read one model of the reply of `/api/tags`."""
        size = reply.get("size")
        return cls(
            name=str(reply.get("name", "")),
            size=size if isinstance(size, int) and 0 <= size < _LARGEST_SIZE else 0,
            manifest_digest=str(reply.get("digest", "")),
            modified_ns=_nanoseconds(str(reply.get("modified_at", ""))),
        )


def _kind(reply: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    value = reply.get(key)
    return value if isinstance(value, kind) else kind()


def _control(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tokens that llama.cpp finds wherever they stand in a prompt, unknown ones too."""
    tokens = _kind(info, "tokenizer.ggml.tokens", list)
    types = _kind(info, "tokenizer.ggml.token_type", list)
    pairs = zip(tokens, types, strict=False)
    return tuple(t for t, kind in pairs if kind in _ACTING and isinstance(t, str) and len(t) > 1)


def _nanoseconds(time: str) -> int:
    """Return a time as Go writes it (RFC 3339, up to nanoseconds), or 0 when it is none."""
    match = _TIME.fullmatch(time)
    if match is None:
        return 0
    try:
        seconds = datetime.fromisoformat(match[1] + match[3]).timestamp()
    except (ValueError, OverflowError):
        return 0
    return int(seconds) * 10**9 + int((match[2] or "").ljust(9, "0"))


def _parameters(text: str) -> dict[str, ParameterValue]:
    """Read the text that `show` makes of parameters: `name    value`, strings as Go quotes them."""
    found: dict[str, Any] = {}
    for line in text.split("\n"):
        name, _, rest = line.partition(" ")
        value = _go_value(rest.strip())
        if name == "stop":
            found.setdefault(name, []).append(value)
        elif name:
            found[name] = value
    try:
        return parameters(found)
    except UsageProblem:
        # A model that somebody else made may have parameters that this version does not know.
        return {n: tuple(v) if isinstance(v, list) else v for n, v in found.items()}


def _go_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
