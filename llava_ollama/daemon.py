"""The admin side of the Ollama API: what is installed, blobs, create, copy, delete.

httpx is used directly, since ollama-python has no `HEAD` on blobs and no upload with progress, and
drops `projector_info`, `system` and `capabilities` from its replies. Every error of the daemon or
of the way to it becomes one of ours here; `engine/ollama.py` goes through the same door.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_ollama import modelfile
from llava_ollama.daemon_errors import (
    CONNECT_TIMEOUT,
    connecting,
    damaged,
    door,
    failure,
    is_passing,
    not_ollama,
    pause_asked_for,
)
from llava_ollama.errors import DaemonError, RunnerCrashed, UsageProblem
from llava_ollama.package import ParameterValue
from llava_ollama.settings import DEFAULT_TIMEOUT, is_loopback, same_daemon_key
from llava_ollama.shown import Listed, Shown

if TYPE_CHECKING:
    import httpx

__all__ = ["CREATE_TIMEOUT", "Daemon", "Listed", "Shown", "full_name"]

CREATE_TIMEOUT = 3600.0
"""Seconds without a word from `create`: daemons 0.30 to 0.34.0 rewrite 16 GB in silence."""
_TRIES, _BLINK = 3, 0.02
"""Times that a request is sent, where patience is asked for or another model goes; its seconds."""
_LONGEST_REPLY = 64 << 20
"""Bytes; a `show` with the 128,000 tokens of Llama-3 has about 3 MB."""
_NAME = re.compile(
    r"(?:(?P<host>[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349})/)?"
    r"(?:(?P<namespace>[A-Za-z0-9_][A-Za-z0-9_-]{0,79})/)?"
    r"(?P<model>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}))?"
)


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


class Daemon:
    """One Ollama daemon, by its base URL (`settings.parse_host`)."""

    def __init__(
        self,
        host: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        create_timeout: float = CREATE_TIMEOUT,
    ) -> None:
        self.host = host
        self._timeout = timeout
        self._create_timeout = create_timeout

    @property
    def key(self) -> str:
        """What records of this daemon are filed under; the same for all its loopback names."""
        return same_daemon_key(self.host)

    @cached_property
    def _http(self) -> httpx.Client:
        import httpx

        with connecting(self.host):
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
        if not isinstance(models, list) or not all(isinstance(m, dict) for m in models):
            raise not_ollama(self.host)
        return [Listed.read(model) for model in models]

    def show(self, name: str, *, vocabulary: bool = False) -> Shown:
        """Return what the daemon says of the model `name`; with its control tokens if asked.

        Raises:
            ModelNotInstalled: there is none.
            ModelBroken: its manifest or a layer cannot be read.
        """
        body = {"model": name, **({"verbose": True} if vocabulary else {})}
        reply = self._call("POST", "/api/show", json=body, model=name)
        if "capabilities" not in reply:
            raise DaemonError(
                f"the daemon at {self.host} does not say what its models can do",
                hint="It is older than 0.6.4: update Ollama",
            )
        return Shown.read(name, reply)

    def models_folder(self, name: str) -> Path | None:
        """Return the daemon's models folder, as the Modelfile of the model `name` tells it.

        It is a path on the daemon's machine, which may be another one.
        """
        reply = self._call("POST", "/api/show", json={"model": name}, model=name)
        for source in modelfile.sources(str(reply.get("modelfile", ""))):
            path = Path(source)
            if path.parent.name == "blobs":
                return path.parent.parent
        return None

    def vocabulary(self, name: str) -> frozenset[str]:
        """Return the tokens of the model `name`, as its file lists them."""
        body = {"model": name, "verbose": True}
        info = self._call("POST", "/api/show", json=body, model=name).get("model_info") or {}
        return frozenset(str(token) for token in info.get("tokenizer.ggml.tokens") or ())

    def has_blob(self, digest: str) -> bool:
        """Whether the daemon holds the blob with this sha256."""
        with door(self.host), self._answer("HEAD", f"/api/blobs/sha256:{digest}") as response:
            status = response.status_code
        if status in {200, 404}:
            return status == 200  # noqa: PLR2004 - HTTP
        raise failure(status, "", self.host)

    def upload(self, digest: str, size: int, chunks: Iterable[bytes]) -> None:
        """Send a blob. Ask `has_blob` first: for one that is there the daemon hangs up early.

        `chunks` are gone through again where a server before the daemon asks for that.

        Raises:
            DaemonError: the daemon could not keep it, or its sha256 is another.
        """
        import httpx

        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        try:
            with (
                door(self.host),
                self._answer(
                    "POST", f"/api/blobs/sha256:{digest}", content=chunks, headers=headers
                ) as response,
            ):
                said = self._read(response)
        except DaemonError as exc:
            # Another upload of the same blob finished first: the daemon answers and hangs up.
            if isinstance(exc.__cause__, httpx.NetworkError | httpx.RemoteProtocolError) and (
                self.has_blob(digest)
            ):
                return
            raise
        if response.status_code not in {200, 201}:
            raise failure(response.status_code, said, self.host)

    def create(
        self,
        name: str,
        *,
        files: Mapping[str, str],
        template: str,
        system: str,
        parameters: Mapping[str, ParameterValue],
    ) -> Generator[str]:
        """Register blobs (file name → sha256) under `name`; yield the daemon's status lines.

        Most failures of `create` arrive as a line inside an HTTP 200; they are raised here.
        """
        body = {
            "model": name,
            "files": {file: f"sha256:{digest}" for file, digest in files.items()},
            "template": template,
            "parameters": dict(parameters),
            **({"system": system} if system else {}),
        }
        done = False
        for reply in self._stream("/api/create", body):
            if status := str(reply.get("status", "")):
                done = done or status == "success"
                yield status
        if not done:
            raise self._broke_off(f"creating `{name}`")

    def pull(self, name: str, *, insecure: bool = False) -> Generator[dict[str, Any]]:
        """Have the daemon fetch `name` from its registry; yield its progress as it says it.

        A blob's progress has `digest`, `total` and, once it has begun, `completed`, in bytes.
        """
        done = False
        for reply in self._stream("/api/pull", {"model": name, "insecure": insecure}):
            done = done or reply.get("status") == "success"
            yield reply
        if not done:
            raise self._broke_off(f"pulling `{name}`")

    def copy(self, source: str, destination: str) -> None:
        """Give the model `source` a second name, in place of what had it before."""
        body = {"source": source, "destination": destination}
        self._call("POST", "/api/copy", json=body, model=source)

    def delete(self, name: str) -> None:
        """Remove a name, and the blobs that no other name needs."""
        self._call("DELETE", "/api/delete", json={"model": name}, model=name)

    def unload(self, name: str) -> None:
        """Have the daemon drop a model from its memory, if it is there."""
        self._call("POST", "/api/generate", json={"model": name, "keep_alive": 0}, model=name)

    def _stream(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any]]:
        """Yield a reply line by line; an error before it or in one of its lines is raised."""
        import httpx

        timeout = httpx.Timeout(max(self._timeout, self._create_timeout), connect=CONNECT_TIMEOUT)
        with (
            door(self.host),
            self._answer("POST", path, json=body, timeout=timeout) as response,
        ):
            if response.status_code != 200:  # noqa: PLR2004 - HTTP
                raise failure(response.status_code, self._read(response), self.host)
            for line in response.iter_lines():
                reply = _object(line, self.host) if line.strip() else {}
                if "error" in reply:
                    raise failure(500, line, self.host)
                yield reply

    def _broke_off(self, doing: str) -> DaemonError:
        return DaemonError(
            f"the daemon at {self.host} stopped in the middle of {doing}",
            hint="Look at its log, and run the same command again",
        )

    def _call(self, method: str, path: str, *, json: Any = None, model: str = "") -> dict[str, Any]:
        with door(self.host), self._answer(method, path, json=json) as response:
            text = self._read(response)
        if response.status_code != 200:  # noqa: PLR2004 - HTTP
            if path == "/api/version":
                raise not_ollama(self.host)
            error = failure(response.status_code, text, self.host, model)
            # "unexpected EOF" is a runner's elsewhere; here it is a manifest that was cut off.
            vague = type(error) in {DaemonError, RunnerCrashed}
            if path == "/api/show" and response.status_code == 500 and vague:  # noqa: PLR2004
                raise damaged(model, error)
            raise error
        return _object(text, self.host) if text else {}

    @contextmanager
    def _answer(self, method: str, path: str, **more: Any) -> Iterator[httpx.Response]:
        """Send a request and yield its answer; of one that succeeds nothing is read yet."""
        import httpx

        for left in reversed(range(_TRIES)):
            with self._http.stream(method, path, **more) as response:
                answer, pause = response, pause_asked_for(response.status_code, response.headers)
                if response.status_code in {400, 500}:
                    answer = httpx.Response(response.status_code, text=self._read(response))
                    pause = _BLINK if is_passing(answer.text) else None
                if pause is None or not left:
                    yield answer
                    return
            time.sleep(pause)

    def _read(self, response: httpx.Response) -> str:
        """Return the reply's text; what goes on without end is no daemon's."""
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _LONGEST_REPLY:
                raise not_ollama(self.host)
        return body.decode(errors="replace")


def _object(text: str, host: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise not_ollama(host)
    return value
