"""The raw prompt is what Meta's published template renders, character for character."""

from __future__ import annotations

from collections import UserList

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_ollama import prompts
from llava_ollama.engine.interface import Message
from llava_ollama.images import PreparedPicture

# `tokenizer.chat_template` of meta-llama/Meta-Llama-3-8B-Instruct.
META = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PICTURE = PreparedPicture(b"", 1, 1)

texts = st.text() | st.sampled_from(
    ["", " ", "\n\n", "\x1f", "\u3000x\u00a0", "\u200b", "{{ bos_token }}", '"""', "<|eot_id|>"]
)
turns = st.builds(
    Message,
    st.sampled_from(["user", "assistant"]),
    texts,
    st.integers(0, 3).map(lambda n: (PICTURE,) * n),
)
conversations = st.tuples(
    st.lists(st.builds(Message, st.just("system"), texts), max_size=1),
    st.lists(turns, min_size=1, max_size=6),
).map(lambda parts: [*parts[0], *parts[1]])


@pytest.fixture(scope="module")
def meta():
    environment = jinja2.Environment(keep_trailing_newline=True)
    return environment.from_string(META)


@given(conversations, st.sampled_from(["<image>", "[img]", "<__media__>"]))
def test_it_is_metas_template(meta, messages, marker):
    rendered = meta.render(
        bos_token="<|begin_of_text|>",
        add_generation_prompt=True,
        messages=[
            {"role": turn.role, "content": f"{marker}\n" * len(turn.pictures) + turn.text.strip()}
            for turn in messages
        ],
    )
    assert prompts.llama3(messages, marker=marker, begin_of_text=True) == rendered
    assert (
        prompts.BEGIN_OF_TEXT
        + prompts.llama3(UserList(messages), marker=marker, begin_of_text=False)
        == rendered
    )


def test_it_is_the_cards_prompt():
    turn = Message("user", " Describe this image\n", (PICTURE,))
    assert prompts.llama3([turn], marker="<image>", begin_of_text=False) == (
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nDescribe this image<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize(
    ("text", "pictures", "content"),
    [
        ("Describe this image", 1, "[img]\nDescribe this image"),
        ("\n What differs?\t", 2, "[img]\n[img]\nWhat differs?"),
        ("  Hello \n", 0, "Hello"),
        ("", 1, "[img]"),
        ("", 0, ""),
    ],
)
def test_ollama_finds_its_marks_before_the_text(text, pictures, content):
    assert prompts.place_ollama(text, pictures) == content


@given(st.text(alphabet=st.characters(max_codepoint=0x3100)))
def test_white_space_is_jinjas(text):
    assert prompts.place_ollama(text, 0) == jinja2.Template("{{ t | trim }}").render(t=text)


def test_the_stops_are_the_cards():
    assert prompts.STOPS == ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
