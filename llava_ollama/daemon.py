"""The admin side of the Ollama API: what is installed, blobs, create, copy, delete.

httpx is used directly, since ollama-python has no `HEAD` on blobs and no upload with progress, and
drops `projector_info`, `system` and `capabilities` from its replies. Every error of the daemon or
of the way to it becomes one of ours here; `engine/ollama.py` goes through the same door.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_ollama import modelfile
from llava_ollama.errors import (
    DaemonBusy,
    DaemonError,
    DaemonTimeout,
    DaemonUnreachable,
    ImageError,
    LlavaOllamaError,
    ModelBroken,
    ModelLoading,
    ModelNotInstalled,
    RunnerCrashed,
    UsageProblem,
)
from llava_ollama.package import Package, ParameterValue, parameters
from llava_ollama.settings import DEFAULT_TIMEOUT, is_loopback

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT = 10.0
CREATE_TIMEOUT = 3600.0
"""Seconds without a word from `create`: daemons 0.30 to 0.34.0 rewrite 16 GB in silence."""
_NAME = re.compile(
    r"(?:(?P<host>[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349})/)?"
    r"(?:(?P<namespace>[A-Za-z0-9_][A-Za-z0-9_-]{0,79})/)?"
    r"(?P<model>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}))?"
)
_BLOB = re.compile(r"sha256[-:]([0-9a-f]{64})$")


def full_name(name: str) -> str:
    """Return `name` with its tag, as the daemon lists it.

    Raises:
        UsageProblem: Ollama would not accept it as a model's name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageProblem(
            f"`{name}` is not a model name",
            hint="Use letters, digits, `-`, `_` and `.`, and a tag after `:` if you like",
        )
    return name if match["tag"] else f"{name}:latest"


@dataclass(frozen=True)
class Shown:
    """What a daemon says of one installed model."""

    name: str
    sources: tuple[str, ...]
    """The digests after FROM: the model's, then the projectors'."""
    template: str
    system: str
    parameters: Mapping[str, ParameterValue]
    capabilities: tuple[str, ...]
    projector_info: Mapping[str, Any]
    details: Mapping[str, Any]

    @property
    def image_size(self) -> int | None:
        """The side in pixels of the square that the model sees, where the daemon says so."""
        size = self.projector_info.get("clip.vision.image_size")
        return int(size) if isinstance(size, int | float) and size > 0 else None

    @property
    def has_vision(self) -> bool:
        """Whether the model sees pictures."""
        return "vision" in self.capabilities

    def package(self) -> Package | None:
        """Return the installed package, or None when it is not one model and one projector."""
        if len(self.sources) != 2:  # noqa: PLR2004 - a model and a projector
            return None
        return Package(*self.sources, self.template, self.system, self.parameters)


@dataclass(frozen=True)
class Listed:
    """One line of the daemon's list."""

    name: str
    size: int
    manifest_digest: str


class Daemon:
    """One Ollama daemon, by its base URL (`settings.parse_host`)."""

    def __init__(self, host: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.host = host
        self._timeout = timeout

    @cached_property
    def _http(self) -> httpx.Client:
        import httpx

        return httpx.Client(
            base_url=self.host,
            timeout=httpx.Timeout(self._timeout, connect=CONNECT_TIMEOUT),
            # A proxy from the environment cannot reach this machine's own loopback address.
            trust_env=not is_loopback(self.host),
        )

    def close(self) -> None:
        """Close the connections."""
        if "_http" in self.__dict__:
            self._http.close()

    def version(self) -> str:
        """Return the daemon's version (`0.0.0` for one built from source).

        Raises:
            DaemonUnreachable: nothing answers, or what answers is not Ollama.
        """
        reply = self._call("GET", "/api/version")
        version = reply.get("version")
        if not isinstance(version, str):
            raise not_ollama(self.host)
        return version

    def models(self) -> list[Listed]:
        """Return all installed models, in the daemon's order."""
        reply = self._call("GET", "/api/tags")
        models = reply.get("models")
        if not isinstance(models, list):
            raise not_ollama(self.host)
        return [
            Listed(str(m.get("name", "")), int(m.get("size", 0)), str(m.get("digest", "")))
            for m in models
        ]

    def show(self, name: str) -> Shown:
        """Return what the daemon says of the model `name`.

        Raises:
            ModelNotInstalled: there is none.
            ModelBroken: its manifest or a layer cannot be read.
        """
        reply = self._call("POST", "/api/show", json={"model": name}, model=name)
        if "capabilities" not in reply:
            raise DaemonError(
                f"the daemon at {self.host} does not say what its models can do",
                hint="It is older than 0.6.4: update Ollama",
            )
        text = str(reply.get("modelfile", ""))
        found = [i.value for i in modelfile.instructions(text) if i.command == "FROM"]
        return Shown(
            name=name,
            sources=tuple(m[1] for value in found if (m := _BLOB.search(value))),
            template=str(reply.get("template") or ""),
            system=str(reply.get("system") or ""),
            parameters=_parameters(str(reply.get("parameters") or "")),
            capabilities=tuple(reply.get("capabilities") or ()),
            projector_info=reply.get("projector_info") or {},
            details=reply.get("details") or {},
        )

    def models_folder(self, name: str) -> Path | None:
        """Return the daemon's models folder, as the Modelfile of the model `name` tells it.

        It is a path on the daemon's machine, which may be another one.
        """
        text = str(self._call("POST", "/api/show", json={"model": name}, model=name)["modelfile"])
        for instruction in modelfile.instructions(text):
            path = Path(instruction.value)
            if instruction.command == "FROM" and path.parent.name == "blobs":
                return path.parent.parent
        return None

    def vocabulary(self, name: str) -> frozenset[str]:
        """Return the tokens of the model `name`, as its file lists them."""
        body = {"model": name, "verbose": True}
        info = self._call("POST", "/api/show", json=body, model=name).get("model_info") or {}
        return frozenset(str(token) for token in info.get("tokenizer.ggml.tokens") or ())

    def has_blob(self, digest: str) -> bool:
        """Whether the daemon holds the blob with this sha256."""
        with door(self.host):
            status = self._http.head(f"/api/blobs/sha256:{digest}").status_code
        if status in {200, 404}:
            return status == 200  # noqa: PLR2004 - HTTP
        raise failure(status, "", self.host)

    def upload(self, digest: str, size: int, chunks: Iterable[bytes]) -> None:
        """Send a blob. Ask `has_blob` first: for one that is there the daemon hangs up early.

        Raises:
            DaemonError: the daemon could not keep it, or its sha256 is another.
        """
        import httpx

        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        try:
            with door(self.host):
                response = self._http.post(
                    f"/api/blobs/sha256:{digest}", content=chunks, headers=headers
                )
        except DaemonError as exc:
            # Another upload of the same blob finished first: the daemon answers and hangs up.
            if isinstance(exc.__cause__, httpx.WriteError) and self.has_blob(digest):
                return
            raise
        if response.status_code not in {200, 201}:
            raise failure(response.status_code, response.text, self.host)

    def create(
        self,
        name: str,
        *,
        files: Mapping[str, str],
        template: str,
        system: str,
        parameters: Mapping[str, ParameterValue],
    ) -> Iterator[str]:
        """Register blobs (file name → sha256) under `name`; yield the daemon's status lines.

        Most failures of `create` arrive as a line inside an HTTP 200; they are raised here.
        """
        import httpx

        body = {
            "model": name,
            "files": {file: f"sha256:{digest}" for file, digest in files.items()},
            "template": template,
            "parameters": dict(parameters),
            **({"system": system} if system else {}),
        }
        timeout = httpx.Timeout(max(self._timeout, CREATE_TIMEOUT), connect=CONNECT_TIMEOUT)
        done = False
        with (
            door(self.host),
            self._http.stream("POST", "/api/create", json=body, timeout=timeout) as response,
        ):
            if response.status_code != 200:  # noqa: PLR2004 - HTTP
                raise failure(
                    response.status_code, response.read().decode(errors="replace"), self.host
                )
            for line in response.iter_lines():
                reply = _object(line, self.host) if line.strip() else {}
                if "error" in reply:
                    raise failure(500, line, self.host)
                if status := str(reply.get("status", "")):
                    done = done or status == "success"
                    yield status
        if not done:
            raise DaemonError(
                f"the daemon at {self.host} stopped in the middle of creating `{name}`",
                hint="Look at its log, and run the same command again",
            )

    def copy(self, source: str, destination: str) -> None:
        """Give the model `source` a second name, in place of what had it before."""
        body = {"source": source, "destination": destination}
        self._call("POST", "/api/copy", json=body, model=source)

    def delete(self, name: str) -> None:
        """Remove a name, and the blobs that no other name needs."""
        self._call("DELETE", "/api/delete", json={"model": name}, model=name)

    def _call(self, method: str, path: str, *, json: Any = None, model: str = "") -> dict[str, Any]:
        with door(self.host):
            response = self._http.request(method, path, json=json)
        if response.status_code != 200:  # noqa: PLR2004 - HTTP
            if path == "/api/version":
                raise not_ollama(self.host)
            error = failure(response.status_code, response.text, self.host, model)
            if path == "/api/show" and type(error) is DaemonError:
                raise ModelBroken(
                    f"the model `{model}` is damaged; {error.message}",
                    hint=f"Install it again with `--force`, or `llava-ollama remove {model}`",
                )
            raise error
        return _object(response.text, self.host) if response.text else {}


@contextmanager
def door(host: str) -> Iterator[None]:
    """Turn every error of the way to the daemon into one of ours, by its type."""
    import httpx

    try:
        yield
    except httpx.ConnectTimeout as exc:
        raise DaemonTimeout(
            f"no connection to {host} within {CONNECT_TIMEOUT:.0f} seconds",
            hint="Check the address in `--host` or `OLLAMA_HOST`, and the network on the way",
        ) from exc
    except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL) as exc:
        raise unreachable(host) from exc
    except httpx.TimeoutException as exc:
        raise DaemonTimeout(
            f"the daemon at {host} did not answer in time",
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


def unreachable(host: str) -> DaemonUnreachable:
    """Return the error for an address where nothing answers."""
    return DaemonUnreachable(
        f"no Ollama daemon answers at {host}",
        hint="Start it with `ollama serve`, or name another with `--host` or `OLLAMA_HOST`",
    )


def not_ollama(host: str) -> DaemonUnreachable:
    """Return the error for an address where something else than Ollama answers."""
    return DaemonUnreachable(
        f"what answers at {host} is not an Ollama daemon",
        hint="Check the address and port in `--host` or `OLLAMA_HOST`",
    )


def failure(status: int, body: str, host: str, model: str = "") -> LlavaOllamaError:
    """Return the error that an unsuccessful reply stands for."""
    said = _said(body)
    if status == 404 and ("model" in said or model):  # noqa: PLR2004 - HTTP
        return ModelNotInstalled(
            f"the daemon at {host} has no model `{model or said}`",
            hint="`llava-ollama list` shows what is installed, `llava-ollama install` adds to it",
        )
    if status == 503 or "server busy" in said:  # noqa: PLR2004 - HTTP
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
    if not said:
        return not_ollama(host)
    return DaemonError(f"the daemon at {host} says: {said}", hint="Look at the daemon's log")


_SAYINGS: tuple[tuple[tuple[str, ...], type[LlavaOllamaError], str], ...] = (
    (
        ("timed out waiting for",),
        ModelLoading,
        "Try again: the model is still being loaded",
    ),
    (
        ("Failed to load image", "zero length image"),
        ImageError,
        "Send the picture as PNG or JPEG",
    ),
    (
        ("unexpectedly stopped", "process has terminated", "process no longer running"),
        RunnerCrashed,
        "Try again; if it stays so, the daemon's log says why (often too little memory)",
    ),
    (
        ("more system memory",),
        RunnerCrashed,
        "Close other programs, or install a smaller quant",
    ),
    (
        ("no space left",),
        DaemonError,
        "Free space in the daemon's models folder and run the same command again",
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
        while isinstance(value, dict):
            value = value.get("error", value.get("message"))
        if not isinstance(value, str):
            return ""
        text = value
    return " ".join(text.split())[:500] if not text.startswith("<") else ""


def _object(text: str, host: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise not_ollama(host)
    return value


def _parameters(text: str) -> dict[str, ParameterValue]:
    """Read the text that `show` makes of parameters: `name    value`, strings as Go quotes them."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        value = _go_value(rest.strip())
        if name == "stop":
            found.setdefault(name, []).append(value)
        elif name:
            found[name] = value
    try:
        return parameters(found)
    except UsageProblem:
        # A model that somebody else made may have parameters that this version does not know.
        return {n: tuple(v) if isinstance(v, list) else v for n, v in found.items()}


def _go_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
