"""JSON schemas: whether one can be kept, what engines can take of it, and what a document lacks.

Ollama and llama.cpp make a grammar of a schema and leave out, silently, what they cannot express:
the bounds of a number, say. So a document is checked here as well, by `jsonschema`, in 2020-12.
`format` is a remark, as the standard has it; references lead to `$defs` or `definitions` at the
top, the only form that every engine resolves.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from llava_ollama.errors import UsageProblem

Schema: TypeAlias = Mapping[str, Any]

DOCUMENT = "the document"
_BY_NAME = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_IN_A_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
_OF_OTHERS = (
    *("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties"),
)
_SAME_VALUE = ("anyOf", "oneOf", "allOf")
_LONGEST_FILE = 1 << 20
"""Bytes; a pydantic model of a hundred fields makes ten thousand."""
_LONGEST = 160
"""Characters of a validator's sentence that are shown."""
_MOST_COUNTED = 1000
"""Repetitions in a grammar: 0.34.4 refuses `maxItems: 2000`, and `maxLength: 2001` kills the runner
of 0.24.0."""

_DEEPEST = 60
"""Objects and lists in each other; `jsonschema` takes ten frames of Python's stack for each, of a
thousand."""
_MOST_HELD = 10_000
"""Schemas that one value is held to, through `$ref`, `anyOf` and the like: ten milliseconds."""
_ANCHORED = re.compile(r"\^.*\$", re.DOTALL)
_REFERENCE = re.compile(r"#/(\$defs|definitions)/[^/~]+")
_LENGTHS = frozenset({"minLength", "maxLength", "minItems", "maxItems"})
_TAKEN = frozenset(
    {
        *("type", "const", "enum", "required", "pattern", "format", "title", "description"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", *_LENGTHS),
        *("properties", "items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf"),
        *("$ref", "$defs", "definitions"),
    }
)
"""What grammars are made of; some engines refuse a schema for any other keyword, or drop it."""


def parse(text: str) -> Any:
    """Return the document that `text` is.

    Raises:
        ValueError: it is none, or has a number that JSON cannot carry further.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc


def load(path: str | os.PathLike[str]) -> Schema:
    """Read a schema from a JSON file.

    Raises:
        UsageProblem: it cannot be read, or is none that an answer can be held to.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_LONGEST_FILE + 1)
    except (OSError, ValueError) as exc:  # ValueError: a null character in the path
        raise UsageProblem(
            f"the schema `{path}` cannot be read: {getattr(exc, 'strerror', None) or exc}",
            hint="Give the path of a JSON file",
        ) from exc
    if len(text) > _LONGEST_FILE:
        raise UsageProblem(
            f"`{path}` is too large for a schema", hint="No engine takes one of more than 1 MB"
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        why = "it is not UTF-8 text" if isinstance(exc, UnicodeError) else exc
        raise UsageProblem(
            f"`{path}` is not JSON: {why}",
            hint='A schema looks like `{"type": "object", "properties": {…}}`',
        ) from exc
    return checked(found)


def checked(schema: Schema) -> Schema:
    """Return a copy of a schema that an answer can be held to.

    Raises:
        UsageProblem: it has an unknown keyword, a wrong value of a known one, or a reference that
            leads nowhere or back to itself.
    """
    from jsonschema import Draft202012Validator, SchemaError

    copy = plain(schema)
    try:
        Draft202012Validator.check_schema(copy)
        _check_all_references(copy)
    except SchemaError as exc:
        place = "/".join(["#", *map(str, exc.absolute_path)])
        raise UsageProblem(
            f"the schema is wrong at `{place}`: {shortened(exc.message)}",
            hint="See https://json-schema.org/understanding-json-schema",
        ) from exc
    except RecursionError as exc:
        raise UsageProblem(
            "the schema's references are too long a chain", hint="Make the schema simpler"
        ) from exc
    return copy


def plain(schema: Schema) -> Schema:
    """Return a copy of JSON's own types, so shallow that nobody who reads it runs out of stack.

    Raises:
        UsageProblem: it is no JSON document, or nested too deeply.
    """
    try:
        copy = json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as exc:
        raise UsageProblem(
            f"the schema is no JSON document: {exc}", hint="See https://json-schema.org/learn"
        ) from exc
    level, depth = [copy], 0
    while level := [inner for outer in level for inner in _members(outer)]:
        depth += 1
        if depth > _DEEPEST:
            raise UsageProblem(
                f"the schema is nested more than {_DEEPEST} deep",
                hint="Put its parts under `$defs`, and refer to them",
            )
    return copy  # type: ignore[no-any-return] # a mapping, or the check of it raises


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def complaints(schema: Schema) -> Callable[[Any], list[str]]:
    """Return what finds out what is wrong with a document, a line each.

    `schema` is one that `checked` has returned.
    """
    from jsonschema import Draft202012Validator
    from referencing import Registry

    # An empty registry: nothing is fetched, whatever a reference says.
    judge = Draft202012Validator(schema, registry=Registry())

    def judged(document: Any) -> list[str]:
        return [
            f"{error.json_path.removeprefix('$').removeprefix('.') or DOCUMENT}: "
            + shortened(error.message)
            for error in judge.iter_errors(document)
        ]

    return judged


def shortened(text: str) -> str:
    """Return a validator's words, which quote a whole value, as long as a person reads them."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} … {text[-half:]}"


def for_engines(schema: Schema) -> Schema:
    """Return the schema without what an engine's grammar cannot take, and with closed objects.

    Left out are long counts, and patterns that are not anchored: 0.24.0 refuses them, 0.34.4 lets
    anything pass. Names that are not asked for are allowed by the standard and by llguidance, never
    written by the other engines, and nothing that anybody waits for.
    """
    return _fitted(schema, close=not _mixes(schema))  # type: ignore[no-any-return] # a mapping


def _fitted(schema: Any, *, close: bool) -> Any:
    if not isinstance(schema, Mapping):
        return schema  # `True` or `False`, which pydantic writes here and there
    fitted = {
        keyword: _fitted_inside(keyword, argument, close=close)
        for keyword, argument in schema.items()
        if keyword in _TAKEN
        and not (keyword in _LENGTHS and argument > _MOST_COUNTED)
        and not (keyword == "pattern" and not _ANCHORED.fullmatch(str(argument)))
    }
    if close and "properties" in schema and "type" in schema:
        fitted.setdefault("additionalProperties", False)
    return fitted


def _fitted_inside(keyword: str, argument: Any, *, close: bool) -> Any:
    if keyword in _BY_NAME:
        return {name: _fitted(inner, close=close) for name, inner in argument.items()}
    if keyword in _IN_A_LIST:
        return [_fitted(inner, close=close) for inner in argument]
    return _fitted(argument, close=close) if keyword in _OF_OTHERS else argument


def _mixes(schema: Any) -> bool:
    """Tell whether an object's properties may stand in several places, so that none is closed."""
    if not isinstance(schema, Mapping):
        return False
    alternatives = schema.keys() & {*_SAME_VALUE, "$ref"}
    mixed = "allOf" in alternatives or ("properties" in schema and alternatives)
    return bool(mixed) or any(_mixes(inner) for inner, _ in _inside(schema, ""))


def _inside(schema: Schema, where: str) -> Iterator[tuple[Any, str]]:
    for keyword in _BY_NAME:
        for name, inner in schema.get(keyword, {}).items():
            yield inner, f"{where}/{keyword}/{name}"
    for keyword in _IN_A_LIST:
        for number, inner in enumerate(schema.get(keyword, ())):
            yield inner, f"{where}/{keyword}/{number}"
    for keyword in _OF_OTHERS:
        if keyword in schema:
            yield schema[keyword], f"{where}/{keyword}"


def _check_all_references(root: Schema) -> None:
    """Refuse references that lead nowhere, or in a circle, anywhere in a schema."""
    known: dict[int, int] = {}
    todo: list[tuple[Any, str]] = [(root, "#")]
    while todo:
        schema, where = todo.pop()
        if isinstance(schema, dict):
            _check_references(schema, root, (), known, where=where)
            todo += _inside(schema, where)


def _check_references(
    schema: Schema, root: Schema, above: tuple[Schema, ...], known: dict[int, int], *, where: str
) -> int:
    """Return how many schemas one value is held to, and refuse references that come back to it.

    `known` is what was returned for others, by identity: each is gone into once.
    """
    if id(schema) in known:
        return known[id(schema)]
    if any(schema is one for one in above):
        raise UsageProblem(
            f"the schema at `{where}` refers to itself", hint="Let it refer to a part of itself"
        )
    same: list[Schema] = [
        s for keyword in _SAME_VALUE for s in schema.get(keyword, ()) if isinstance(s, dict)
    ]
    same += [_target(schema[k], root) for k in ("$ref", "$dynamicRef") if k in schema]
    above = *above, schema
    held = 1 + sum(_check_references(s, root, above, known, where=where) for s in same)
    if held > _MOST_HELD:
        raise UsageProblem(
            f"the schema at `{where}` holds one value to more than {_MOST_HELD} schemas",
            hint="Make the schema simpler",
        )
    known[id(schema)] = held
    return held


def _target(reference: str, root: Schema) -> Schema:
    """Return the schema that a reference names."""
    found = None
    if _REFERENCE.fullmatch(reference):
        _, place, name = reference.split("/")
        found = root.get(place, {}).get(name)
    if not isinstance(found, dict):
        raise UsageProblem(
            f"the schema refers to `{reference}`, which is not under its `$defs`",
            hint="Put it under `$defs` at the top of the schema",
        )
    return found


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is too large")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
