"""A package's digest, and the types of parameters."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_ollama.errors import UsageProblem
from llava_ollama.package import PARAMETER_TYPES, Package, ParameterValue, parameters

A, B = "a" * 64, "b" * 64


def test_the_digest_is_the_same_today_and_tomorrow():
    package = Package(A, B, "template", "system", {"stop": ("x", "y"), "num_ctx": 4096})
    # Answers and records carry it: another value would make all of them strangers.
    assert package.digest() == "daf91efd3546915f06bbed2beb71d138006ac997e111d81a0137b49bd7b7931d"


def test_the_digest_is_of_every_part():
    given_: dict[str, ParameterValue] = {"stop": ("x",), "num_ctx": 1}
    packages = [
        Package(A, B, "t", "s", given_),
        Package(B, A, "t", "s", given_),
        Package(A, A, "t", "s", given_),
        Package(A, B, "s", "t", given_),
        Package(A, B, "t", "", given_),
        Package(A, B, "t", "s", {"stop": ("x",), "num_ctx": 2}),
        Package(A, B, "t", "s", {"stop": ("x", "x"), "num_ctx": 1}),
        Package(A, B, "t", "s", {"stop": ("x",)}),
    ]
    assert len({package.digest() for package in packages}) == len(packages)


def test_the_order_of_parameters_does_not_matter():
    one = Package(A, B, "t", "", {"num_ctx": 1, "seed": 2})
    assert one.digest() == Package(A, B, "t", "", {"seed": 2, "num_ctx": 1}).digest()


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("num_ctx", "4096", 4096),
        ("num_ctx", 4096.0, 4096),
        ("num_ctx", "4e+06", 4_000_000),
        ("num_predict", -1, -1),
        ("seed", 2**53, 2**53),
        ("temperature", 0, 0.0),
        ("temperature", "0.7", 0.7),
        ("use_mmap", "False", False),
        ("use_mmap", True, True),
        ("stop", "</s>", ("</s>",)),
        ("stop", ["a", "b"], ("a", "b")),
    ],
)
def test_a_value_becomes_its_type(name, value, read):
    found = parameters({name: value})[name]
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_ctx", "many"),
        ("num_ctx", 1.5),
        ("num_ctx", True),
        ("num_ctx", [1]),
        ("num_ctx", None),
        ("num_ctx", 10**400),
        ("seed", 2**53 + 2),
        ("temperature", math.nan),
        ("temperature", "inf"),
        ("temperature", False),
        ("use_mmap", 1),
        ("stop", 1),
        ("stop", []),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("num_ctxx", 1),
        ("Num_ctx", 1),
    ],
)
def test_a_value_of_another_type_is_refused(name, value):
    with pytest.raises(UsageProblem) as caught:
        parameters({name: value})
    assert name in caught.value.message
    assert caught.value.hint


@given(st.sampled_from(sorted(PARAMETER_TYPES)), st.text() | st.integers() | st.floats())
def test_reading_twice_changes_nothing(name, value):
    try:
        once = parameters({name: value})
    except UsageProblem:
        return
    assert parameters(once) == once
    assert parameters({name: str(value)}) == once
