"""Everything that this package raises on purpose, and the exit code of each.

    LlavaOllamaError                 1
    ├── UsageProblem                 2   the call itself is wrong
    │   ├── UnknownModel             2
    │   └── UnknownQuant             2
    ├── TemplateError                1   a Modelfile or chat template cannot be made or read
    ├── ImageError                   1   a picture cannot be used
    ├── GGUFError                    1   a weight file is not what it should be
    ├── DownloadError                1
    │   ├── HubUnreachable           3
    │   ├── AccessDenied             1
    │   ├── ChecksumMismatch         1
    │   └── NotEnoughSpace           1
    ├── StoreError                   1   the daemon registered something else than was sent
    ├── DaemonError                  1
    │   ├── DaemonUnreachable        3
    │   ├── DaemonTimeout            3
    │   ├── ModelNotInstalled        1
    │   ├── ModelBroken              1
    │   ├── ModelConflict            1
    │   ├── RunnerCrashed            1
    │   ├── DaemonBusy               1
    │   └── ModelLoading             1
    ├── IncompleteAnswer             1
    ├── InvalidAnswer                1   not the document that was asked for
    ├── CheckFailed                  1   `install --check`: the answer was wrong
    └── EngineUnavailable            1

Exit code 4 (finished, but some items failed) and 130 (interrupted) belong to the command line,
as do Click's own usage errors (2). Bugs are none of these and keep their traceback.
"""

from __future__ import annotations

from typing import ClassVar


class LlavaOllamaError(Exception):
    """Base of the tree: one sentence that says what happened, and a hint that says what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageProblem(LlavaOllamaError):
    """The call asks for something that cannot be meant."""

    exit_code = 2


class UnknownModel(UsageProblem):
    """No catalog entry has this name."""


class UnknownQuant(UsageProblem):
    """The model exists, this quant of it does not."""


class TemplateError(LlavaOllamaError):
    """A Modelfile or a chat template cannot be rendered or parsed."""


class ImageError(LlavaOllamaError):
    """A picture cannot be read, or is refused before it is decoded."""


class GGUFError(LlavaOllamaError):
    """A weight file is damaged, of another kind, or does not fit its partner."""


class DownloadError(LlavaOllamaError):
    """A weight file could not be brought here."""


class HubUnreachable(DownloadError):
    """The Hub did not answer, also after retries."""

    exit_code = 3


class AccessDenied(DownloadError):
    """The Hub answered, but not to us: gated, private or without a token."""


class ChecksumMismatch(DownloadError):
    """The bytes are not the published ones."""


class NotEnoughSpace(DownloadError):
    """The disk cannot hold what would be written."""


class StoreError(LlavaOllamaError):
    """The daemon's record of a model is not what was registered."""


class DaemonError(LlavaOllamaError):
    """The daemon refused or failed a request."""

    status: int | None = None
    """Of HTTP, where the daemon answered."""
    connected: bool = True
    """Whether there was a connection at all."""


class DaemonUnreachable(DaemonError):
    """Nothing that speaks Ollama's API answers at this address."""

    exit_code = 3


class DaemonTimeout(DaemonError):
    """The daemon is there, but did not answer in time."""

    exit_code = 3


class ModelNotInstalled(DaemonError):
    """The daemon has no model of this name."""


class ModelBroken(DaemonError):
    """The daemon lists this name, but cannot read its manifest or a layer of it."""


class ModelConflict(DaemonError):
    """Another model already has this name."""


class RunnerCrashed(DaemonError):
    """The process that runs the model died."""


class DaemonBusy(DaemonError):
    """The daemon's queue is full."""


class ModelLoading(DaemonError):
    """The model is still being loaded."""


class IncompleteAnswer(LlavaOllamaError):
    """An answer ended without its last part; `text` is what had arrived."""

    def __init__(self, message: str, *, hint: str | None = None, text: str = "") -> None:
        super().__init__(message, hint=hint)
        self.text = text


class InvalidAnswer(LlavaOllamaError):
    """An answer is not the document that was asked for.

    `text` is what the model said, `complaints` says what is wrong with it, a line each.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        text: str = "",
        complaints: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.text = text
        self.complaints = complaints


class CheckFailed(LlavaOllamaError):
    """The installed model does not see what it was shown."""


class EngineUnavailable(LlavaOllamaError):
    """The program or library that would run the model is missing."""
