"""What would act in somebody's words acts no longer, and nothing else is touched."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llava_ollama.engine.interface import Message, Request
from llava_ollama.untrusted import BREAK, inert, picture_mark
from tests.attacks import LLAMA3, MARKS

OTHER = ["<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<image>", "aa", "abab"]
"""Control tokens of other vocabularies, and two that overlap themselves."""
PIECES = [*LLAMA3, *MARKS, *OTHER, "<", "|", ">", "<|", "|>", "eot_id", "[", "img", "-0", "]", " "]

texts = st.text() | st.lists(st.sampled_from(PIECES) | st.text(max_size=2)).map("".join)
nested = st.builds(
    lambda outer, inner, at: outer[: at % len(outer)] + inner + outer[at % len(outer) :],
    st.sampled_from([*LLAMA3, *MARKS]),
    st.sampled_from([*LLAMA3, *MARKS]),
    st.integers(0, 30),
)
some_text = texts | nested
controls = st.lists(st.sampled_from(OTHER), unique=True)


@given(some_text, controls)
@example("<|eot<|eot_id|>_id|>", [])
@example("[img[img-0]-0]", [])
@example("aaaa", ["aa"])
def test_nothing_acts_any_more(text, control):
    made = inert(text, control)
    assert not [token for token in (*LLAMA3, *MARKS, *control) if token in made]
    assert not re.search(r"\[img-\d+\]", made, re.ASCII)


@given(some_text, controls)
def test_only_breaks_are_added_one_for_each(text, control):
    made = inert(text, control)
    assert made.replace(BREAK, "") == text.replace(BREAK, "")
    starts = sum(
        any(text.startswith(token, at) for token in (*LLAMA3, *MARKS, *control))
        for at in range(len(text))
    )
    added = made.count(BREAK) - text.count(BREAK)
    assert starts <= added <= len(re.findall(r"[<\[ab]", text))


@given(some_text, controls)
def test_twice_is_once(text, control):
    made = inert(text, control)
    assert inert(made, control) == made


@given(st.text(alphabet=st.characters(exclude_characters="<[")))
def test_what_cannot_act_stays(text):
    assert inert(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "a < b | c > d",
        "| a | b |\n|---|---|\n| <b> | [c] |",
        "[image] [img1] [ img ] [img-] [img-x] [img-0 ] [IMG-0] [img-\u0660]",
        "f <| x |> g, xs |> map <|> ys <||> zs",
        "std::cout << (a<b||c>d) << [&]{ return x<|y; }",
        "<s>old</s> <image> [INST] <unk> <pad>",
        "<|EOT_ID | <| eot_id |> < |eot_id| > <|eot\nid|>",
        "\uff1c|eot_id|\uff1e <\uff5ceot_id\uff5c> <|\u0435\u043et_id|>",
        "__media__ <__init__> <_media_> <__MEDIA__>",
        f"<{BREAK}|eot_id|> <|eot{BREAK}_id|> [{BREAK}img-0]",
        "",
    ],
)
def test_harmless_text_is_never_changed(text):
    assert inert(text) == text


def test_it_reads_as_before():
    assert inert("Say <|eot_id|> to [img-0]") == "Say <\u2060|eot_id|> to [\u2060img-0]"
    assert inert("<|a<|b|>c|>") == "<|a<\u2060|b|>c|>"


def test_the_engines_own_tokens_are_covered_as_well():
    assert inert("HTML's <s> stays") == "HTML's <s> stays"
    assert inert("</s>[INST]PICTURE", ["</s>", "[INST]", "PICTURE"]) == (
        f"<{BREAK}/s>[{BREAK}INST]P{BREAK}ICTURE"
    )


def test_what_would_move_a_picture_is_found():
    assert picture_mark("one [img] two [img-0 ] three [img-12] four [img-3]") == "[img-12]"
    assert picture_mark("[img] [img-] [img-x] [IMG-0]") is None


@pytest.mark.parametrize("unit", ["<|", "<|x", "<__media", "[img-0", "<|x|>", "<"])
def test_a_long_text_takes_no_longer_than_its_length(unit):
    """A hundred times the text may take a few hundred times as long, not ten thousand."""
    short, long = unit * 1_000, unit * 100_000
    inert(short)
    begun = time.perf_counter()
    for _ in range(10):
        inert(short)
    between = time.perf_counter()
    inert(long)
    assert time.perf_counter() - between < 1 + 100 * (between - begun)


def test_every_turn_is_made_inert_unless_trusted():
    said = tuple(Message(role, "x<|eot_id|>y") for role in ("system", "user", "assistant"))
    spoken = Request(said).spoken()
    assert [message.role for message in spoken] == ["system", "user", "assistant"]
    assert {message.text for message in spoken} == {f"x<{BREAK}|eot_id|>y"}
    assert Request(said, trusted=True).spoken(["x"]) == said
