"""Small pictures of a run: what they show, and that a store that fails fails alone."""

from __future__ import annotations

import hashlib
import io
import threading

import numpy as np
import pytest
from PIL import Image

from llava_ollama.batch.thumbnails import THUMBNAILS, Thumbnails, thumbnail
from llava_ollama.images import prepare
from llava_ollama.images.small import LONGEST

RED = (220, 30, 30)


@pytest.mark.parametrize("size", [(900, 600), (600, 900), (80, 80), (3000, 7), (1, 1)])
@pytest.mark.parametrize("decode", ["exact", "native"])
def test_a_thumbnail_has_the_pictures_aspect_and_none_of_its_padding(size, decode):
    prepared = prepare(Image.new("RGB", size, RED), 336, decode=decode)
    small = Image.open(io.BytesIO(thumbnail(prepared)))
    assert small.format == "JPEG"
    assert max(small.size) <= LONGEST
    assert abs(small.width / small.height / (size[0] / size[1]) - 1) < 0.05 or min(small.size) == 1
    if min(small.size) > 1:
        pixels = np.asarray(small).astype(int)
        assert abs(pixels - RED).max() < 40


def digest(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_threads_share_a_store_and_what_they_put_is_there_when_it_is_opened_again(tmp_path):
    def put(begin):
        for number in range(begin, begin + 100):
            store.put(digest(number), b"%d" % number)

    with Thumbnails(tmp_path) as store:
        threads = [threading.Thread(target=put, args=(100 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.get(digest(399)) == b"399"
    with Thumbnails(tmp_path) as again:
        assert [again.get(digest(n)) for n in range(400)] == [b"%d" % n for n in range(400)]
        assert again.get(digest(-1)) is None


def test_asking_makes_no_file(tmp_path):
    with Thumbnails(tmp_path) as store:
        assert store.get(digest(1)) is None
    assert not (tmp_path / THUMBNAILS).exists()


@pytest.mark.parametrize("damage", ["bytes", "folder"])
def test_a_store_that_cannot_be_used_costs_the_run_nothing(tmp_path, damage):
    place = tmp_path / THUMBNAILS
    if damage == "bytes":
        place.write_bytes(b"no database" * 1000)
    else:
        place.mkdir()
    with Thumbnails(tmp_path) as store:
        for number in range(200):
            store.put(digest(number), b"jpeg")
        assert store.get(digest(1)) is None
        assert not store.usable
