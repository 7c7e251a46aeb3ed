"""The keywords of a JSON schema that look at one value, and when each of them holds."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """A keyword that looks at one value: what it `applies` to, and which arguments it `takes`."""

    applies: str
    holds: Callable[[Any, Any], object]
    words: str
    takes: Callable[[Any], object]


def is_number(value: Any) -> bool:
    """Tell numbers from booleans, which are numbers in Python too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return is_number(value) and (isinstance(value, int) or value.is_integer())  # 2.0 is one


def _is_count(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


def _are_types(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(n, str) and n in TYPES and n != "any" for n in names)


def _has_type(value: Any, names: Any) -> bool:
    return any(TYPES[name](value) for name in ([names] if isinstance(names, str) else names))


def _key(value: Any) -> Any:
    """Return what is equal for equal JSON values only: in Python True == 1 as well."""
    if isinstance(value, dict):
        return "object", frozenset((name, _key(item)) for name, item in value.items())
    if isinstance(value, list):
        return "array", tuple(map(_key, value))
    return ("boolean", value) if isinstance(value, bool) else value


TYPES: Mapping[str, Callable[[Any], bool]] = {
    "any": lambda _: True,
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": is_number,
    "integer": _is_integer,
}
RULES: Mapping[str, Rule] = {
    "type": Rule("any", _has_type, "is not of the type {}", _are_types),
    "enum": Rule(
        "any",
        lambda value, known: _key(value) in map(_key, known),
        "is none of {}",
        lambda known: isinstance(known, list) and known,
    ),
    "const": Rule("any", lambda value, only: _key(value) == _key(only), "is not {}", TYPES["any"]),
    "required": Rule(
        "object", lambda value, names: set(names) <= value.keys(), "lacks some of {}", _are_names
    ),
    "minimum": Rule("number", operator.ge, "is less than {}", is_number),
    "maximum": Rule("number", operator.le, "is more than {}", is_number),
    "exclusiveMinimum": Rule("number", operator.gt, "is not more than {}", is_number),
    "exclusiveMaximum": Rule("number", operator.lt, "is not less than {}", is_number),
    "minLength": Rule(
        "string", lambda text, n: len(text) >= n, "has fewer than {} characters", _is_count
    ),
    "maxLength": Rule(
        "string", lambda text, n: len(text) <= n, "has more than {} characters", _is_count
    ),
    "pattern": Rule("string", lambda text, p: re.search(p, text), "is not like {}", _is_pattern),
    "minItems": Rule(
        "array", lambda items, n: len(items) >= n, "has fewer than {} items", _is_count
    ),
    "maxItems": Rule(
        "array", lambda items, n: len(items) <= n, "has more than {} items", _is_count
    ),
    "uniqueItems": Rule(
        "array",
        lambda items, on: not on or len(set(map(_key, items))) == len(items),
        "has an item twice",
        TYPES["boolean"],
    ),
}
