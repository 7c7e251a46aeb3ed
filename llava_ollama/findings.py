"""What a check found: the one form in which pre-flight, `mend` and `doctor` speak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One result of one check; `fix` is the next thing to do, empty where there is nothing."""

    check: str
    status: Status
    detail: str
    fix: str = ""
