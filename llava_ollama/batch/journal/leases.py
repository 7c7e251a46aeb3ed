"""What is with a host at this moment: a small file that outlives the process that wrote it.

A lease is a slot in the file. It is written before a host is handed a picture and cleared once
the outcome is committed. Writing it waits for no disk: the page is the kernel's, so it survives
the death of this process, and the journal's writer has the disk take it along with its next group.

Each lease has a serial number, and the transaction with its outcome notes that number for the
slot. So a process killed between a commit and the clearing leaves a lease that is known as settled.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = "sending"
_SLOT = struct.Struct("<qqq8x")  # 32 bytes, so that none crosses a page
_EMPTY = bytes(_SLOT.size)
_PAUSE = 0.1
"""Seconds from one `fsync` to the next."""
_MOST = 1 << 16
"""Slots; a file that has more is none of ours."""


@dataclass(frozen=True)
class Lease:
    """One question about one picture that is with a host."""

    slot: int
    serial: int
    item: int
    ask: int


def left(folder: Path, settled: Mapping[int, int]) -> list[Lease]:
    """Return the leases that another process left; `settled` has the last serial of each slot."""
    try:
        with (folder / FILE).open("rb") as file:
            data = file.read(_MOST * _SLOT.size)
    except FileNotFoundError:
        return []
    return [lease for lease in _parsed(data) if lease.serial > settled.get(lease.slot, 0)]


def _parsed(data: bytes) -> Iterator[Lease]:
    whole = len(data) - len(data) % _SLOT.size
    for slot, (serial, item, ask) in enumerate(_SLOT.iter_unpack(data[:whole])):
        if serial:
            yield Lease(slot, serial, item, ask)


class Leases:
    """The file of one run, for the one process that has the run."""

    def __init__(self, folder: Path, first_serial: int) -> None:
        self._serial = first_serial
        self._file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._slots = 0
        self._unsynced = False
        self._synced = 0.0

    def begin(self, item: int, ask: int) -> Lease:
        """Note that a host is about to be handed this.

        Raises:
            OSError: the disk is full.
        """
        with self._lock:
            slot = self._free.pop() if self._free else self._slots
            self._slots = max(self._slots, slot + 1)
            lease = Lease(slot, self._serial, item, ask)
            self._serial += 1
            os.pwrite(self._file, _SLOT.pack(lease.serial, item, ask), slot * _SLOT.size)
            self._unsynced = True
        return lease

    def end(self, lease: Lease) -> None:
        """Clear a lease whose outcome is committed, or that no host was handed."""
        with self._lock:
            os.pwrite(self._file, _EMPTY, lease.slot * _SLOT.size)
            self._free.append(lease.slot)

    def sync(self) -> None:
        """Wait until the disk has what was begun since, at most ten times a second.

        Nothing is done for what has ended: the journal knows that.
        """
        if self._unsynced and time.monotonic() - self._synced >= _PAUSE:
            self._unsynced = False
            os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        """End all leases and let go of the file: whoever ends in good order has died of nothing."""
        os.ftruncate(self._file, 0)
        os.close(self._file)
