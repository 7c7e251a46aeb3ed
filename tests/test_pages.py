"""The pages' links lead somewhere, and what is shown of pictures is what a model says and sees."""

from __future__ import annotations

import os
import re

import pytest

from llava_ollama import Llava
from llava_ollama.images import PreparedPicture
from llava_ollama.tiny import shapes
from tests import pages, readme

PAGES = [readme.README, *sorted(pages.DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_somewhere(page):
    for link in re.findall(r"(?:\]\(|src=\")([^)\"]+)", page.read_text(encoding="utf-8")):
        path, _, part = link.partition("#")
        if "://" not in link:
            there = page.parent / path if path else page
            assert there.exists(), link
            assert not part or part in headings(there), link


def headings(page):
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {heading.lower().replace(" ", "-") for heading in found}


def test_every_page_is_linked_from_the_readme():
    said = readme.README.read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in said


def test_the_page_and_its_pictures_are_fresh():
    assert pages.check() == []


@pytest.mark.embedded
def test_the_picture_of_the_gallery_is_fresh():
    picture = pages.gallery()
    if picture is None:
        assert not os.environ.get("CI"), "CI has no Chromium: `.ci/run` installs it"
        pytest.skip("no Chromium on this machine: the picture of the gallery is not compared")
    assert pages.looks_like(picture, pages.GALLERY.read_bytes()), "run `make pages`"
    assert not pages.looks_like(picture, pages.SEEN.read_bytes())


@pytest.mark.embedded
def test_the_model_says_of_the_pair_what_stands_under_it():
    said = readme.README.read_text(encoding="utf-8")
    raw = PreparedPicture(pages.SENT.read_bytes(), 480, 360)  # goes out as it is
    with Llava.embedded("tiny-llava", threads=1) as llava:
        answers = [llava.ask(p, options={"temperature": 0}).text for p in (raw, pages.SENT)]
    assert f'| "{answers[0]}" | "{answers[1]}" |' in said
    assert not shapes.names(pages.SHAPE, answers[0])
    assert answers[1] == shapes.caption(pages.SHAPE)
