"""What makes a model exactly this model: its parts, and one digest over them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_ollama.errors import UsageProblem

ParameterValue = str | int | float | bool | tuple[str, ...]
"""A Modelfile parameter; `stop` is the one that may be repeated, hence the tuple."""

PARAMETER_TYPES: Mapping[str, type] = {
    **dict.fromkeys(("num_keep", "seed", "num_predict", "top_k", "repeat_last_n"), int),
    **dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread"), int),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "temperature", "repeat_penalty"), float),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), float),
    "use_mmap": bool,
    "stop": tuple,
}
"""Ollama's options (api/types.go). A daemon stores a parameter of a wrong type without a word and
then fails every request, so they are checked here."""

_LARGEST = 2**53
"""Ollama reads every number as a 64-bit float, which holds whole numbers exactly up to here."""


@dataclass(frozen=True)
class Package:
    """A model and a projector by digest (64 hex digits), and the words around them."""

    model: str
    projector: str
    template: str
    system: str = ""
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the sha256 over all parts, as canonical JSON.

        It is the same wherever the same bytes are installed. A daemon's own manifest digest is
        not: it differs between daemons for the same parts.
        """
        parts = {
            "model": self.model,
            "projector": self.projector,
            "template": hashlib.sha256(self.template.encode()).hexdigest(),
            "system": hashlib.sha256(self.system.encode()).hexdigest(),
            "parameters": {name: self.parameters[name] for name in sorted(self.parameters)},
        }
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def is_sha256(text: str) -> bool:
    """Whether `text` is a sha256 as it is written here: 64 lower-case hex digits."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def parameters(data: Mapping[str, Any]) -> dict[str, ParameterValue]:
    """Return `data` as Modelfile parameters of the right types; text is converted.

    Raises:
        UsageProblem: an unknown parameter, or a value that is not of its type.
    """
    return {name: _parameter(name, value) for name, value in data.items()}


def _parameter(name: str, value: Any) -> ParameterValue:
    kind = PARAMETER_TYPES.get(name)
    if kind is None:
        raise UsageProblem(
            f"`{name}` is not a parameter that Ollama knows",
            hint=f"Known are {', '.join(sorted(PARAMETER_TYPES))}",
        )
    if kind is tuple and isinstance(value, str | list | tuple):
        texts = (value,) if isinstance(value, str) else tuple(str(item) for item in value)
        if texts and all(texts):  # an empty stop would end every answer before its first word
            return texts
    if kind is bool and str(value).lower() in {"true", "false"}:
        return str(value).lower() == "true"
    try:
        if kind in {int, float} and not isinstance(value, bool | list | tuple):
            number = float(value)
            if abs(number) <= _LARGEST and (kind is float or number == int(number)):
                return int(number) if kind is int else number
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageProblem(
        f"`{value}` is not a value for the parameter `{name}`",
        hint={int: "Give a whole number", float: "Give a number", bool: "Give true or false"}.get(
            kind, "Give a text, or a list of texts"
        ),
    )
