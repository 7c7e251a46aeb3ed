"""How much memory a process has had at most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak() -> int:
    """Return it of this process, in bytes.

    `ru_maxrss` also counts the memory of the process that this one was started from, which in a
    long test run is much; Linux has a count that begins anew with each program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
