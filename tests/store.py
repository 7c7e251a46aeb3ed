"""A daemon's models folder as it stands on disk: what is under a name, and what nobody needs."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DETECTED = 200
"""Bytes: 0.34 leaves two small layers of its own, 96 and 153 bytes, from the template that it
detects itself; it clears them at a start that is an hour or more later."""


@dataclass(frozen=True)
class Store:
    """The folder `OLLAMA_MODELS`."""

    folder: Path

    def manifest(self, name: str) -> Path:
        return self.folder / "manifests" / "registry.ollama.ai" / "library" / name / "latest"

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Return what is under each name; an empty manifest is an empty dictionary."""
        root = self.manifest("x").parent.parent
        found = sorted(root.glob("*/*")) if root.is_dir() else []
        return {path.parent.name: json.loads(path.read_text() or "{}") for path in found}

    def blobs(self) -> dict[str, int]:
        """Return size by file name; what the daemon removes meanwhile is left out."""
        found = {}
        for path in (self.folder / "blobs").iterdir():
            with suppress(FileNotFoundError):
                found[path.name] = path.stat().st_size
        return found

    def orphans(self) -> dict[str, int]:
        """Return the blobs that no manifest needs, but for the daemon's own small ones."""
        needed = {
            layer["digest"].replace(":", "-")
            for manifest in self.manifests().values()
            for layer in (*manifest.get("layers", ()), manifest.get("config", {"digest": ""}))
        }
        return {
            name: size
            for name, size in self.blobs().items()
            if name not in needed and size > DETECTED
        }

    def forget_orphans(self) -> None:
        """Remove what the daemon itself would clear at a later start."""
        for name in self.orphans():
            (self.folder / "blobs" / name).unlink()
