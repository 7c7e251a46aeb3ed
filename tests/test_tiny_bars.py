"""The bars of the tiny model, on a sample; `make tiny-llava` asks all of it and writes the card."""

from __future__ import annotations

import hashlib
import random
import re
from math import comb
from pathlib import Path

import pytest

from llava_ollama import catalog
from llava_ollama.resources import bundled
from tests import published
from tests.conftest import built
from tests.tiny_llava import scene, wrong
from tests.tiny_llava.asking import EMBEDDED, opened
from tests.tiny_llava.bars import BARS, Bar
from tests.tiny_llava.evaluate import NEW, OLD, asked_all
from tests.tiny_llava.files import FILES, NAMES

SAMPLE = 60
THROUGH = {OLD: 6, NEW: 30}
"""The old engine answers about one picture a second."""
CHANCE = 0.01
"""A sample fails where a model that just meets the bar would do so badly this rarely."""
CARD = bundled("CARD.md")
_ROW = re.compile(r"^\| ([\w.-]+\.gguf) \| (\d+) \| ([0-9a-f]{64}) \|$", re.MULTILINE)


def plausible(bar: Bar, right: int, asked: int) -> bool:
    assert bar.limit is not None
    share = bar.limit / 100
    worse = range(right, asked + 1) if bar.most else range(right + 1)
    chances = (comb(asked, n) * share**n * (1 - share) ** (asked - n) for n in worse)
    return sum(chances) >= CHANCE


def projector(bar: Bar, folder: Path) -> Path:
    if bar.projector == "identity":
        return bundled(NAMES.projector)
    source = bundled(NAMES.projector)
    return published.published_projector(source, folder / "short.gguf", projector_type=True)


@pytest.mark.embedded
@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.name)
def test_a_bar_is_met_in_this_process(bar: Bar, tmp_path: Path):
    with opened(EMBEDDED, bundled(NAMES.int4), projector(bar, tmp_path)) as asker:
        right, (alarms, _) = asked_all(bar, SAMPLE, asker)
    assert plausible(bar, right, SAMPLE), f"{right} of {SAMPLE}"
    assert alarms == 0


@pytest.mark.ollama
@pytest.mark.parametrize("version", THROUGH)
def test_the_bars_are_met_through_ollama(version: str):
    built(version)
    missed = {}
    with opened(version, bundled(NAMES.int4), bundled(NAMES.projector)) as asker:
        for bar in BARS:
            if bar.projector == "identity":
                right, (alarms, _) = asked_all(bar, THROUGH[version], asker)
                if alarms or not plausible(bar, right, THROUGH[version]):
                    missed[bar.name] = right, alarms
    assert not missed


def test_no_training_picture_has_a_triple_that_is_held_out():
    rng = random.Random(3)
    for _ in range(3000):
        one = scene.make(rng)
        assert not {(*kind, one.background) for kind in one.kinds} & scene.HELD_OUT
        assert all(colour != one.background for colour, _ in one.kinds)
    held = scene.make(rng, held_out=True)
    assert {(*kind, held.background) for kind in held.kinds} & scene.HELD_OUT


def test_no_template_of_training_is_of_a_family_that_is_never_trained():
    never = {wrong.TEMPLATES[name] for name in wrong.NEVER_TRAINED}
    rng = random.Random(4)
    assert not {wrong.template(rng) for _ in range(20_000)} & never


def test_a_sample_that_is_far_from_its_bar_fails():
    least, most = BARS[0], next(bar for bar in BARS if bar.most)
    assert plausible(least, 57, 60)
    assert not plausible(least, 54, 60)
    assert plausible(most, 8, 60)
    assert not plausible(most, 20, 60)


def test_the_card_names_the_files_that_are_here():
    rows = {name: (int(size), digest) for name, size, digest in _ROW.findall(CARD.read_text())}
    data = {name: bundled(name).read_bytes() for name in FILES}
    assert rows == {
        name: (len(found), hashlib.sha256(found).hexdigest()) for name, found in data.items()
    }


def test_the_catalog_pins_what_the_card_names():
    entry = catalog.load().entry("tiny-llava")
    pinned = [entry.projector, *(entry.model(quant)[1] for quant in ("int4", "f16"))]
    rows = {name: (int(size), digest) for name, size, digest in _ROW.findall(CARD.read_text())}
    assert {one.name: (one.size, one.sha256) for one in pinned} == rows


def test_the_int4_pair_is_small():
    pair = bundled(NAMES.int4).stat().st_size + bundled(NAMES.projector).stat().st_size
    assert pair <= 3_400_000
