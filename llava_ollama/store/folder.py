"""The store: `blobs/` and `manifests/` below one models folder, and how a blob gets in.

A blob appears whole or not at all: under a name of ours that the daemon takes for no blob, locked
while it is written, then renamed. Whoever puts the next one removes what a killed process left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llava_ollama.errors import NotEnoughSpace, StoreError
from llava_ollama.store import manifests
from llava_ollama.store.manifests import Manifest

_BLOB = re.compile(r"sha256-([0-9a-f]{64})")
UNFINISHED = "sha256-llava-ollama-"
"""What the names of our unfinished files begin with. The daemon prunes such a name at its start as
well, when it is an hour old."""


@dataclass(frozen=True)
class NoStore:
    """There is no store that could be used: why, and what would be cheaper than to upload."""

    reason: str
    hint: str
    unproven: tuple[Path, ...] = ()
    """Folders that may be the daemon's, which only `prove()` can tell as it writes into them."""


@dataclass(frozen=True)
class StoredBlob:
    """One file in `blobs/`; `sha256` is None for what has no blob's name, such as a partial."""

    path: Path
    sha256: str | None
    size: int
    modified_ns: int


@dataclass(frozen=True)
class Store:
    """A models folder that is known to be a certain daemon's."""

    folder: Path

    @property
    def blobs_folder(self) -> Path:
        """Where the blobs are."""
        return self.folder / "blobs"

    @cached_property
    def _folder_state(self) -> os.stat_result:
        return self.blobs_folder.stat()

    @property
    def uid(self) -> int:
        """The user that the daemon runs as: it made the folder."""
        return self._folder_state.st_uid

    @property
    def gid(self) -> int:
        """The group of the folder, and so of what is put there."""
        return self._folder_state.st_gid

    @property
    def blob_mode(self) -> int:
        """The permissions of a blob: those of the folder, without the right to search."""
        return self._folder_state.st_mode & 0o664 | 0o600

    @property
    def device(self) -> int:
        """The file system that it is on; hard links cannot leave one."""
        return self._folder_state.st_dev

    @property
    def writable(self) -> bool:
        """Whether this user may put blobs there that the daemon can then use as its own."""
        return self.not_writable is None

    @cached_property
    def not_writable(self) -> str | None:
        """Why nothing can be put there, in one line, or None."""
        if not hasattr(os, "geteuid"):
            return f"links into `{self.folder}` are not made on this platform"
        try:
            owner = self.uid
        except OSError as exc:
            said = (exc.strerror or type(exc).__name__).lower()
            return f"`{self.blobs_folder}` cannot be used: {said}"
        if os.geteuid() not in {0, owner}:
            # The daemon sets the times of a blob that it registers, which only its owner may.
            return f"`{self.folder}` belongs to {_user(owner)}"
        if not os.access(self.blobs_folder, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
            return f"`{self.folder}` is read-only"
        return None

    def blob(self, sha256: str) -> Path:
        """Return where the blob with this digest is, or would be."""
        return self.blobs_folder / f"sha256-{sha256}"

    def blobs(self) -> Iterator[StoredBlob]:
        """Yield every file in `blobs/`, by name, whatever it is.

        Raises:
            StoreError: the folder cannot be read.
        """
        with self.reading():
            paths = sorted(self.blobs_folder.iterdir())
        for path in paths:
            try:
                state = path.stat()
            except FileNotFoundError:
                continue  # the daemon works on meanwhile
            match = _BLOB.fullmatch(path.name)
            digest = match[1] if match else None
            yield StoredBlob(path, digest, state.st_size, state.st_mtime_ns)

    def manifests(self) -> Iterator[Manifest]:
        """Yield every manifest, by name; a broken one has a `problem` and no layers.

        Raises:
            StoreError: the folder cannot be read.
        """
        with self.reading():
            found = list(manifests.below(self.folder / "manifests"))
        for name, path in found:
            yield manifests.read(path, name)

    def link(self, sha256: str, source: Path) -> bool:
        """Give the file `source` the blob's name as well; False if another process was faster.

        Raises:
            OSError: the link cannot be made, for instance from another file system.
        """
        try:
            self.blob(sha256).hardlink_to(source.resolve())
        except FileExistsError:
            return False
        self.sync()
        return True

    def put(self, sha256: str, write: Callable[[int], object]) -> None:
        """Make the blob: `write` fills the file behind a descriptor, or raises, and none appears.

        Owner, group and mode are the store's, also when root puts it there.

        Raises:
            OSError: the disk is full or read-only; what `write` raises.
        """
        self.clear()
        temporary, descriptor = self._fresh()
        try:
            write(descriptor)
            if (os.geteuid(), os.getegid()) != (self.uid, self.gid):
                self._give_away(descriptor)
            os.fchmod(descriptor, self.blob_mode)
            os.fsync(descriptor)
            temporary.rename(self.blob(sha256))
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)
        self.sync()

    def clear(self) -> None:
        """Remove what killed processes of ours left unfinished; what a live one writes stays."""
        for path in self.blobs_folder.glob(f"{UNFINISHED}*"):
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if _lock(descriptor):
                        path.unlink()
                finally:
                    os.close(descriptor)

    def sync(self) -> None:
        """Wait until the disk has the folder's names."""
        descriptor = os.open(self.blobs_folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what the operating system says while the store is read into one of our errors."""
        try:
            yield
        except OSError as exc:
            raise StoreError(
                f"`{exc.filename or self.folder}` cannot be read: "
                f"{(exc.strerror or type(exc).__name__).lower()}",
                hint="Run it as the user that the daemon runs as, or with `sudo -E`",
            ) from exc

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the operating system says while the store is written into one of our errors."""
        try:
            yield
        except OSError as exc:
            if exc.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise NotEnoughSpace(
                    f"no space is left in the daemon's models folder `{self.folder}`",
                    hint="Free space there and run the same command again",
                ) from exc
            raise StoreError(
                f"the daemon's models folder `{self.folder}` cannot be written: "
                f"{(exc.strerror or type(exc).__name__).lower()}",
                hint="Let the daemon write it, with `--transfer upload`",
            ) from exc

    def _fresh(self) -> tuple[Path, int]:
        """Return a new, locked file of ours; never one that `clear` of another process caught."""
        while True:
            path = self.blobs_folder / f"{UNFINISHED}{secrets.token_hex(8)}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if _lock(descriptor) and os.fstat(descriptor).st_nlink:
                return path, descriptor
            os.close(descriptor)

    def _give_away(self, descriptor: int) -> None:
        try:
            os.fchown(descriptor, self.uid, self.gid)
        except PermissionError:
            # A group that this user is not in does no harm; another owner would.
            if os.fstat(descriptor).st_uid != self.uid:
                raise


_EFFECTIVE = os.access in os.supports_effective_ids


def _lock(descriptor: int) -> bool:
    """Lock an open file for as long as it is open; return whether nobody else had it locked."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _user(uid: int) -> str:
    """Return the user's name, or the number where it has none."""
    import pwd

    try:
        return f"the user `{pwd.getpwuid(uid).pw_name}`"
    except KeyError:
        return f"the user {uid}"
