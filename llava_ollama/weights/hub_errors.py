"""The one door for errors of huggingface_hub and httpx2: what each of theirs becomes of ours.

A foreign error's own text is never shown: it may hold a signed address or a token.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from llava_ollama.errors import (
    AccessDenied,
    DownloadError,
    HubUnreachable,
    LlavaOllamaError,
    UsageProblem,
)

if TYPE_CHECKING:
    from llava_ollama.catalog import WeightFile

LONGEST_WAIT = 300.0
"""Seconds that a server may ask us to wait; the Hub's rate limits are reset within five minutes."""
_RETRIED_BY_HTTP_GET = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
_LOGIN = "Log in with `hf auth login`, or set `HF_TOKEN`"


class Broken(HubUnreachable):
    """An answer began and is of no use; another attempt may fare better."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        again = "Run the same command again: it goes on where it stopped"
        super().__init__(message, hint=hint or again)


@contextmanager
def door(file: WeightFile, hub: str) -> Iterator[None]:
    """Let errors of huggingface_hub and httpx2 out as ours; `hub` is its address, to be shown."""
    try:
        yield
    except known() as exc:
        for kind, translate in translations().items():
            if isinstance(exc, kind):
                raise translate(exc, file, hub) from exc
        raise


def known() -> tuple[type[Exception], ...]:
    """Return the foreign errors that have a translation."""
    return tuple(translations())


def patience(error: BaseException) -> float | None:
    """Return the seconds to wait at least before another attempt, or None if that is pointless."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if cause.response.request.method == "GET" and status in _RETRIED_BY_HTTP_GET:
            return None
        if status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _RETRIED_BY_HTTP_GET:
            return None if not isinstance(error, Broken) else 0.0
        return _seconds(cause.response.headers.get("Retry-After", "").strip())
    if isinstance(
        cause, httpx2.TimeoutException | httpx2.NetworkError | httpx2.RemoteProtocolError
    ):
        return None if _find_in_chain(cause, ssl.SSLCertVerificationError) else 0.0
    return 0.0 if isinstance(error, Broken) else None


def _seconds(asked: str) -> float:
    """Read `Retry-After`, which is seconds or a date."""
    if asked.isascii() and asked.isdigit():
        return float(asked)
    try:
        return max(parsedate_to_datetime(asked).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, OSError):
        return 0.0


_Translate = Callable[[Exception, "WeightFile", str], LlavaOllamaError]


@cache
def translations() -> Mapping[type[Exception], _Translate]:
    """Return what becomes of each foreign error, by type; subclasses stand before their bases."""
    import httpx2
    from huggingface_hub import errors

    return {
        errors.OfflineModeIsEnabled: _offline,
        errors.GatedRepoError: _gated,
        errors.RepositoryNotFoundError: _no_repository,
        errors.RevisionNotFoundError: _no_revision,
        errors.RemoteEntryNotFoundError: _no_file,
        errors.HfHubHTTPError: _by_status,
        errors.HFValidationError: _bad_name,
        errors.OIDCError: _no_token,
        httpx2.TimeoutException: _unreachable,
        httpx2.NetworkError: _unreachable,
        httpx2.RemoteProtocolError: _unreachable,
        httpx2.ProxyError: _proxy,
        httpx2.LocalProtocolError: _bad_request,
        httpx2.UnsupportedProtocol: _bad_endpoint,
        httpx2.InvalidURL: _bad_endpoint,
        httpx2.TooManyRedirects: _nonsense,
        httpx2.DecodingError: _nonsense,
    }


def _offline(_exc: Exception, file: WeightFile, _hub: str) -> LlavaOllamaError:
    return HubUnreachable(
        f"`{file.name}` is not on this machine, and `HF_HUB_OFFLINE` forbids asking the Hub",
        hint="Unset `HF_HUB_OFFLINE`, or name the folder that has the file with `--dir`",
    )


def _gated(_exc: Exception, file: WeightFile, hub: str) -> LlavaOllamaError:
    return AccessDenied(
        f"`{file.repo}` is gated and this account is not on its list",
        hint=f"Ask for access at {hub}/{file.repo}. {_LOGIN}",
    )


def _no_repository(exc: Exception, file: WeightFile, hub: str) -> LlavaOllamaError:
    if _status(exc) in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return AccessDenied(
            f"`{file.repo}` is private, or does not exist, at `{hub}`",
            hint=f"Check the name `{file.repo}`. {_LOGIN}",
        )
    return DownloadError(
        f"there is no repository `{file.repo}` at `{hub}`",
        hint=f"Check the name `{file.repo}`; if it is private: {_LOGIN}",
    )


def _no_revision(_exc: Exception, file: WeightFile, hub: str) -> LlavaOllamaError:
    return DownloadError(
        f"`{file.repo}` has no revision `{file.revision}`",
        hint=f"See which there are: {hub}/{file.repo}/commits/main",
    )


def _no_file(_exc: Exception, file: WeightFile, hub: str) -> LlavaOllamaError:
    return DownloadError(
        f"`{file.repo}` has no file `{file.name}` at revision `{file.revision}`",
        hint=f"See which there are: {hub}/{file.repo}/tree/{file.revision}",
    )


def _by_status(exc: Exception, file: WeightFile, hub: str) -> LlavaOllamaError:
    status = _status(exc)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return AccessDenied(f"the Hub denies access to `{file.repo}` (HTTP {status})", hint=_LOGIN)
    if status == HTTPStatus.NOT_FOUND:
        return _no_file(exc, file, hub)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return Broken(f"`{hub}` refuses to go on with `{file.name}` where it stopped")
    if status in _RETRIED_BY_HTTP_GET or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return HubUnreachable(
            f"`{hub}` cannot serve `{file.name}` now (HTTP {status})",
            hint="Run the same command later: it goes on where it stopped",
        )
    return DownloadError(
        f"`{hub}` answered HTTP {status} for `{file.name}` of `{file.repo}`",
        hint=f"See whether the repository is well: {hub}/{file.repo}",
    )


def _unreachable(exc: Exception, file: WeightFile, hub: str) -> LlavaOllamaError:
    return HubUnreachable(
        f"`{file.name}` cannot be fetched from `{hub}`: {_reason(exc)}",
        hint="Check the network and run the same command again: it goes on where it stopped",
    )


def _proxy(_exc: Exception, file: WeightFile, hub: str) -> LlavaOllamaError:
    return HubUnreachable(
        f"the proxy does not let `{file.name}` through from `{hub}`",
        hint="Check `HTTPS_PROXY` and `NO_PROXY`",
    )


def _bad_name(_exc: Exception, file: WeightFile, _hub: str) -> LlavaOllamaError:
    return UsageProblem(
        f"`{file.repo}` is not the name of a Hub repository", hint="Its form is `owner/name`"
    )


def _bad_endpoint(_exc: Exception, _file: WeightFile, hub: str) -> LlavaOllamaError:
    return UsageProblem(f"`{hub}` is not the address of a Hub", hint="Check `HF_ENDPOINT`")


def _bad_request(_exc: Exception, file: WeightFile, _hub: str) -> LlavaOllamaError:
    return DownloadError(
        f"the request for `{file.name}` could not be sent",
        hint="Check `HF_TOKEN` for characters that do not belong there",
    )


def _no_token(_exc: Exception, file: WeightFile, _hub: str) -> LlavaOllamaError:
    return AccessDenied(
        f"no token for `{file.repo}` could be had", hint="Check `HF_OIDC_RESOURCE`, or unset it"
    )


def _nonsense(_exc: Exception, file: WeightFile, hub: str) -> LlavaOllamaError:
    return DownloadError(
        f"the answer of `{hub}` for `{file.name}` cannot be followed",
        hint="Check `HF_ENDPOINT`, and whether a proxy is in between",
    )


def _status(exc: Exception) -> int:
    from huggingface_hub.errors import HfHubHTTPError

    return exc.response.status_code if isinstance(exc, HfHubHTTPError) else 0


def _reason(exc: Exception) -> str:
    """Say in a few words why there is no connection; the innermost error knows best."""
    import httpx2

    if isinstance(exc, httpx2.TimeoutException):
        return "no answer in time"
    if isinstance(exc, httpx2.RemoteProtocolError):
        return "the connection was cut"
    if _find_in_chain(exc, ssl.SSLCertVerificationError):
        return "its certificate is not trusted here"
    if _find_in_chain(exc, socket.gaierror):
        return "the host name cannot be resolved"
    inner = _find_in_chain(exc, OSError)
    return str(getattr(inner, "strerror", None) or "no connection").lower()


def _find_in_chain(exc: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    while exc is not None and not isinstance(exc, kind):
        exc = exc.__cause__ or exc.__context__
    return exc
