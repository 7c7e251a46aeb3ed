"""The drawn pictures: what is on them, and that the bundled model sees it."""

from __future__ import annotations

import base64
import io
import itertools
import random
from typing import Any

import pytest

from llava_ollama import resources
from llava_ollama.tiny import shapes
from llava_ollama.tiny.shapes import Shape
from tests.drawn import one_shape_pictures

EVERY = [
    Shape(*parts)
    for parts in itertools.product(shapes.ALL_COLOURS, shapes.SHAPES, shapes.BACKGROUNDS)
    if parts[0] != parts[2]
]
RED_STAR = Shape("red", "star", "grey")


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (Shape("red", "circle", "white"), "A red circle on a white background."),
        (Shape("orange", "star", "grey"), "An orange star on a grey background."),
        (Shape("cyan", "square", "black"), "A cyan square on a black background."),
    ],
)
def test_captions_read_as_the_model_was_taught(shape, text):
    assert shapes.caption(shape) == text


def test_every_caption_names_its_own_shape_alone():
    for shape, other in itertools.product(EVERY, EVERY):
        same = (shape.colour, shape.shape) == (other.colour, other.shape)
        assert shapes.names(shape, shapes.caption(other)) is same


@pytest.mark.parametrize(
    "answer",
    [
        "A red star on a grey background.",
        "A red star on a gray background.",
        "RED STAR",
        "There is a star. It is red, on white.",
        "Two red stars on a black background.",
        "The star is red, with scattered, coloured, tired dots",
    ],
)
def test_right_answers(answer):
    assert shapes.names(RED_STAR, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A star.",
        "Something red.",
        "A blue star on a grey background.",
        "A red circle on a grey background.",
        "A red star and a blue star on a grey background.",
        "A red star and a red circle on a grey background.",
        "A red or orange star",
        "A red star on a blue background.",
        "A scattered star",
        "A reddish starfish",
        "Wrong chat template.",
        "I see no picture.",
    ],
)
def test_wrong_answers(answer):
    assert not shapes.names(RED_STAR, answer)


def test_a_seed_decides_the_picture():
    first, again, other = (shapes.draw(RED_STAR, seed=seed) for seed in (5, 5, 6))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("size", [(224, 224), (96, 60), (200, 320), (112, 300)])
@pytest.mark.parametrize("form", shapes.SHAPES)
def test_a_shape_lies_inside_its_canvas(form, size):
    for seed in range(25):
        picture = shapes.draw(
            Shape("green", form, "black"), width=size[0], height=size[1], seed=seed
        )
        assert picture.mode == "RGB"
        assert picture.size == size
        shown = picture.convert("L").point(lambda v: 255 * (v > 30)).getbbox()
        assert shown is not None
        left, top, right, bottom = shown
        assert min(left, top, size[0] - right, size[1] - bottom) > 0
        side = max(right - left, bottom - top) * 112 / max(size)
        room = min(size) * 112 / max(size)
        assert min(44, room / 1.15) * 0.8 < side < min(92, room) * 1.1 + 2


@pytest.mark.parametrize("form", shapes.SHAPES)
def test_edges_are_smooth_and_colours_close_to_their_names(form):
    for colour, value in shapes.COLOURS.items():
        picture = shapes.draw(Shape(colour, form, "white"), seed=3)
        counts: Any = picture.getcolors(maxcolors=picture.width * picture.height)
        (_, background), (_, filling), *blends = sorted(counts, reverse=True)
        assert max(abs(a - b) for a, b in zip(background, (250,) * 3, strict=True)) <= 6
        assert max(abs(a - b) for a, b in zip(filling, value, strict=True)) <= 10
        assert len(blends) > 5


def test_random_shapes_reach_every_combination():
    rng = random.Random(1)
    assert {shapes.random_shape(rng) for _ in range(2000)} == {
        shape for shape in EVERY if shape.colour in shapes.COLOURS
    }


def test_fresh_pictures_vary_in_size_and_aspect():
    pictures = [picture for picture, _ in one_shape_pictures(200, seed=1)]
    assert len({picture.size for picture in pictures}) > 50
    assert {96 <= max(picture.size) <= 320 for picture in pictures} == {True}
    assert max(max(p.size) / min(p.size) for p in pictures) < 1.62


@pytest.mark.embedded
@pytest.mark.parametrize("quant", ["f16", "int4"])
def test_the_bundled_model_sees_what_is_drawn(quant):
    model = _server(quant)
    pictures = list(one_shape_pictures(100, seed=20))
    wrong = [
        (shape, answer)
        for picture, shape in pictures
        if not shapes.names(shape, answer := _describe(model, picture))
    ]
    assert len(wrong) <= 5, wrong


def _server(quant):
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(resources.bundled(f"tiny-llava-{quant}.gguf"))
    parameters.mmproj.path = str(resources.bundled("tiny-llava-mmproj-f16.gguf"))
    parameters.n_ctx = 1024
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = False
    parameters.cache_ram_mib = 0
    parameters.use_jinja = True
    return xllamacpp.Server(parameters)


def _describe(model, picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "text", "text": "Describe this image"},
    ]
    answer = model.handle_chat_completions(
        {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 40}
    )
    return answer["choices"][0]["message"]["content"]
