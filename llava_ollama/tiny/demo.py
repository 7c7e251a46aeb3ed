"""The demo's pictures, and what a model says of them."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llava_ollama import locks, swap
from llava_ollama.client import DESCRIBE, Llava
from llava_ollama.daemon import Daemon, full_name
from llava_ollama.errors import UsageProblem
from llava_ollama.records import Records
from llava_ollama.tiny.shapes import Shape, draw, names, photo

PREFIX = f"{swap.PREFIX}demo-"
"""What the names begin with that a demo gives the tiny model."""
SHOWN = (
    Shape("red", "circle", "white"),
    Shape("blue", "square", "black"),
    Shape("yellow", "star", "grey"),
    Shape("purple", "triangle", "white"),
)
PHOTO = Shape("green", "triangle", "grey")


@dataclass(frozen=True)
class Described:
    """A picture, what the model said of it, and whether it named colour and shape."""

    picture: Path
    answer: str
    right: bool


def check(folder: Path) -> None:
    """Refuse a folder where a file of the user's has a picture's name; nothing is written.

    Raises:
        UsageProblem: there is such a file.
    """
    for path, _, data in _drawn(folder):
        with _using(path):
            if _is_other(path, data):
                raise UsageProblem(
                    f"`{path}` is there already, and is not the demo's picture",
                    hint="Choose another folder with `--folder`",
                )


def describe(llava: Llava, folder: Path) -> Iterator[Described]:
    """Draw the demo's pictures into `folder` and yield the model's answer to each.

    Raises:
        UsageProblem: another file has a picture's name, or nothing can be written there.
    """
    check(folder)
    for path, shape, data in _drawn(folder):
        with _using(path):
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, data)
        text = llava.ask(path, DESCRIBE, options={"temperature": 0}).text.strip()
        yield Described(path, text, names(shape, text))


def _drawn(folder: Path) -> Iterator[tuple[Path, Shape, bytes]]:
    for seed, shape in enumerate(SHOWN):
        file = io.BytesIO()
        draw(shape, seed=seed).save(file, "png")
        yield folder / f"{shape.colour}-{shape.shape}.png", shape, file.getvalue()
    # As its pixels are stored it would be a star to the model: an engine does not turn them.
    yield folder / "green-triangle-sideways.jpg", PHOTO, photo(PHOTO, seed=3)


def _is_other(path: Path, data: bytes) -> bool:
    if not os.path.lexists(path):
        return False
    # A pipe would be waited for, and a huge file be read.
    return not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data


def _write(path: Path, data: bytes) -> None:
    if os.path.lexists(path):  # and equal, as `check` has found
        return
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise
    except BaseException:
        path.unlink(missing_ok=True)  # half a picture would be refused the next time
        raise


@contextmanager
def _using(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise UsageProblem(
            f"`{path}` cannot be written: {exc.strerror or exc}",
            hint="Choose another folder with `--folder`",
        ) from exc


def clear(daemon: Daemon, records: Records) -> None:
    """Remove the models that killed demos have left on this daemon."""
    for record in records.all("installed"):
        name = record.get("name", "")
        if record.get("host") != daemon.key or not name.startswith(PREFIX):
            continue
        lock = records.lock_file("installed", daemon.key, full_name(name))
        with locks.if_free(lock) as free:
            if free:
                swap.remove(daemon, name, records)
                records.drop("installed", daemon.key, full_name(name))
                _forget(lock)


@contextmanager
def reserved(daemon: Daemon, records: Records) -> Iterator[str]:
    """Yield a name that is written down first, and that is removed again, also after a kill."""
    name = f"{PREFIX}{secrets.token_hex(4)}"
    key = daemon.key, full_name(name)
    lock = records.lock_file("installed", *key)
    with locks.locked(lock):
        records.put("installed", *key, record={"host": daemon.key, "name": name})
        try:
            yield name
        finally:
            swap.remove(daemon, name, records)
            records.drop("installed", *key)
            _forget(lock)


def _forget(lock: Path) -> None:
    with suppress(OSError):  # Windows keeps a file that is open
        lock.unlink()
