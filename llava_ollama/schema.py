"""JSON Schema as far as it can be kept: what is wrong with a schema, and with a document.

Ollama and llama.cpp make a grammar of a schema and leave out, silently, what they cannot express:
the bounds of a number, say. So documents are checked here as well, and a keyword that is unknown
here is refused instead of being taken for kept. This is JSON Schema 2020-12 without `not`, `if`,
`contains`, `dependent…`, `patternProperties`, `propertyNames`, `unevaluated…`, `multipleOf`, `min-`
and `maxProperties`, schemas that are `true` or `false`, and references into other documents;
`format` is a remark, as the standard has it.
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
from llava_ollama.schema_rules import RULES, TYPES, is_number

Schema: TypeAlias = Mapping[str, Any]

DOCUMENT = "the document"
_REMARKS = {
    *("$schema", "$id", "$comment", "title", "description", "default", "examples", "format"),
    *("deprecated", "readOnly", "writeOnly", "discriminator"),
}
_BY_NAME = ("properties", "$defs", "definitions")
_IN_A_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
_OF_OTHERS = ("items", "additionalProperties")
_SAME_VALUE = ("anyOf", "oneOf", "allOf")
_LONGEST_SHOWN = 60
_LONGEST_FILE = 1 << 20
"""Bytes; a pydantic model of a hundred fields makes ten thousand."""
_MOST_COUNTED = 1000
"""Repetitions in a grammar: 0.34.4 refuses `maxItems: 2000`, and `maxLength: 2001` kills the runner
of 0.24.0."""

_DEEPEST = 100
"""Objects and lists in each other; two frames of Python's stack for each, of a thousand."""
_MOST_HELD = 10_000
"""Schemas that one value is held to, through `$ref`, `anyOf` and the like: ten milliseconds."""
_ANCHORED = re.compile(r"\^.*\$", re.DOTALL)
_LENGTHS = frozenset({"minLength", "maxLength", "minItems", "maxItems"})


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
    copy = plain(schema)
    known: dict[int, int] = {}
    try:
        for place, inner in _checked(copy, "#"):
            _check_references(inner, copy, (), known, where=place)
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


def complaints(document: Any, schema: Schema, root: Schema, where: str = "") -> Iterator[str]:
    """Yield what is wrong with a document, a line each; `root` is what references begin at."""
    for keyword, argument in schema.items():
        if rule := RULES.get(keyword):
            if TYPES[rule.applies](document) and not rule.holds(document, argument):
                shown = rule.words.format(_short(argument))
                yield f"{where or DOCUMENT}: {_short(document)} {shown}"
        elif keyword == "$ref":
            yield from complaints(document, _target(argument, root), root, where)
        elif keyword in _SAME_VALUE:
            yield from _choices(document, keyword, [(s, root, where) for s in argument])
    for part, inner, place in _parts(document, schema, where):
        if inner is False:
            yield f"{place}: nothing of this name is asked for"
        elif isinstance(inner, Mapping):
            yield from complaints(part, inner, root, place)


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
        if not (keyword in _LENGTHS and is_number(argument) and argument > _MOST_COUNTED)
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


def _parts(document: Any, schema: Schema, where: str) -> Iterator[tuple[Any, Any, str]]:
    """Yield the parts of an object or array, what each must be, and its place."""
    if isinstance(document, dict):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        for name, value in document.items():
            yield value, properties.get(name, others), f"{where}.{name}" if where else name
    elif isinstance(document, list):
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        for number, value in enumerate(document):
            inner = first[number] if number < len(first) else rest
            yield value, inner, f"{where}[{number}]"


def _choices(
    document: Any, keyword: str, choices: list[tuple[Schema, Schema, str]]
) -> Iterator[str]:
    found = [list(complaints(document, *choice)) for choice in choices]
    fitting = found.count([])
    if keyword == "allOf":
        yield from (line for lines in found for line in lines)
    elif fitting == 0:
        yield from min(found, key=len)
    elif keyword == "oneOf" and fitting > 1:
        yield f"{choices[0][2] or DOCUMENT}: {_short(document)} fits {fitting} of `oneOf`"


_TAKEN: Mapping[str, Callable[[Any], object]] = {
    **{keyword: rule.takes for keyword, rule in RULES.items()},
    **dict.fromkeys(_BY_NAME, TYPES["object"]),
    **dict.fromkeys(_IN_A_LIST, lambda schemas: isinstance(schemas, list) and schemas),
    # The only form that every engine resolves.
    "$ref": lambda to: isinstance(to, str) and re.fullmatch(r"#/(\$defs|definitions)/[^/~]+", to),
}
_KNOWN = frozenset({*_TAKEN, *_REMARKS, *_OF_OTHERS})


def _checked(schema: Any, where: str) -> Iterator[tuple[str, Schema]]:
    """Yield a schema and all that are in it, with their places, once each is known to be one."""
    if not isinstance(schema, dict):
        raise UsageProblem(
            f"the schema has `{_short(schema)}` at `{where}`, where it needs a schema",
            hint="Write an object there; `{}` stands for anything",
        )
    for keyword, argument in schema.items():
        if keyword not in _KNOWN:
            raise UsageProblem(
                f"the schema uses `{keyword}` at `{where}`, which no engine can hold an answer to",
                hint="Leave it out, or give a pydantic model, which checks what it says",
            )
        if (takes := _TAKEN.get(keyword)) and not takes(argument):
            raise UsageProblem(
                f"the schema's `{keyword}` at `{where}` cannot be `{_short(argument)}`",
                hint="See https://json-schema.org/understanding-json-schema",
            )
    yield where, schema
    for inner, place in _inside(schema, where):
        yield from _checked(inner, place)


def _inside(schema: Schema, where: str) -> Iterator[tuple[Any, str]]:
    for keyword in _BY_NAME:
        for name, inner in schema.get(keyword, {}).items():
            yield inner, f"{where}/{keyword}/{name}"
    for keyword in _IN_A_LIST:
        for number, inner in enumerate(schema.get(keyword, ())):
            yield inner, f"{where}/{keyword}/{number}"
    if "items" in schema:
        yield schema["items"], f"{where}/items"
    if not isinstance(others := schema.get("additionalProperties", True), bool):
        yield others, f"{where}/additionalProperties"


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
    same = [inner for keyword in _SAME_VALUE for inner in schema.get(keyword, ())]
    if "$ref" in schema:
        same.append(_target(schema["$ref"], root))
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
    _, place, name = reference.split("/")
    found = root.get(place, {}).get(name)
    if not isinstance(found, dict):
        raise UsageProblem(
            f"the schema refers to `{reference}`, which is not in it",
            hint="Put it under `$defs` at the top of the schema",
        )
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is too large")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
