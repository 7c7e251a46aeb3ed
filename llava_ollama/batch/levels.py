"""Remembers, from run to run, how many questions at once were best for a host and a model."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from llava_ollama import whole

_LARGEST = 1000
"""Bytes of a file, and the highest level that is believed."""


class Levels:
    """The levels in the state folder, each in a small file; what is lost is found anew."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "levels"

    def get(self, host: str, digest: str | None) -> int:
        """Return the level to begin with, 1 where none is known."""
        try:
            with self._path(host, digest).open("rb") as file:
                level = json.loads(file.read(_LARGEST))["level"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 1
        return level if isinstance(level, int) and 0 < level <= _LARGEST else 1

    def put(self, host: str, digest: str | None, level: int) -> None:
        """Remember a level; a state folder that cannot be written is no reason to fail."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            known = {"host": host, "model_digest": digest, "level": level}
            with whole.replacing(self._path(host, digest)) as file:
                file.write(json.dumps(known).encode())

    def _path(self, host: str, digest: str | None) -> Path:
        key = hashlib.sha256(f"{host}\n{digest}".encode()).hexdigest()[:24]
        return self._folder / f"{key}.json"
