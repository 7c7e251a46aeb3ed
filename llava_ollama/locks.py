"""One writer at a time, over processes. The owner of filelock, which comes with huggingface_hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llava_ollama.errors import LlavaOllamaError

if TYPE_CHECKING:
    from filelock import BaseFileLock


@contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path`; call `waiting` once if another process has it, then wait.

    Raises:
        LlavaOllamaError: the lock file cannot be made.
    """
    import filelock

    lock = filelock.FileLock(path, thread_local=False)  # a thread may release another one's
    if not _taken(lock, path):
        if waiting is not None:
            waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` if nobody else does; yield whether that is so.

    Raises:
        LlavaOllamaError: the lock file cannot be made.
    """
    import filelock

    lock = filelock.FileLock(path)
    if not _taken(lock, path):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _taken(lock: BaseFileLock, path: Path) -> bool:
    """Take the lock without waiting; return whether that worked."""
    import filelock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return False
    except OSError as exc:
        raise LlavaOllamaError(
            f"the lock file `{path}` cannot be made: {exc.strerror}",
            hint="Mend its permissions or free space, or set `LLAVA_OLLAMA_STATE` to another",
        ) from exc
    return True
