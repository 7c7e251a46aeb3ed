"""What `decode="fast"` costs in pixels and in answers, and what preparing costs in memory."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from llava_ollama import Llava
from llava_ollama.images import prepare
from llava_ollama.tiny import shapes
from tests.bench.bench_pictures import peak
from tests.photos import jpeg, photo, shape_photo

PICTURES = 300


@pytest.mark.embedded
def test_fast_pictures_get_the_answers_of_exact_ones():
    same = right = reduced = 0
    with Llava.embedded("tiny-llava", threads=1) as llava:
        vision = llava.vision()
        for seed in range(PICTURES):
            data, shape = shape_photo(seed)
            both = prepare(data, vision), prepare(data, vision, decode="fast")
            answers = [llava.ask(one, options={"temperature": 0}).text for one in both]
            reduced += any("decoded at" in step for step in both[1].steps)
            same += answers[0] == answers[1]
            right += shapes.names(shape, answers[0])
    assert same >= 0.99 * PICTURES
    assert right >= 0.95 * PICTURES
    assert reduced >= 0.7 * PICTURES


@pytest.mark.parametrize("side", [112, 336])
@pytest.mark.parametrize("longest", [100, 500, 671, 672, 1344, 1345, 3000])
def test_a_reduced_picture_keeps_twice_what_is_seen(side, longest):
    data = jpeg(Image.new("RGB", (longest, longest * 3 // 4), "red"))
    steps = prepare(data, side, decode="fast").steps
    decoded = [int(step.split()[2]) for step in steps if step.startswith("decoded at")]
    assert bool(decoded) == (longest >= 4 * side)
    assert all(2 * side <= width <= longest // 2 + 1 for width in decoded)


def test_other_files_and_small_ones_are_decoded_whole():
    picture = photo(900, 700)
    file = io.BytesIO()
    picture.save(file, "PNG")
    for source in (picture, file.getvalue(), jpeg(picture.resize((300, 200)))):
        assert prepare(source, 112, decode="fast") == prepare(source, 112)


def test_an_image_of_the_caller_s_stays_as_large_as_it_was():
    opened = Image.open(io.BytesIO(jpeg(photo(900, 700))))
    assert prepare(opened, 112, decode="fast") == prepare(opened, 112)
    assert opened.size == (900, 700)


@pytest.mark.parametrize("orientation", [1, 6])
def test_preparing_takes_no_more_memory_than_pillow_itself(tmp_path, orientation):
    path = tmp_path / "large.jpg"
    path.write_bytes(jpeg(photo(4000, 3000), orientation=orientation))
    assert peak("prepare", str(path)) <= 1.3 * peak("bare", str(path))
