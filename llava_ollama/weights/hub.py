"""The Hub: what it has, its bytes, and its cache on this machine.

huggingface_hub does the HTTP: token, `HF_ENDPOINT`, offline mode, redirects. What goes wrong
leaves through the door in `hub_errors.py`.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from llava_ollama import __version__
from llava_ollama.errors import DownloadError, HubUnreachable
from llava_ollama.package import is_sha256
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.weights.hub_errors import LONGEST_WAIT, Broken, door, known

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llava_ollama.catalog import WeightFile

_WAITING = re.compile(r"Rate limited\. Waiting (\d+)")
_LARGEST = 1 << 63
"""Bytes that no file has."""


@dataclass(frozen=True)
class Offer:
    """What the Hub says of a file; `size` in bytes."""

    commit: str
    etag: str
    size: int | None

    @property
    def sha256(self) -> str | None:
        """The file's sha256, which is the ETag of everything that is stored in LFS."""
        return self.etag if is_sha256(self.etag) else None


@dataclass(frozen=True)
class Hub:
    """The Hub at `endpoint` and its cache folder; None means what huggingface_hub reads itself."""

    endpoint: str | None = None
    cache: Path | None = None
    reporter: Reporter = SILENT

    def cached(self, file: WeightFile) -> Path | None:
        """Return the blob of `file` in the Hub's own cache, if it is there."""
        from huggingface_hub import try_to_load_from_cache

        if file.repo is None:
            return None
        with door(file, self.address):
            found = try_to_load_from_cache(
                file.repo, file.name, cache_dir=self.cache, revision=file.revision
            )
        return Path(found).resolve() if isinstance(found, str) else None

    def ask(self, file: WeightFile) -> Offer:
        """Ask once for the commit, ETag and size of `file`.

        Raises:
            DownloadError: it has no such file, denies it, or does not answer.
        """
        from huggingface_hub import get_hf_file_metadata

        with door(file, self.address):
            try:
                found = get_hf_file_metadata(
                    self._url(file, file.revision), endpoint=self.endpoint, headers=self._headers()
                )
            except ValueError as exc:
                if isinstance(exc, known()):
                    raise
                raise self._no_hub() from exc  # a size of some thousand digits, or of none
        if not (found.commit_hash and found.etag and 0 <= (found.size or 0) < _LARGEST):
            raise self._no_hub()
        return Offer(found.commit_hash, found.etag, found.size)

    def _no_hub(self) -> DownloadError:
        return DownloadError(
            f"`{self.address}` answers, but not as a Hub does",
            hint="Check `HF_ENDPOINT`, and whether a proxy or a login page is in between",
        )

    def get(self, file: WeightFile, commit: str, sink: BinaryIO) -> None:
        """Write `file` of `commit` into `sink`, from where that stands; 10 MB at a time.

        Should the server ignore the range, `sink` is told to `seek(0)` and `truncate()`.

        Raises:
            DownloadError: as `ask`; http_get has tried again where only the connection failed.
        """
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import silent_tqdm  # type: ignore[attr-defined]

        with door(file, self.address), _listening(self.reporter, file.name, self.address):
            try:
                http_get(
                    # By commit: a branch may move between two attempts.
                    self._url(file, commit),
                    sink,
                    resume_size=sink.tell(),
                    headers=self._headers(),
                    tqdm_class=cast("type", silent_tqdm),
                )
            except HfHubHTTPError as exc:
                if exc.response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    sink.seek(0)
                    sink.truncate()
                raise
            except RecursionError as exc:
                # http_get calls itself after each cut: some hundreds of them end here.
                raise Broken(f"the connection to `{self.address}` was cut very often") from exc
            except (OSError, ValueError) as exc:
                # http_get's own complaints about sizes have no errno; those of the disk have one.
                if isinstance(exc, known()) or getattr(exc, "errno", None) is not None:
                    raise
                raise Broken(f"`{file.name}` did not arrive whole from `{self.address}`") from exc

    @property
    def address(self) -> str:
        """The Hub's scheme and host, without what must not be shown."""
        from huggingface_hub import constants

        scheme, separator, rest = (self.endpoint or constants.ENDPOINT).rpartition("://")
        return scheme + separator + rest.partition("/")[0].rpartition("@")[2]

    def _url(self, file: WeightFile, revision: str) -> str:
        from huggingface_hub import hf_hub_url

        endpoint = self.endpoint and self.endpoint.rstrip("/")
        return hf_hub_url(str(file.repo), file.name, revision=revision, endpoint=endpoint)

    def _headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = build_hf_headers(library_name="llava-ollama", library_version=__version__)
        # Offsets and sizes are of the file, so it must not arrive compressed.
        return dict(headers) | {"Accept-Encoding": "identity"}


@contextmanager
def _listening(reporter: Reporter, name: str, address: str) -> Iterator[None]:
    """Turn what huggingface_hub would log to standard error into notes, without addresses.

    It says there too how long it is going to wait, which may be an hour that a server asked for.
    """

    def hear(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        text = re.sub(r"https?://[^\s'\"]*[^\s'\":.,]", f"`{name}`", record.getMessage())
        waiting = _WAITING.match(text)
        if waiting and float(waiting[1]) > LONGEST_WAIT:
            raise HubUnreachable(
                f"`{address}` asks to wait {waiting[1]} seconds before it serves `{name}`",
                hint="Run the same command later: it goes on where it stopped",
            )
        reporter.note(" ".join(text.split()))
        return False

    loggers = [
        logging.getLogger(f"huggingface_hub.{part}") for part in ("file_download", "utils._http")
    ]
    for logger in loggers:
        logger.addFilter(hear)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(hear)
