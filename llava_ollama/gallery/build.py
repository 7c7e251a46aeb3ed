"""The folder: written beside the old one, and put in its place when it is whole."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from llava_ollama import locks, resources
from llava_ollama.batch.thumbnails import Thumbnails, thumbnail
from llava_ollama.batch.work import Row
from llava_ollama.errors import ImageError, LlavaOllamaError, UsageProblem
from llava_ollama.gallery import scripts
from llava_ollama.gallery.index import Index
from llava_ollama.images import CLIP_L_SIDE, SUFFIXES, prepare, sources
from llava_ollama.progress import SILENT, Reporter

PAGE = "index.html"
"""What a browser opens."""
_FILES = (PAGE, "gallery.css", "gallery.js")
_INDEX = "data/index.js"
_BEGINS = b"gallery.index("
_SUFFIXES = {".html", ".css", ".js"}
"""What a gallery consists of."""
_Shown: TypeAlias = "tuple[list[Row], bytes | None]"
"""All answers about a picture, and its small one."""
_HALVES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Gallery:
    """A folder that was written, and how many pictures it shows."""

    folder: Path
    pictures: int

    @property
    def page(self) -> Path:
        """What a browser opens."""
        return self.folder / PAGE


def build(  # noqa: PLR0913 - a page has its parts
    rows: Iterable[Row],
    thumbnails: Thumbnails,
    target: Path,
    *,
    title: str = "Pictures",
    base: Path | None = None,
    total: int | None = None,
    reporter: Reporter = SILENT,
) -> Gallery:
    """Write the gallery of `rows`, in which those of a picture follow each other, to `target`.

    An older gallery there is replaced once the new one is whole. Pictures are never copied; a
    small one that is missing is made from the original, if that is still the same. To those below
    `base` leads a relative path, so that this folder may be moved; by default it is the one that
    the gallery is in.

    Raises:
        UsageProblem: what is at `target` is no gallery, or somebody else is writing one there.
        LlavaOllamaError: the folder cannot be written.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 - links in it are the user's own
    _check(target)
    top = os.path.abspath(base or target.parent)  # noqa: PTH100 - likewise
    place = {"title": title, "base": top, "up": f"{os.path.relpath(top, target)}/"}
    with _beside(target) as part:
        shown = _told(_grouped(rows, thumbnails), reporter, total)
        pictures = _write(shown, part, place)
    return Gallery(target, pictures)


def _check(target: Path) -> None:
    """Refuse to replace what is no gallery, or one in which somebody keeps other files."""
    if not target.exists() or (target.is_dir() and _is_ours(target)):
        return
    if not target.is_dir() or any(target.iterdir()):
        raise UsageProblem(
            f"`{target}` is there already, and no gallery", hint="Choose another folder with `-o`"
        )


def _is_ours(folder: Path) -> bool:
    try:
        with (folder / _INDEX).open("rb") as file:
            begun = file.read(len(_BEGINS)) == _BEGINS
    except OSError:
        return False
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return begun and all(path.suffix in _SUFFIXES for path in files)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `target` when all went well."""
    part, old, lock = (target.with_name(f".{target.name}.{end}") for end in ("part", "old", "lock"))
    with _writing(target), locks.if_free(lock) as free:
        if not free:
            raise UsageProblem(
                f"another process is writing the gallery `{target}`", hint="Wait until it is done"
            )
        # What killed ones have left: without a gallery, the old one is it.
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            if target.exists():
                target.rename(old)
            part.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            if old.exists() and not target.exists():
                old.rename(target)
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise LlavaOllamaError(
            f"the gallery `{target}` cannot be written: {exc.strerror}",
            hint="Free space, mend its permissions or choose another folder with `-o`",
        ) from exc


def _grouped(rows: Iterable[Row], thumbnails: Thumbnails) -> Iterator[_Shown]:
    """Yield all answers about a picture, with its small one."""
    for _, group in itertools.groupby(rows, key=lambda row: row.item):
        answers = list(group)
        yield answers, _thumbnail(answers[0], thumbnails)


def _write(
    pictures: Iterable[_Shown],
    folder: Path,
    place: Mapping[str, str],
) -> int:
    for name in _FILES:
        shutil.copyfile(resources.find(f"templates/gallery/{name}"), folder / name)
    index = Index()
    data = scripts.Shards(folder, "pictures", scripts.PICTURES, scripts.pictures_file)
    small = scripts.Shards(folder, "thumbnails", scripts.THUMBNAILS, scripts.thumbnails_file)
    for answers, jpeg in pictures:
        small.add(scripts.jpeg(jpeg))
        data.add(_picture(answers, index, small=jpeg is not None))
    small.flush()
    data.flush()
    (folder / "data").mkdir(exist_ok=True)
    document = index.document(**{key: _text(value) for key, value in place.items()})
    (folder / _INDEX).write_bytes(scripts.script("index", document))
    return index.pictures


def _told(pictures: Iterable[_Shown], reporter: Reporter, total: int | None) -> Iterator[_Shown]:
    """Yield the pictures, and tell how many there were so far."""
    task = "gallery"
    reporter.counting(task, total)
    for picture in pictures:
        yield picture
        reporter.advanced(task, 1)
    reporter.finished(task)


def _picture(rows: Sequence[Row], index: Index, *, small: bool) -> list[Any]:
    first = rows[0]
    name = _text(first.path)
    size = [first.width or 0, first.height or 0]
    # Of a picture within a file of requests only the user's own name for it says which it is.
    custom = "" if _is_named_so(first.path) else _text(first.custom_id)
    original = _original(first.path, name)
    return [name, custom, original, *size, int(small), index.answers_of(rows)]


def _original(path: str, name: str) -> int | str:
    """Return 0 where there is no picture file, 1 where its name is its address, or that."""
    if not _is_named_so(path):
        return 0
    if os.sep == "/" and path == name and path.startswith("/"):
        return 1
    try:
        return Path(os.path.abspath(path)).as_uri()  # noqa: PTH100 - links in it are the user's own
    except UnicodeEncodeError:  # no path: JSON can spell half of a surrogate pair
        return 0


def _is_named_so(path: str) -> bool:
    """Return whether it is a picture's name, and not that of a file of requests."""
    return os.path.splitext(path)[1].lower() in SUFFIXES  # noqa: PTH122 - a million times


def _text(path: str) -> str:
    """Return a path as people may read it: bytes that are not UTF-8 are replaced."""
    return _HALVES.sub("\N{REPLACEMENT CHARACTER}", path)


def _thumbnail(row: Row, thumbnails: Thumbnails) -> bytes | None:
    if row.sha256 is None:
        return None
    return thumbnails.get(row.sha256) or _made(row, row.sha256, thumbnails)


def _made(row: Row, sha256: str, thumbnails: Thumbnails) -> bytes | None:
    """Make a small picture from the original, unless that is gone or another one by now."""
    if not _is_named_so(row.path):
        return None
    try:
        data, _ = sources.read(row.path)
        if not isinstance(data, bytes) or hashlib.sha256(data).hexdigest() != sha256:
            return None
        jpeg = thumbnail(prepare(data, CLIP_L_SIDE, decode="fast"))
    except ImageError:
        return None
    thumbnails.put(sha256, jpeg)
    return jpeg
