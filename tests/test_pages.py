"""The page about pictures is fresh, and what is said of its pair is what the model says."""

from __future__ import annotations

import pytest

from llava_ollama import Llava
from llava_ollama.images import PreparedPicture
from llava_ollama.tiny import shapes
from tests import pages, readme


def test_the_page_and_its_pictures_are_fresh():
    assert pages.check() == []


@pytest.mark.embedded
def test_the_model_says_of_the_pair_what_stands_under_it():
    said = readme.README.read_text(encoding="utf-8")
    raw = PreparedPicture(pages.SENT.read_bytes(), 480, 360)  # goes out as it is
    with Llava.embedded("tiny-llava", threads=1) as llava:
        answers = [llava.ask(p, options={"temperature": 0}).text for p in (raw, pages.SENT)]
    assert f'| "{answers[0]}" | "{answers[1]}" |' in said
    assert not shapes.names(pages.SHAPE, answers[0])
    assert answers[1] == shapes.caption(pages.SHAPE)
