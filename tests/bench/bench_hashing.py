"""Two files of equal size hashed at once, as `verify` does, against one after the other."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from llava_ollama.progress import SILENT
from llava_ollama.store import Store
from llava_ollama.verify import hash_blobs
from llava_ollama.weights.hashing import hash_file
from tests.bench import Figure, compare

SIZE = 500_000_000
ROUNDS = 9
BAR = 1 / 1.7


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.blobs_folder.mkdir()
        digests = [_blob(store) for _ in range(2)]

        def ours() -> None:
            found = hash_blobs(store, digests, SILENT)
            assert [found[digest].sha256 for digest in digests] == digests

        def theirs() -> None:
            assert [hash_file(store.blob(d), SILENT)[0] for d in digests] == digests

        ours()
        theirs()
        ratio, _ = compare(ours, theirs, rounds=ROUNDS)
    return [Figure("two equal files hashed at once", "one after the other", ratio, BAR, ROUNDS)]


def _blob(store: Store) -> str:
    path = store.blobs_folder / "new"
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(SIZE // 1_000_000):
            block = os.urandom(1_000_000)
            digest.update(block)
            file.write(block)
    path.rename(store.blob(digest.hexdigest()))
    return digest.hexdigest()
