"""What a failure says, and of whom: the host, the picture, what was asked, or only the moment."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum

from llava_ollama.batch.work import ErrorKind
from llava_ollama.errors import (
    DaemonBusy,
    DaemonError,
    DaemonTimeout,
    DaemonUnreachable,
    ImageError,
    InvalidAnswer,
    LlavaOllamaError,
    ModelBroken,
    ModelLoading,
    ModelNotInstalled,
    RunnerCrashed,
    UsageProblem,
)

_PASSING = frozenset(
    {
        *(errno.EIO, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR),
        *(errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH),
        *(errno.EBUSY, errno.ECONNRESET, errno.ENOTCONN),
    }
)
"""Errors of a disk or a network folder after which the same file may well be read."""
_ERROR = 500
"""Of HTTP: this request failed. What a server before the daemon says of it is 502, 503 or 504."""
_REFUSALS = range(400, 500)
_OF_THE_HOST = frozenset({401, 403, 404, 408, 429, 502, 503, 504})


class Blame(Enum):
    """Who is to blame, and so what is done about it."""

    HOST = "host"
    """It took nothing: no attempt of the question's, and the host is left alone for a while."""
    LOST = "lost"
    """The connection broke off in the middle, as when a host dies; the picture may have done it."""
    CRASH = "crash"
    """The process that runs the model died, of this picture or of another that was asked beside."""
    PASSING = "passing"
    """It may go well the next time; one attempt is spent."""
    LASTING = "lasting"
    """It would go the same way every time."""
    GONE = "gone"
    """The file is not there any more."""


@dataclass(frozen=True)
class Verdict:
    """Who is to blame, and what an answer that is missing for good is filed under."""

    blame: Blame
    kind: ErrorKind


def judge(error: LlavaOllamaError) -> Verdict:
    """Return what `error` is, raised while a picture was read or a question was put."""
    if isinstance(error, ImageError):
        return _of_picture(error)
    if isinstance(error, DaemonTimeout):
        return Verdict(Blame.PASSING if error.connected else Blame.HOST, "timeout")
    for kinds, verdict in _BY_TYPE:
        if isinstance(error, kinds):
            return verdict
    if isinstance(error, DaemonError):
        return _of_status(error)
    return Verdict(Blame.PASSING, "daemon")  # an answer that ended in the middle


_BY_TYPE = (
    ((InvalidAnswer,), Verdict(Blame.LASTING, "answer")),
    ((UsageProblem,), Verdict(Blame.LASTING, "request")),
    ((RunnerCrashed,), Verdict(Blame.CRASH, "crash")),
    ((DaemonBusy, ModelLoading, ModelNotInstalled, ModelBroken), Verdict(Blame.HOST, "daemon")),
)


def _of_picture(error: ImageError) -> Verdict:
    cause = error.__cause__
    if isinstance(cause, FileNotFoundError | NotADirectoryError):
        return Verdict(Blame.GONE, "picture")
    passing = isinstance(cause, OSError) and cause.errno in _PASSING
    return Verdict(Blame.PASSING if passing else Blame.LASTING, "picture")


def _of_status(error: DaemonError) -> Verdict:
    if error.status in _OF_THE_HOST:
        return Verdict(Blame.HOST, "daemon")
    if error.status in _REFUSALS:
        return Verdict(Blame.LASTING, "request")
    if error.status is not None and error.status >= _ERROR:
        return Verdict(Blame.PASSING, "daemon")
    blame = Blame.HOST if isinstance(error, DaemonUnreachable) else Blame.LOST
    return Verdict(blame, "daemon")
