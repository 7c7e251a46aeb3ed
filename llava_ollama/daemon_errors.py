"""The one door for what goes wrong with a daemon, and on the way to it: every error becomes ours.

`daemon.py` and `engine/ollama.py` go through it. httpx's errors are told apart by type, the
daemon's by status and, where several situations share one, by its own words.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llava_ollama.errors import (
    DaemonBusy,
    DaemonError,
    DaemonTimeout,
    DaemonUnreachable,
    ImageError,
    IncompleteAnswer,
    LlavaOllamaError,
    ModelBroken,
    ModelLoading,
    ModelNotInstalled,
    RunnerCrashed,
    UsageProblem,
)

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT = 10.0
LONGEST_WAIT = 60.0
"""Seconds that a server may ask us to wait."""
_BUSY = {429, 503}
_MISMATCH = "digest mismatch"
_NO_FILE = ("no such file or directory", "cannot find the file")
_GONE = re.compile(r"stat .*[/\\]manifests[/\\].*: no such file or directory")


@contextmanager
def connecting(host: str) -> Iterator[None]:
    """Turn what httpx raises for a proxy that it cannot use into one of ours."""
    try:
        yield
    except (ImportError, ValueError) as exc:  # socks5:// without `socksio`; an unknown scheme
        reason = " ".join(str(exc).split()).rstrip(".")
        raise UsageProblem(
            f"the proxy in the environment cannot be used for {host}: {reason}",
            hint="Unset `ALL_PROXY`, or add the daemon's host to `NO_PROXY`",
        ) from exc


@contextmanager
def door(host: str) -> Iterator[None]:
    """Turn every error of the way to the daemon into one of ours, by its type."""
    import httpx

    try:
        yield
    except httpx.ConnectTimeout as exc:
        error = DaemonTimeout(
            f"no connection to {host} within {CONNECT_TIMEOUT:.0f} seconds",
            hint="Check the address in `--host` or `OLLAMA_HOST`, and the network on the way",
        )
        error.connected = False
        raise error from exc
    except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL) as exc:
        raise unreachable(host, exc) from exc
    except httpx.TimeoutException as exc:
        raise DaemonTimeout(
            f"the daemon at {host} did not answer {_within(exc)}",
            hint="It may be loading a large model: set `LLAVA_OLLAMA_TIMEOUT` to more seconds",
        ) from exc
    except (httpx.RemoteProtocolError, httpx.NetworkError, httpx.DecodingError) as exc:
        raise DaemonError(
            f"the connection to {host} broke off",
            hint="See whether the daemon still runs (`llava-ollama doctor`), then try again",
        ) from exc
    except httpx.HTTPError as exc:
        raise DaemonError(
            f"the request to {host} failed: {exc}", hint="Run `llava-ollama doctor`"
        ) from exc


def _within(exc: httpx.TimeoutException) -> str:
    """Say how long was waited: a request knows its own limits."""
    try:
        seconds = exc.request.extensions.get("timeout", {}).get("read")
    except RuntimeError:  # raised outside a request
        seconds = None
    return f"within {seconds:g} seconds" if seconds else "in time"


def unreachable(host: str, exc: BaseException) -> DaemonUnreachable:
    """Return the error for an address where nothing answers, as `exc` tells."""
    if is_unresolved(exc):
        return DaemonUnreachable(
            f"the host name in {host} cannot be resolved",
            hint="Check the address in `--host` or `OLLAMA_HOST`",
        )
    return DaemonUnreachable(
        f"no Ollama daemon answers at {host}",
        hint="Start it with `ollama serve`, or name another with `--host` or `OLLAMA_HOST`",
    )


def is_unresolved(exc: BaseException | None) -> bool:
    """Whether a failed connection is one whose host name has no address."""
    while exc is not None and not isinstance(exc, socket.gaierror):
        exc = exc.__cause__ or exc.__context__
    return exc is not None


def not_ollama(host: str) -> DaemonUnreachable:
    """Return the error for an address where something else than Ollama answers."""
    return DaemonUnreachable(
        f"what answers at {host} is not an Ollama daemon",
        hint="Check the address and port in `--host` or `OLLAMA_HOST`",
    )


def pause_asked_for(status: int, headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which the same request is to be sent again, if that was asked.

    Ollama itself never says `Retry-After`; a server before it does, and has passed nothing on.
    """
    asked = headers.get("Retry-After", "")
    if status not in _BUSY or not (asked.isascii() and asked.isdigit()):
        return None
    return seconds if (seconds := float(asked)) <= LONGEST_WAIT else None


def is_passing(body: str) -> bool:
    """Whether a request failed only because some other model was removed in that instant.

    The daemon lists its manifests' names and then looks at each, for most requests before it does
    anything else.
    """
    return _GONE.search(_said(body)) is not None


def is_mismatch(error: LlavaOllamaError) -> bool:
    """Whether a pull has come to other bytes than the registry's manifest promises."""
    return _MISMATCH in error.message


def failure(status: int, body: str, host: str, model: str = "") -> LlavaOllamaError:
    """Return the error that an unsuccessful reply stands for."""
    error = _failure(status, body, host, model)
    if isinstance(error, DaemonError):
        error.status = status
    return error


def _failure(status: int, body: str, host: str, model: str) -> LlavaOllamaError:
    said = _said(body)
    if status == 404 and "model" in said:  # noqa: PLR2004 - HTTP
        return ModelNotInstalled(
            f"the daemon at {host} has no model `{model or said}`",
            hint="`llava-ollama list` shows what is installed, `llava-ollama install` adds to it",
        )
    if status in _BUSY or "server busy" in said:
        return DaemonBusy(
            f"the daemon at {host} has too many requests waiting",
            hint="Try again in a moment, or ask less at once",
        )
    if status == 403:  # noqa: PLR2004 - HTTP
        return DaemonError(
            f"the daemon at {host} refuses requests that are addressed to it by this name",
            hint="Use its IP address, or start it with OLLAMA_HOST=0.0.0.0",
        )
    for words, error, hint in _SAYINGS:
        if any(word in said for word in words):
            return error(f"the daemon at {host} says: {said}", hint=hint)
    if not said or status == 404 or status // 100 == 3:  # noqa: PLR2004 - HTTP
        return not_ollama(host)
    return DaemonError(f"the daemon at {host} says: {said}", hint="Look at the daemon's log")


def without_file(name: str) -> ModelBroken:
    """Return the error for a model that the daemon lists, and of which a file is gone."""
    short = name.removesuffix(":latest")
    return ModelBroken(
        f"the model `{short}` is damaged: its model file is missing",
        hint=f"Bring it back with `llava-ollama repair {short}`",
    )


def damaged(name: str, error: LlavaOllamaError) -> ModelBroken:
    """Return the error for a model that the daemon has, and could not show because of `error`."""
    if any(words in error.message for words in _NO_FILE):
        return without_file(name)
    return ModelBroken(
        f"the model `{name}` is damaged; {error.message}",
        hint=f"Install it again with `--force`, or `llava-ollama remove {name}`",
    )


_SAYINGS: tuple[tuple[tuple[str, ...], type[LlavaOllamaError], str], ...] = (
    (
        ("timed out waiting for",),
        ModelLoading,
        "Ask again, now that its files are in memory, or start it with more OLLAMA_LOAD_TIMEOUT",
    ),
    (
        ("token repeat limit",),
        IncompleteAnswer,
        "The model repeats itself: ask otherwise, or set `repeat_penalty`",
    ),
    (
        ("JSON schema", "failed to parse grammar"),
        UsageProblem,
        "The daemon cannot hold answers to this schema: make it simpler",
    ),
    (
        ("Failed to load image", "zero length image"),
        ImageError,
        "Send the picture as PNG or JPEG",
    ),
    (
        # "unexpected EOF" is what a runner killed in the middle of an answer leaves.
        ("unexpectedly stopped", "process has terminated", "process no longer running", " EOF"),
        RunnerCrashed,
        "Try again; if it stays so, the daemon's log says why (often too little memory)",
    ),
    (
        ("more system memory",),
        RunnerCrashed,
        "Close other programs, or install a smaller quant",
    ),
    (
        ("no space left", "disk quota exceeded", "file too large"),
        DaemonError,
        "Free space in the daemon's models folder and run the same command again",
    ),
    (
        (_MISMATCH,),
        DaemonError,
        "The registry delivers other bytes: use `--transfer upload`",
    ),
)


def _said(body: str) -> str:
    """Return the daemon's own words; 0.34 may wrap them in JSON twice."""
    text = body.strip()
    for _ in range(4):
        try:
            value = json.loads(text)
        except ValueError:
            break
        except RecursionError:
            return ""
        while isinstance(value, dict):
            value = value.get("error", value.get("message"))
        if not isinstance(value, str):
            return ""
        text = value
    # 0.34 ends with a dash where it has nothing to add.
    return " ".join(text.split())[:500].rstrip(" -") if not text.startswith("<") else ""
