"""llama-server's API as pure functions: what to send, and what an answer means.

Nothing here talks to anybody. `engine/llamacpp.py` carries the bytes, in a plain and an async way.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from llava_ollama import prompts
from llava_ollama.catalog import suggestion
from llava_ollama.engine.interface import Answer, Chunk, Finish, Request, Times, Usage
from llava_ollama.errors import (
    DaemonBusy,
    DaemonError,
    DaemonUnreachable,
    ImageError,
    IncompleteAnswer,
    LlavaOllamaError,
    ModelLoading,
    UsageProblem,
)
from llava_ollama.package import PARAMETER_TYPES, parameters

ENGINE = "llama.cpp"
END_OF_TURN = "<|eot_id|>"
_PATH = "/completion"
_OK, _BAD_REQUEST, _UNAVAILABLE = 200, 400, 503
_NO_KEY, _NO_SUCH_PATH = (401, 403), (404, 405)
_SPECIAL = "<|start_header_id|><|end_header_id|><|eot_id|>"
"""Three tokens in a Llama-3 vocabulary, some twenty in any other."""

_NAMES = {"num_predict": "n_predict", "num_keep": "n_keep"}
"""Where llama-server's name is another than Ollama's (tools/server/README.md)."""
_GUIDANCE = {"x-guidance": {"whitespace_flexible": False, "lenient": True}}
"""For builds with llguidance, as xllamacpp's: white space without end is none of their business
otherwise, and a schema with a keyword that they do not know is dropped as a whole, silently."""
_FIXED_AT_START = {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap"}
"""How to load a model; here it is loaded already."""


@dataclass(frozen=True)
class Server:
    """Who is asked: the address, and how messages call it."""

    url: str
    called: str


@dataclass(frozen=True)
class Facts:
    """What a prompt depends on: the picture marker, and who writes `<|begin_of_text|>`."""

    marker: str
    begin_of_text: bool
    """True where the prompt must begin with it, since the server does not add it."""


@dataclass(frozen=True)
class Call:
    """A request to the server: GET without a body, else POST."""

    path: str
    body: Mapping[str, Any] | None = None

    @property
    def method(self) -> str:
        """Return HTTP's word for it."""
        return "GET" if self.body is None else "POST"


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    text: str


def look(server: Server) -> Generator[Call, Reply, Facts]:
    """Ask what must be known before the first prompt; yields calls and takes their replies.

    Raises:
        UsageProblem: the server has no projector, or its model is not a Llama-3.
        DaemonError: it is not a llama-server, or refuses, or is still loading.
    """
    props = _object(server, (yield Call("/props")))
    vision = props.get("modalities", {}).get("vision") if "modalities" in props else None
    if "default_generation_settings" not in props or vision is None:
        raise stranger(server)
    if not vision:
        raise UsageProblem(
            f"{server.called} has no projector, so its model sees no pictures",
            hint="Start it with `--mmproj FILE` beside `--model FILE`",
        )
    special = {"content": _SPECIAL, "parse_special": True, "add_special": False}
    if len(_tokens(server, (yield Call("/tokenize", special)))) != 3:  # noqa: PLR2004 - see _SPECIAL
        raise UsageProblem(
            f"the model of {server.called} has no Llama-3 vocabulary",
            hint="Use a LLaVA-Llama-3 model; for others install with `--template FILE` into Ollama",
        )
    # A model without `tokenizer.ggml.pre`, as it was published, gets no begin-of-text token.
    added = _tokens(server, (yield Call("/tokenize", {"content": "", "add_special": True})))
    # Before autumn 2025 the marker was this fixed word and `/props` did not name it.
    return Facts(props.get("media_marker") or "<__media__>", begin_of_text=not added)


def call(request: Request, facts: Facts, defaults: Mapping[str, Any]) -> Call:
    """Return the call that brings the answer, as a stream.

    Raises:
        UsageProblem: an option is not one of Ollama's.
    """
    marker = facts.marker
    messages = request.spoken([marker])
    text = prompts.llama3(messages, marker=marker, begin_of_text=facts.begin_of_text)
    pictures = [
        base64.b64encode(picture.data).decode()
        for message in request.messages
        for picture in message.pictures
    ]
    prompt: Any = {"prompt_string": text, "multimodal_data": pictures} if pictures else text
    held = {"json_schema": {**request.schema, **_GUIDANCE}} if request.schema is not None else {}
    options = _options({**defaults, **request.options})
    return Call(_PATH, {"prompt": prompt, "stream": True, **held, **options})


def is_answer(call: Call, status: int) -> bool:
    """Tell whether a response is to be read as a stream; all others are small and whole."""
    return call.path == _PATH and status == _OK


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in PARAMETER_TYPES:
            raise UsageProblem(
                f"`{name}` is not an option of a model",
                hint=suggestion(name, PARAMETER_TYPES, "The options are"),
            )
    sent: dict[str, Any] = {}
    for name, value in parameters({"stop": prompts.STOPS, **given}).items():
        if isinstance(value, tuple):
            # The published model names another end, so this word ends the turn whatever is asked.
            sent[name] = list(dict.fromkeys((*value, END_OF_TURN)))
        elif name not in _FIXED_AT_START:
            sent[_NAMES.get(name, name)] = value
    return sent


class Fold:
    """Makes chunks of the lines of a streamed answer, and remembers the text so far."""

    def __init__(self, server: Server, model_digest: str | None) -> None:
        self.text = ""
        self._complete = False
        self._server, self._digest = server, model_digest
        self._started = time.perf_counter()

    def feed(self, line: str) -> Chunk | None:
        """Return the chunk that `line` carries, if any.

        Raises:
            LlavaOllamaError: the server reports in the middle of the answer that it failed.
        """
        kind, _, data = line.partition(": ")
        if kind == "error":  # until 2025; since then it is data like any other
            raise refusal(self._server, Reply(500, data))
        if kind != "data" or data == "[DONE]":
            return None  # an empty line, or a comment that keeps the connection alive
        part = self._part(data)
        piece = part.get("content") or ""
        self.text += piece
        if not part.get("stop"):
            return Chunk(piece) if piece else None
        self._complete = True
        return Chunk(piece, self._answer(part))

    def end(self) -> None:
        """Tell that the stream has ended.

        Raises:
            IncompleteAnswer: its last part had not come.
        """
        if not self._complete:
            raise self.cut("the connection was closed")

    def cut(self, why: str) -> IncompleteAnswer:
        """Return the error for a stream that ended too early."""
        return IncompleteAnswer(
            f"the answer of {self._server.called} ended before its last part: {why}",
            hint="What arrived until then is in the error's `text`; ask again for the whole answer",
            text=self.text,
        )

    def _part(self, data: str) -> Mapping[str, Any]:
        try:
            part = json.loads(data)
        except ValueError as exc:
            raise self.cut("a line is not JSON") from exc
        if not isinstance(part, dict):
            raise self.cut("a line is not a JSON object")
        if "error" in part:
            raise refusal(self._server, Reply(500, data))
        return part

    def _answer(self, last: Mapping[str, Any]) -> Answer:
        timings = last.get("timings", {})
        # "word" and "eos" are the model's own end; `stopped_limit` is what 2024's servers say.
        limit = last.get("stop_type", "") == "limit" or last.get("stopped_limit") is True
        finish: Finish = "length" if limit else "stop"
        return Answer(
            text=self.text,
            finish=finish,
            usage=Usage(int(last.get("tokens_evaluated", 0)), int(last.get("tokens_predicted", 0))),
            times=Times(
                total=time.perf_counter() - self._started,
                load=0.0,
                prompt=float(timings.get("prompt_ms", 0.0)) / 1000,
                completion=float(timings.get("predicted_ms", 0.0)) / 1000,
            ),
            model_digest=self._digest,
            engine=ENGINE,
        )


def refusal(server: Server, reply: Reply) -> LlavaOllamaError:
    """Return the error that a reply other than 200 stands for."""
    error = _refusal(server, reply)
    if isinstance(error, DaemonError):
        error.status = reply.status
    return error


def _refusal(server: Server, reply: Reply) -> LlavaOllamaError:
    kind, sentence = _complaint(reply.text)
    if reply.status in _NO_KEY:
        return DaemonError(
            f"{server.called} asks for an API key",
            hint="Set `LLAMA_API_KEY` to the key that it was started with",
        )
    if sentence is None or reply.status in _NO_SUCH_PATH:
        return stranger(server)
    if reply.status == _UNAVAILABLE:
        return _not_now(server, sentence)
    return _refused(server, kind, sentence)


def _refused(server: Server, kind: str, sentence: str) -> LlavaOllamaError:
    if kind == "exceed_context_size_error":
        return DaemonError(
            f"{server.called} cannot hold this conversation: {sentence}",
            hint="Shorten the conversation, or start it with a larger context (`--ctx-size`)",
        )
    if "json schema" in sentence.lower() or "grammar" in sentence.lower():
        return UsageProblem(
            f"{server.called} cannot hold answers to this schema: {sentence}",
            hint="Make the schema simpler",
        )
    if "failed to load image" in sentence.lower():
        return ImageError(
            f"{server.called} cannot read a picture: {sentence}", hint="Send a PNG or JPEG picture"
        )
    return DaemonError(f"{server.called} refused the request: {sentence}", hint="Look at its log")


def _not_now(server: Server, sentence: str) -> DaemonError:
    if "loading" in sentence.lower():
        return ModelLoading(
            f"{server.called} is still loading its model", hint="Try again in a moment"
        )
    return DaemonBusy(f"{server.called} is busy: {sentence}", hint="Try again in a moment")


def may_know_another_marker(reply: Reply) -> bool:
    """Tell whether the server may have been restarted since `look`: its marker is random."""
    return reply.status == _BAD_REQUEST and "tokenize" in (_complaint(reply.text)[1] or "")


def _complaint(text: str) -> tuple[str, str | None]:
    """Return the type and the sentence of llama-server's error object; None for anything else."""
    try:
        error = json.loads(text)["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error.get("type", "")), error["message"].strip().rstrip(".")
    # Ollama's `error` is a string.
    return "", None


def stranger(server: Server) -> DaemonUnreachable:
    """Return the error for an address where something else answers."""
    return DaemonUnreachable(
        f"`{server.url}` answers, but not as a llama-server does",
        hint="Check the address; for an Ollama daemon give the model's name and its host instead",
    )


def _object(server: Server, reply: Reply) -> Mapping[str, Any]:
    if reply.status != _OK:
        raise refusal(server, reply)
    try:
        found = json.loads(reply.text)
    except ValueError as exc:
        raise stranger(server) from exc
    if not isinstance(found, dict):
        raise stranger(server)
    return found


def _tokens(server: Server, reply: Reply) -> list[Any]:
    tokens = _object(server, reply).get("tokens")
    if not isinstance(tokens, list):
        raise stranger(server)
    return tokens
