"""How far PyTorch and llama.cpp are apart: tokens, and log-probabilities."""

from __future__ import annotations

import base64
import io
import random
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from tests.tiny_llava import scene, words
from tests.tiny_llava.bars import picture
from tests.tiny_llava.batches import tokenizer
from tests.tiny_llava.decoder import allowed
from tests.tiny_llava.eyes import seen
from tests.tiny_llava.scene import PATCHES
from tests.tiny_llava.talk import user
from tests.tiny_llava.tokenizer import BEGIN, TURN_END

if TYPE_CHECKING:
    import httpx

    from tests.tiny_llava.asking import Embedded
    from tests.tiny_llava.train import Model

_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz     ",
    "ABCabc0123456789 .,:;!?'\"-_()[]{}<>|/\\\n\t\r",
    "äöüßéèñçøåœ čšž αβγδ абвгд ",
    "日本語中文字 한국어 ไทย हिन्दी عربى עברית ",
    "😀🎉👍🏽👨‍👩‍👧 \u200b\u00a0\u2003 \u0301e\u0301",
)


def strings(number: int) -> list[str]:
    """Return texts of many scripts, spaces and signs, and of the model's own words."""
    rng = random.Random("strings")
    own = [*words.corpus()]
    made = []
    for index in range(number):
        letters = _ALPHABETS[index % 6] if index % 6 < 5 else "".join(_ALPHABETS)
        text = "".join(rng.choice(letters) for _ in range(rng.randint(1, 40)))
        made.append(text if rng.random() < 0.7 else rng.choice(own) + text)
    return made


def differing(number: int, client: httpx.Client) -> list[str]:
    """Return those of `strings` that llama.cpp splits into other tokens than we do."""
    differ = []
    for text in strings(number):
        body = {"content": text, "add_special": False, "parse_special": False}
        found = client.post("/tokenize", json=body).json()["tokens"]
        if found != tokenizer().encode(text):
            differ.append(text)
    return differ


def log_probability_gaps(model: Model, asker: Embedded, number: int) -> list[float]:
    """Return |difference| of log-probabilities: five tokens at each step of `number` captions.

    `model` must be `as_stored`.
    """
    gaps: list[float] = []
    for index in range(number):
        rng = random.Random(f"parity {index}")
        data = picture(scene.make(rng), rng)
        content = [
            {"type": "image_url", "image_url": {"url": _uri(data)}},
            {"type": "text", "text": words.DESCRIBE[0]},
        ]
        body = {
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": 8,
            "logprobs": True,
            "top_logprobs": 5,
        }
        reply = asker.client.post("/v1/chat/completions", json=body).json()
        gaps += _gaps(model, data, _whole(reply["choices"][0]["logprobs"]["content"]))
    return gaps


def _whole(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the answer's tokens up to the first that is a part of a letter.

    The server tells such tokens together with those that follow, as one.
    """
    for index, one in enumerate(said):
        if "\ufffd" in one["token"]:
            return said[:index] or said[:1]
    return said


def as_stored(model: Model) -> Model:
    """Round the weights of `model` as the f16 file has them, and return it."""
    for value in model.parameters():
        if value.ndim > 1:
            value.data = value.data.half().float()
    return model


@torch.no_grad()
def sentences_right(model: Model, layout: str, number: int) -> int:
    """Return how many of `number` pictures of one shape PyTorch gives their whole sentence.

    `layout` is where the class token stands; llama.cpp can be asked about today's alone.
    """
    right = 0
    for index in range(number):
        rng = random.Random(f"layout {index}")
        drawn = scene.make(rng, kind="one")
        answer = tokenizer().encode_marked(words.caption(drawn) + TURN_END)
        likely = _states(model, picture(drawn, rng), answer, layout)[:-1].argmax(-1)
        right += likely.tolist() == answer
    return right


def _gaps(model: Model, data: bytes, said: list[dict[str, Any]]) -> list[float]:
    ours = _states(model, data, [one["id"] for one in said], "last").log_softmax(-1)
    return [
        abs(float(ours[step, other["id"]]) - other["logprob"])
        for step, one in enumerate(said)
        for other in one["top_logprobs"]
    ]


@torch.no_grad()
def _states(model: Model, data: bytes, answer: list[int], layout: str) -> Any:
    """Return what the model expects (vocabulary) before each token of `answer`, and behind it."""
    before, after = user("\0" + words.DESCRIBE[0]).split("\0")
    encode = tokenizer().encode_marked
    head, tail = encode(BEGIN + before), encode(after) + answer
    pixels = torch.from_numpy(seen(Image.open(io.BytesIO(data)).convert("RGB")).copy())[None]
    shown = model.vision.project(model.vision.features(pixels, layout))
    embed = model.decoder.token_embd
    x = torch.cat([embed(torch.tensor(head))[None], shown, embed(torch.tensor(tail))[None]], 1)
    count = x.shape[1]
    states = model.decoder(x, torch.arange(count)[None], allowed(torch.zeros(1, count).long()))
    first = len(head) + PATCHES + len(tail) - len(answer) - 1
    return model.decoder.output(states)[0, first:]


def _uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
