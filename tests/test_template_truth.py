"""The prompt that a daemon makes with our chat template is Meta's, character for character.

Both sides get the same random conversations: ours through the engine's own request and the
daemon's `_debug_render_only`, Meta's through its published template and Jinja. The daemon adds
BOS when it makes tokens of the prompt, and marks pictures as `[img-N]`.
"""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

import httpx
import jinja2
import pytest

from llava_ollama import catalog, images, modelfile
from llava_ollama.daemon import Daemon
from llava_ollama.engine.interface import Message, Request
from llava_ollama.engine.ollama import OllamaEngine
from llava_ollama.images import PreparedPicture
from tests.daemons.running import RunningDaemon
from tests.drawn import one_shape_pictures

pytestmark = pytest.mark.ollama

# `chat_template` in tokenizer_config.json of meta-llama/Meta-Llama-3-8B-Instruct, as it was
# published; a copy of its own, so that ours is not held against itself.
META = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CONVERSATIONS = 200
SEED = 20260521
PIECES = [
    *("a", "word", "Describe this image", "0", "é", "e\u0301", "ß", "漢字", "😀", "👩\u200d🚀"),
    *(
        "\u05e9\u05dc\u05d5\u05dd",
        "\u202eabc\u202c",
        "\u0627\u0644",
        "\u0e17\u0e35\u0e48",
        "\ufeff",
    ),
    *("\n", "\n\n", "\r\n", "\t", " ", "   ", "\xa0", "\u2028", "\x0b", "\x1b", "\x7f"),
    *("{{", "}}", "{{ .System }}", "{{- end }}", "{%", "%}", "{#", "#}", "{", "}", "$", "%s"),
    *('"', '"""', "'", "`", "\\", "\\n", "\\u0041", "/", "<", ">", "&", "&lt;", "</s>", "<b>"),
    *("[", "]", "[INST]", "<image>", "user", "assistant", "system", "###", "<|", "|>"),
    *("[img]", "[img-0]", "[img-1]", "[img-7]", "<|eot_id|>", "<|start_header_id|>"),
]
OUTER = ["", "", "", " ", "\n", "\n\n", "\t ", " \r\n", "\xa0"]
MOST_PICTURES = 3
"""0.34.4 reckons with 768 tokens a picture, and would leave turns out beyond num_ctx."""


def content(chance: random.Random) -> str:
    """Return a text of up to some 150 tokens that is not empty."""
    pieces = [chance.choice(PIECES) for _ in range(chance.randint(1, 12))]
    pieces += [chr(chance.choice([*range(0x21, 0x7F), *range(0xA1, 0x2000)])) for _ in range(3)]
    chance.shuffle(pieces)
    return "".join(pieces).strip() or "a"


def conversation(chance: random.Random, picture: PreparedPicture) -> tuple[Message, ...]:
    """Return a system message or none, 1 to 4 turns, and pictures in any user's turn."""

    def said() -> str:
        return chance.choice(OUTER) + content(chance) + chance.choice(OUTER)

    messages = [Message("system", said())] if chance.random() < 0.5 else []
    left = MOST_PICTURES
    turns = chance.randint(1, 4)
    for turn in range(turns):
        pictures = min(left, chance.choice([0, 0, 1, 1, 2]))
        left -= pictures
        messages.append(Message("user", said(), (picture,) * pictures))
        if turn + 1 < turns:
            messages.append(Message("assistant", said()))
    return tuple(messages)


def published(messages: tuple[Message, ...]) -> str:
    """Return what Meta's template makes of a conversation, without BOS."""
    return (
        jinja2.Environment(autoescape=False)
        .from_string(META)
        .render(
            messages=[
                {"role": m.role, "content": "<image>\n" * len(m.pictures) + m.text.strip()}
                for m in messages
            ],
            bos_token="",
            add_generation_prompt=True,
        )
    )


def rendered(client: httpx.Client, request: Mapping[str, Any]) -> str:
    """Return the prompt that the daemon would give its model for the engine's request."""
    body = {key: value for key, value in request.items() if value is not None}
    body["messages"] = [
        {**m, "images": [base64.b64encode(data).decode() for data in m.get("images", ())]}
        for m in request["messages"]
    ]
    reply = client.post("/api/chat", json={**body, "stream": False, "_debug_render_only": True})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["_debug_info"]["rendered_template"])


@pytest.fixture
def model(daemon: Daemon) -> Iterator[str]:
    """The tiny model with the template that `install` registers."""
    entry = catalog.load().entry("tiny-llava")
    files = entry.model("int4")[1], entry.projector
    for file in files:
        assert file.path is not None
        assert file.sha256 is not None
        if not daemon.has_blob(file.sha256):
            data = file.path.read_bytes()
            daemon.upload(file.sha256, len(data), iter([data]))
    name = f"truth-{uuid4().hex[:8]}"
    list(
        daemon.create(
            name,
            files={
                "model.gguf": str(files[0].sha256),
                "projector.gguf": str(files[1].sha256),
            },
            template=modelfile.chat_template(),
            system="",
            parameters={**catalog.LLAMA3_PARAMETERS, **entry.parameters},
        )
    )
    yield name
    daemon.delete(name)


def test_the_daemons_prompt_is_metas(ollama: RunningDaemon, model: str):
    chance = random.Random(SEED)
    picture = images.prepare(next(one_shape_pictures(1, SEED))[0], 112)
    engine = OllamaEngine(model, ollama.host)
    client = httpx.Client(base_url=ollama.host, trust_env=False, timeout=120)
    seen = set()
    for _ in range(CONVERSATIONS):
        messages = conversation(chance, picture)
        request = Request(messages)
        prompt = rendered(client, engine._arguments(request))
        count = sum(len(m.pictures) for m in messages)
        # Numbered over the whole conversation, in order; what looks like it in a text is inert.
        assert re.findall(r"\[img-(\d+)\]", prompt) == [str(n) for n in range(count)]
        assert re.sub(r"\[img-\d+\]", "<image>", prompt) == published(request.spoken())
        seen.add((len(messages), count))
    client.close()
    engine.close()
    assert {messages for messages, _ in seen} == set(range(1, 9)), "all lengths were met"
    assert {pictures for _, pictures in seen} == set(range(MOST_PICTURES + 1))
