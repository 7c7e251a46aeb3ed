"""Write a copy of a weight file with its metadata mended; no byte of a tensor changes.

The published LLaVA-Llama-3 files are from before the keys that today's engines ask for. What is
missing is decided in `planned`, one small function per kind of file; how it is written is below.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llava_ollama import resources
from llava_ollama.errors import GGUFError, NotEnoughSpace
from llava_ollama.gguf import checks
from llava_ollama.gguf.layout import BOOL, SCALARS, STRING, U32, U64, UINT32
from llava_ollama.gguf.reader import Header, read
from llava_ollama.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 8 << 20
_COUNTS = 24
"""Bytes before the first key: magic, version, number of tensors, number of keys."""


@dataclass(frozen=True)
class Mended:
    """What was done; with no `changes` the file is a plain copy of its source."""

    path: Path
    changes: tuple[str, ...]
    sha256: str
    """Of the written file."""


@dataclass(frozen=True)
class Change:
    """A key that gets a value, new or in place of its old one, and the sentence that says so."""

    key: str
    value: str | int | bool
    reason: str


def mend(
    source: Path, out: Path, *, overwrite: bool = False, reporter: Reporter = SILENT
) -> Mended:
    """Write `source` with its metadata mended to `out`, whole or not at all.

    Raises:
        GGUFError: `source` is damaged or cannot be judged, or `out` may not be written.
        NotEnoughSpace: the disk cannot hold the copy.
    """
    header = read(source)
    changes = planned(header)
    with _translated(header, out):
        place = Path(os.path.realpath(out))  # the file a symlink points to, not the symlink
        _refuse(header, out, place, overwrite=overwrite)
        with source.open("rb") as file, _whole(place) as target:
            digest = _copy(header, changes, (file, target), reporter)
    return Mended(out, tuple(_sentence(header, change) for change in changes), digest)


def planned(header: Header) -> list[Change]:
    """Return what `mend` would change in this file.

    Raises:
        GGUFError: something is missing, and what belongs there cannot be told.
    """
    if checks.is_projector(header):
        wanted = _projector(header)
    elif checks.has_llama3_vocabulary(header):
        wanted = _llama3(header)
    else:
        wanted = []
    return [change for change in wanted if header.metadata.get(change.key) != change.value]


def _projector(header: Header) -> list[Change]:
    if checks.projector_type(header) is not None:
        return []
    if not checks.is_llava(header):
        raise GGUFError(
            f"`{header.path}` names no projector type, and its tensors are not those of LLaVA",
            hint="Convert it again with llama.cpp's convert_hf_to_gguf.py --mmproj",
        )
    return [Change("clip.projector_type", "mlp", "llama.cpp loads no projector without it")]


def _llama3(header: Header) -> list[Change]:
    ends = checks.token_ids(header, "<|eot_id|>")
    if len(ends) > 1:
        raise GGUFError(
            f"`{header.path}` has the token `<|eot_id|>` {len(ends)} times, as {ends}",
            hint="Convert the model again from its original",
        )
    end = ends[0]
    changes = [
        Change("tokenizer.ggml.eos_token_id", end, "a turn ends with `<|eot_id|>`"),
        Change("tokenizer.ggml.eot_token_id", end, "a turn ends with `<|eot_id|>`"),
    ]
    bpe = header.text("tokenizer.ggml.model") == "gpt2"
    if bpe and header.text("tokenizer.ggml.pre") in (None, "", "default"):
        reason = "text is split as in training"
        changes.insert(0, Change("tokenizer.ggml.pre", "llama-bpe", reason))
    if "tokenizer.ggml.add_bos_token" not in header.metadata:
        reason = "a prompt begins with `<|begin_of_text|>`"
        changes.append(Change("tokenizer.ggml.add_bos_token", True, reason))
    if header.text("tokenizer.chat_template") is None:
        reason = "llama-server falls back to ChatML without it"
        changes.append(Change("tokenizer.chat_template", chat_template(), reason))
    return changes


def chat_template() -> str:
    """Return the Llama-3-instruct chat template as Meta published it, in Jinja."""
    text = resources.find("templates/llama3-instruct.jinja").read_text(encoding="utf-8")
    return text.removesuffix("\n")


def _sentence(header: Header, change: Change) -> str:
    if change.key.endswith("chat_template"):
        return f"added `{change.key}`, the Llama-3-instruct template: {change.reason}"
    value = str(change.value).lower() if isinstance(change.value, bool) else change.value
    if change.key in header.metadata:
        old = header.metadata[change.key]
        return f"set `{change.key}` to `{value}`, it was `{old}`: {change.reason}"
    return f"added `{change.key}` = `{value}`: {change.reason}"


def _refuse(header: Header, out: Path, place: Path, *, overwrite: bool) -> None:
    if out.is_dir():
        raise GGUFError(f"`{out}` is a folder", hint="Name the file to write")
    # What is renamed onto a device or a pipe takes its place: /dev/stdout would be gone.
    if out.exists() and not out.is_file():
        raise GGUFError(f"`{out}` is not a regular file", hint="Name the file to write")
    folder = place.parent if out.is_symlink() else out.parent
    if not folder.is_dir():
        raise GGUFError(f"the folder `{folder}` does not exist", hint=f"mkdir -p '{folder}'")
    if out.exists() and out.samefile(header.path):
        raise GGUFError(f"`{out}` is the source itself", hint="Name another file to write")
    if os.path.lexists(out) and not overwrite:
        raise GGUFError(f"`{out}` exists already", hint="Add --force to replace it")
    free = shutil.disk_usage(folder).free
    if header.size > free:
        raise _no_space(out, header.size, free)


def _no_space(out: Path, needed: int, free: int | None = None) -> NotEnoughSpace:
    have = "is full" if free is None else f"has {free:,} free"
    return NotEnoughSpace(
        f"`{out}` needs {needed:,} bytes, the disk {have}",
        hint="Make room, or name a file on another disk",
    )


@contextmanager
def _translated(header: Header, out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(out, header.size) from exc
        raise GGUFError(
            f"`{header.path}` cannot be copied to `{out}`: {exc.strerror}",
            hint="Name a place where files can be written",
        ) from exc


@contextmanager
def _whole(out: Path) -> Iterator[BinaryIO]:
    """Open a file beside `out` that takes its name once all of it is on the disk."""
    # Not `tempfile`: its files are private, and a daemon of another user must read this one.
    part = out.with_name(f".mend-{secrets.token_hex(6)}.part")
    try:
        with part.open("xb") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _copy(
    header: Header, changes: list[Change], files: tuple[BinaryIO, BinaryIO], reporter: Reporter
) -> str:
    source, target = files
    old = source.read(header.data_offset)
    start = _new_start(header, old, changes) if changes else old
    source.seek(header.data_offset)
    digest = hashlib.sha256(start)
    target.write(start)
    left = max(header.size - header.data_offset, 0)
    reporter.started(f"mend {header.path.name}", left)
    while data := source.read(min(_BLOCK, left)):
        digest.update(data)
        target.write(data)
        left -= len(data)
        reporter.advanced(f"mend {header.path.name}", len(data))
    if left:
        raise GGUFError(f"`{header.path}` changed while it was being read", hint="Try again")
    reporter.finished(f"mend {header.path.name}")
    return digest.hexdigest()


def _new_start(header: Header, old: bytes, changes: list[Change]) -> bytes:
    """Return all that stands before the tensors' data; untouched keys keep place and bytes."""
    values = {change.key: _encoded(change) for change in changes}
    keys = [values.pop(key, old[start:end]) for key, (start, end) in header.spans.items()]
    keys += values.values()
    start = old[: _COUNTS - U64.size] + U64.pack(len(keys)) + b"".join(keys)
    start += old[header.infos_offset : header.infos_end]
    return start + bytes(-len(start) % header.alignment)


def _encoded(change: Change) -> bytes:
    value = change.value
    if isinstance(value, str):
        kind, data = STRING, _string(value)
    elif isinstance(value, bool):
        kind, data = BOOL, SCALARS[BOOL].pack(value)
    else:
        kind, data = UINT32, SCALARS[UINT32].pack(value)
    return _string(change.key) + U32.pack(kind) + data


def _string(text: str) -> bytes:
    data = text.encode()
    return U64.pack(len(data)) + data
