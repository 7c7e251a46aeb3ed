"""What the model sees is what it saw in training, bit for bit: the recorded pictures say so."""

from __future__ import annotations

import hashlib
import io
import json

from PIL import Image

from llava_ollama.images import prepare
from tests.golden.pictures import COUNT, SIDES, all_drawn
from tests.golden.record import RECORDED

GOLDEN: dict[str, list[str]] = json.loads(RECORDED.read_text(encoding="utf-8"))


def digest(source, *, as_trained):
    """Return the sha256 that the script records: of the pixels at one size, then at the other."""
    digest = hashlib.sha256()
    for side in SIDES:
        prepared = prepare(source, side, as_trained=as_trained)
        picture = Image.open(io.BytesIO(prepared.data))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (side, side))
        digest.update(picture.tobytes())
    return digest.hexdigest()


def test_every_picture_has_the_bits_of_training():
    assert len(GOLDEN) == COUNT
    wrong = []
    for drawn in all_drawn():
        exact, trained = GOLDEN[drawn.name]
        if digest(drawn.stored, as_trained=False) != exact:
            wrong.append(drawn.name)
        if digest(drawn.stored, as_trained=True) != trained:
            wrong.append(f"{drawn.name}, as trained")
    assert wrong == []


def test_the_recorded_pictures_tell_both_ways_apart():
    differ = sum(exact != trained for exact, trained in GOLDEN.values())
    assert 100 < differ < COUNT
