"""JSON schemas: what is wrong with one, with a document, and what an engine can take of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError, create_model

from llava_ollama import schema
from llava_ollama.errors import UsageProblem

TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"of": {"$ref": "#/$defs/node"}},
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
PAIR = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", 1, None]}},
    "required": ["a"],
    "additionalProperties": False,
}
FITS: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({}, [None, 1, "a", [], {}], []),
    ({"type": "integer"}, [0, -3, 2.0, 10**30], [1.5, True, "1", None]),
    ({"minimum": 1, "exclusiveMaximum": 3}, [1, 2.5, "text"], [0, 3]),
    ({"minLength": 2, "maxLength": 3}, ["ab", "äöü", 5], ["a", "abcd"]),
    ({"pattern": "^a+$"}, ["a", "aaa", 5], ["", "ab"]),
    ({"items": {"type": "string"}, "maxItems": 2}, [["a"], {}], [["a"] * 3, [1]]),
    ({"prefixItems": [{"const": 1}], "items": {"const": 2}}, [[1], [1, 2, 2], []], [[2], [1, 1]]),
    (PAIR, [{"a": 1}, {"a": 1, "b": None}], [{}, {"a": "1"}, {"a": 1, "b": 2}, {"a": 1, "c": 1}]),
    ({"allOf": [{"multipleOf": 2}, {"not": {"const": 4}}]}, [2, 6], [3, 4]),
    (TREE, [{}, {"of": {"of": {}}}], [{"of": 1}, {"of": {"of": {"off": {}}}}]),
    ({"title": "T", "format": "date", "default": 1, "$comment": "c", "type": "string"}, ["x"], [1]),
]


@pytest.mark.parametrize(("wanted", "good", "bad"), FITS, ids=[str(f[0])[:40] for f in FITS])
def test_a_document_fits_or_is_complained_of(wanted, good, bad):
    judged = schema.complaints(schema.checked(wanted))
    for document in good:
        assert judged(document) == []
    for document in bad:
        assert judged(document)


def test_complaints_say_where_and_what():
    wanted = {
        "type": "object",
        "properties": {"seen": {"type": "array", "items": PAIR}},
        "required": ["seen", "more"],
        "additionalProperties": False,
    }
    judged = schema.complaints(schema.checked(wanted))
    assert sorted(judged({"seen": [{"a": 1}, {"a": "one", "b": "y" * 999}], "other": 1})) == [
        "seen[1].a: 'one' is not of type 'integer'",
        f"seen[1].b: '{'y' * 79} … {'y' * 50}' is not one of ['x', 1, None]",
        "the document: 'more' is a required property",
        "the document: Additional properties are not allowed ('other' was unexpected)",
    ]


def chained(length: int, times: int = 1) -> dict[str, Any]:
    """Return a schema of references, each of which leads to the next one, `times` over."""
    defs: dict[str, Any] = {
        f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * times} for n in range(length)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{length}": {"type": "string"}}}


REFUSED: list[tuple[Any, str]] = [
    ({"type": "strin"}, "is wrong at `#/type`: 'strin' is not valid"),
    ({"properties": {"a": {"anyOf": []}}}, "at `#/properties/a/anyOf`"),
    ({"properties": []}, "`#/properties`"),
    ({"minLength": -1}, "`#/minLength`"),
    ({"exclusiveMinimum": True}, "`#/exclusiveMinimum`"),
    ({"items": {"pattern": "("}}, "`#/items/pattern`: '(' is not a 'regex'"),
    ({"patternProperties": {"[": {}}}, "`#/patternProperties`"),
    ({"$ref": "http://127.0.0.1/x.json"}, "refers to `http://127.0.0.1/x.json`"),
    ({"not": {"$ref": "#"}}, "refers to `#`, which is not under its `$defs`"),
    ({"$ref": "#/$defs/a"}, "refers to `#/$defs/a`"),
    ({"$dynamicRef": "#node"}, "refers to `#node`"),
    ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "refers to itself"),
    ({"$defs": {"a": {"anyOf": [{}, {"$ref": "#/$defs/a"}]}}}, "refers to itself"),
    ({"minimum": float("nan")}, "no JSON document"),
    ({"const": {1, 2}}, "no JSON document"),
    ([], "is wrong at `#`: [] is not of type"),
    ({"default": json.loads("[" * 61 + "]" * 61)}, "nested more than 60 deep"),
    (chained(24, times=2), "holds one value to more than 10000 schemas"),
    (chained(2000), "too long a chain"),
]


@pytest.mark.parametrize(("wrong", "words"), REFUSED, ids=[str(r[0])[:40] for r in REFUSED])
def test_a_schema_that_cannot_be_kept_is_refused(wrong, words):
    with pytest.raises(UsageProblem) as caught:
        schema.checked(wrong)
    assert words in str(caught.value)
    assert caught.value.hint


def test_a_chain_of_references_is_gone_through_once():
    judged = schema.complaints(schema.checked(chained(50)))
    assert judged(1) == ["the document: 1 is not valid under any of the given schemas"]


def test_the_deepest_schema_is_checked_and_sent_far_down_the_stack():
    deep = json.loads('{"items":' * 60 + "{}" + "}" * 60)

    def below(frames: int) -> schema.Schema:
        return below(frames - 1) if frames else schema.for_engines(schema.checked(deep))

    assert below(300) == deep


def test_a_schema_of_any_depth_ends():
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(UsageProblem):
        schema.checked(deep)
    while deep:  # or the interpreter's own recursion would free it
        deep = deep.pop("items")


@pytest.mark.parametrize("text", ["", "{", "NaN", "-Infinity", "1e999", "[" * 100_000, "9" * 5000])
def test_what_is_no_document_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 - its words are json's
        schema.parse(text)


def test_engines_get_what_their_grammars_can_take():
    wanted = {
        "type": "object",
        "properties": {
            "maxLength": {"type": "string", "maxLength": 5000, "pattern": "loose"},
            "b": {"type": "array", "maxItems": 7, "minItems": 1001, "const": {"minItems": 5000}},
            "c": {"type": "string", "pattern": "^tight$", "not": {"const": ""}},
        },
        "unevaluatedProperties": False,
    }
    assert schema.for_engines(wanted) == {
        "type": "object",
        "properties": {
            "maxLength": {"type": "string"},
            "b": {"type": "array", "maxItems": 7, "const": {"minItems": 5000}},
            "c": {"type": "string", "pattern": "^tight$"},
        },
        "additionalProperties": False,
    }


def test_properties_that_are_called_as_a_keyword_is():
    """GeoJSON has a `type` and `properties` in every object."""
    named = {"default": {"type": "string", "maxLength": 5000}, "$ref": {"type": "string"}}
    feature = {
        "type": "object",
        "properties": {"type": {"const": "Feature"}, "properties": {"items": named["default"]}},
    }
    got = schema.for_engines({"type": "object", "properties": {**named, "allOf": feature}})
    names = got["properties"]
    assert got["additionalProperties"] is False
    assert names["default"] == names["$ref"] == {"type": "string"}
    assert names["allOf"] == {
        "type": "object",
        "properties": {"type": {"const": "Feature"}, "properties": {"items": {"type": "string"}}},
        "additionalProperties": False,
    }


@pytest.mark.parametrize("way", ["anyOf", "allOf"])
def test_objects_whose_names_stand_in_several_places_stay_open(way):
    both = [
        {"type": "object", "properties": {"a": {}}},
        {"type": "object", "properties": {"b": {}}},
    ]
    wanted = {"type": "object", "properties": {"c": {}}, way: both}
    assert schema.for_engines(wanted) == wanted


SIMPLE = st.recursive(
    st.sampled_from([{"type": "integer"}, {"type": "string"}, {"enum": ["a", "b"]}, {}]),
    lambda inner: (
        st.builds(
            lambda names, required: {
                "type": "object",
                "properties": names,
                "required": sorted(set(names) & required),
            },
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.sets(st.sampled_from("abc")),
        )
        | inner.map(lambda item: {"type": "array", "items": item})
    ),
    max_leaves=6,
)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from("abc"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(SIMPLE, DOCUMENTS)
def test_it_judges_as_pydantic_does(wanted, document):
    """Another judge of the part that both know."""
    judged = schema.complaints(schema.checked(wanted))
    try:
        TypeAdapter(_type(wanted)).validate_json(json.dumps(document), strict=True)
        fits = True
    except ValidationError:
        fits = False
    assert fits == (not judged(document))


def _type(wanted: dict[str, Any]) -> Any:
    """Return the type that the schema describes, for pydantic."""
    if "enum" in wanted:
        return Literal["a", "b"]
    kind = wanted.get("type", "any")
    if kind == "object":
        fields: dict[str, Any] = {
            name: (_type(inner), ... if name in wanted["required"] else None)
            for name, inner in wanted["properties"].items()
        }
        return create_model("Made", **fields)
    return {"array": lambda: list[_type(wanted["items"])], "any": lambda: Any}.get(  # type: ignore[misc] # made at run time
        kind, lambda: {"integer": int, "string": str}[kind]
    )()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\xfd", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * 2_000_000, "too large"),
        (b'{"type": 1}', "is wrong at `#/type`"),
        (b"1", "is wrong at `#`"),
    ],
)
def test_a_schema_file_that_is_none(content, words, tmp_path: Path):
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageProblem) as caught:
        schema.load(path)
    assert words in str(caught.value)
    assert caught.value.hint


def test_a_schema_file(tmp_path: Path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(TREE), encoding="utf-8")
    assert schema.load(str(path)) == TREE
