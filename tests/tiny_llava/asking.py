"""Two places where a pair of files is asked: llama.cpp in this process, and an Ollama daemon."""

from __future__ import annotations

import base64
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from llava_ollama.engine.embedded import start_embedded
from tests.daemons import running
from tests.daemons.running import RunningDaemon
from tests.installing import ONE_THREAD, install

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = 40
"""Tokens of an answer; the longest right one has 17."""
_PATIENCE = 120.0  # seconds: a daemon loads the model first
EMBEDDED = "llama.cpp in process"


@dataclass(frozen=True)
class Turn:
    """What a role says; user or assistant or system."""

    role: str
    text: str


class Asker(Protocol):
    """A place that answers at temperature 0."""

    def chat(self, turns: list[Turn], picture: bytes | None) -> str:
        """Return the answer; a PNG or JPEG goes before the text of the first user's turn."""

    def prompt(self, template: str, content: str, picture: bytes) -> str:
        """Return the answer to a content in a template with `{}` where it goes."""


@dataclass(frozen=True)
class Embedded:
    """llama-server's API in this process: its own chat template, or a prompt as it is."""

    client: httpx.Client
    marker: str

    def chat(self, turns: list[Turn], picture: bytes | None) -> str:
        """Ask `/v1/chat/completions`, which fills in the template in the model's file."""
        messages: list[dict[str, Any]] = [
            {"role": turn.role, "content": turn.text} for turn in turns
        ]
        if picture is not None:
            first = next(one for one in messages if one["role"] == "user")
            image = {
                "type": "image_url",
                "image_url": {"url": f"data:image/png;base64,{_b64(picture)}"},
            }
            first["content"] = [image, {"type": "text", "text": first["content"]}]
        body = {"messages": messages, "temperature": 0, "max_tokens": LONGEST}
        said = _json(self.client.post("/v1/chat/completions", json=body))
        return str(said["choices"][0]["message"]["content"])

    def prompt(self, template: str, content: str, picture: bytes) -> str:
        """Ask `/completion`."""
        text = template.replace("{}", self.marker + content)
        prompt = {"prompt_string": text, "multimodal_data": [_b64(picture)]}
        body = {"prompt": prompt, "temperature": 0, "n_predict": LONGEST}
        return str(_json(self.client.post("/completion", json=body))["content"])


@dataclass(frozen=True)
class Daemon:
    """An Ollama daemon with the pair as a model of this name."""

    client: httpx.Client
    model: str
    others: dict[str, str] = field(default_factory=dict)
    """By template: the name of the model that has it."""

    def chat(self, turns: list[Turn], picture: bytes | None) -> str:
        """Ask `/api/chat`."""
        return self._chat(self.model, turns, picture)

    def prompt(self, template: str, content: str, picture: bytes) -> str:
        """Ask a second model of the same files that has the template.

        A template in the request itself has no place for a picture in 0.34.4: "Failed to tokenize
        prompt".
        """
        if template not in self.others:
            name = f"{self.model}-{len(self.others)}"
            form = (
                f"{{{{ range .Messages }}}}{template.replace('{}', '{{ .Content }}')}{{{{ end }}}}"
            )
            body = {"model": name, "from": self.model, "template": form, "stream": False}
            _json(self.client.post("/api/create", json=body))
            self.others[template] = name
        return self._chat(self.others[template], [Turn("user", content)], picture)

    def _chat(self, model: str, turns: list[Turn], picture: bytes | None) -> str:
        messages: list[dict[str, Any]] = [
            {"role": turn.role, "content": turn.text} for turn in turns
        ]
        if picture is not None:
            next(one for one in messages if one["role"] == "user")["images"] = [_b64(picture)]
        options = {"temperature": 0, "num_predict": LONGEST, **ONE_THREAD}
        body = {"model": model, "stream": False, "options": options, "messages": messages}
        return str(_json(self.client.post("/api/chat", json=body))["message"]["content"])


@contextmanager
def embedded(model: Path, projector: Path) -> Iterator[Asker]:
    """Load the pair into this process."""
    with tempfile.TemporaryDirectory() as folder:
        engine = start_embedded(model, projector, cache=Path(folder), threads=1)
        headers = {"Authorization": f"Bearer {engine.api_key}"}
        with (
            closing(engine),
            httpx.Client(base_url=engine.url, headers=headers, timeout=_PATIENCE) as client,
        ):
            yield Embedded(client, str(_json(client.get("/props"))["media_marker"]))


@contextmanager
def daemon(version: str, model: Path, projector: Path) -> Iterator[Asker]:
    """Start the Ollama of `tests/daemons` with the pair in it."""
    binary = running.find(version)
    assert binary is not None, f"Ollama {version} is not built: run `make daemons`"
    with tempfile.TemporaryDirectory() as folder:
        # A model for each wrong template, and none of them loaded twice.
        more = {"OLLAMA_MAX_LOADED_MODELS": "16"}
        started = RunningDaemon(version, Path(folder) / "daemon", binary, more=more).start()
        try:
            name = install(started.host, Path(folder), "tiny", model=model, projector=projector)
            with httpx.Client(base_url=started.host, timeout=_PATIENCE) as client:
                yield Daemon(client, name)
        finally:
            started.stop()


@contextmanager
def opened(place: str, model: Path, projector: Path) -> Iterator[Asker]:
    """Open a place by name: `EMBEDDED`, or the version of an Ollama."""
    with (
        embedded(model, projector) if place == EMBEDDED else daemon(place, model, projector)
    ) as asker:
        yield asker


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _json(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == httpx.codes.OK, response.text
    found: dict[str, Any] = response.json()
    return found
