"""Manifests: what an Ollama model is made of, as the daemon or a registry writes it down.

Nothing in them is trusted: they are read up to a limit, and a digest or a size that is none makes
the manifest a broken one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST = 4 << 20
"""Bytes. A manifest of two GGUF files has 700, one of a model in thousands of tensors a million."""
MODEL = "application/vnd.ollama.image.model"
PROJECTOR = "application/vnd.ollama.image.projector"
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_DEPTH = 4
"""Folders below `manifests/`: host, namespace, model, tag."""
_MOST_LAYERS = 100_000


@dataclass(frozen=True)
class Layer:
    """One blob of a model. `sha256` in hex digits, `size` in bytes."""

    media_type: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What one name stands for."""

    name: str
    """As the daemon lists it, with its tag."""
    path: Path | None
    digest: str
    """sha256 of the manifest itself, which `/api/tags` prints."""
    layers: tuple[Layer, ...]
    config: Layer | None = None
    problem: str | None = None
    """Why it cannot be used; its layers are then none."""
    modified_ns: int = 0

    @property
    def blobs(self) -> tuple[Layer, ...]:
        """All blobs that it needs: layers and config."""
        return (*self.layers, *((self.config,) if self.config else ()))

    def files(self) -> frozenset[str]:
        """Return the sha256 of the weight files among its layers."""
        return frozenset(x.sha256 for x in self.layers if x.media_type in {MODEL, PROJECTOR})


def parse(text: bytes, name: str, path: Path | None = None, modified_ns: int = 0) -> Manifest:
    """Return the manifest that `text` is; one that cannot be used says so in `problem`."""
    digest = hashlib.sha256(text).hexdigest()
    try:
        layers, config = _layers(text)
    except ValueError as exc:
        problem = str(exc) or "it is no manifest"
        return Manifest(name, path, digest, (), problem=problem, modified_ns=modified_ns)
    return Manifest(name, path, digest, layers, config, modified_ns=modified_ns)


def read(path: Path, name: str) -> Manifest:
    """Return the manifest in a file; one that cannot be read says so in `problem`."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        modified_ns = path.stat().st_mtime_ns
    except OSError as exc:
        return Manifest(name, path, "", (), problem=(exc.strerror or "it is no file").lower())
    return parse(text, name, path, modified_ns)


def below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and the path of every manifest in a `manifests/` folder, sorted.

    Raises:
        OSError: the folder is there, but cannot be read.
    """
    for path in sorted(_files(folder, _DEPTH)):
        yield display_name(*path.relative_to(folder).parts), path


def display_name(host: str, namespace: str, model: str, tag: str) -> str:
    """Return a model's name as the daemon lists it: what is default is left out."""
    if host != "registry.ollama.ai":
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == "library" else f"{namespace}/{model}:{tag}"


def _files(folder: Path, depth: int) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if depth > 1:
            yield from _files(entry, depth - 1)
        elif entry.is_file():
            yield entry


def _layers(text: bytes) -> tuple[tuple[Layer, ...], Layer | None]:
    if not text:
        raise ValueError("it is empty")
    if len(text) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ValueError("it is not JSON") from exc
    layers = value.get("layers") if isinstance(value, dict) else None
    if not isinstance(layers, list) or len(layers) > _MOST_LAYERS:
        raise ValueError("it has no layers")
    config = value.get("config")
    # A daemon writes an empty config for a model that has none.
    has_config = isinstance(config, dict) and config.get("digest")
    return tuple(map(_layer, layers)), _layer(config) if has_config else None


def _layer(value: Any) -> Layer:
    if not isinstance(value, dict):
        raise ValueError("a layer of it is none")  # noqa: TRY004 - one kind for all that is wrong
    digest, size = value.get("digest"), value.get("size")
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise ValueError("a layer of it has no digest")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError("a layer of it has no size")
    return Layer(str(value.get("mediaType", "")), match[1].lower(), size)
