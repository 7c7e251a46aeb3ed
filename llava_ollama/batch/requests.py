"""Lines of request files: JSONL of our own, and OpenAI's batch files; and the pictures in them.

A line that says nothing that can be asked becomes an entry that has failed, with its reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from llava_ollama.batch.journal.changes import Entry
from llava_ollama.batch.work import Ask, Item
from llava_ollama.errors import ImageError

LONGEST_LINE = 512 * 1024**2
"""Bytes; a picture of the largest size that is read, in base64, has less."""
_KEYS = frozenset({"image", "path", "prompt", "system", "options", "id"})
_OPTIONS = {
    "temperature": "temperature",
    "seed": "seed",
    "top_p": "top_p",
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
_BODY = frozenset({"model", "messages", "stop", "response_format", "stream", "n", "user"})
_URLS = frozenset({"/v1/chat/completions"})


class _Bad(ValueError):
    """Why a line cannot be asked."""


@dataclass(frozen=True)
class Defaults:
    """What a line that does not say otherwise is asked."""

    asks: tuple[Ask, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class _Line:
    """A line of a file: its bytes' place, and what it says."""

    file: str
    offset: int
    said: Mapping[str, Any]


def parse(file: str, offset: int, line: bytes, defaults: Defaults) -> Entry:
    """Return what one line of the request file `file` asks."""
    custom_id = ""
    try:
        said = _object(line)
        is_openai = "custom_id" in said or "body" in said
        custom_id = _text(said, "custom_id" if is_openai else "id") or ""
        read = _openai if is_openai else _own
        return read(_Line(file, offset, said), custom_id, defaults)
    except _Bad as exc:
        return Entry(file, custom_id, offset, state="failed", reason=str(exc), error_kind="request")


def read_source(item: Item) -> bytes:
    """Return the bytes of an item's picture: a file, or what a line of a request file carries.

    Raises:
        ImageError: it cannot be read.
    """
    from llava_ollama.images import sources

    if item.offset is None:
        return _bytes(sources.read(Path(item.path))[0])
    try:
        with Path(item.path).open("rb") as file:
            file.seek(item.offset)
            picture = _carried(_object(file.readline(LONGEST_LINE)))
    except (OSError, _Bad) as exc:
        raise ImageError(
            f"the picture at byte {item.offset} of `{item.path}` cannot be read: {exc}",
            hint="The file has changed since; run the same command again",
        ) from exc
    return _bytes(sources.read(picture)[0])


def _bytes(read: object) -> bytes:
    if isinstance(read, bytes):
        return read
    raise ImageError("the picture is not a file's bytes")


def _carried(said: Mapping[str, Any]) -> str:
    """Return the `data:` URI in a line."""
    if "body" in said:
        source = _turn(_messages(_body(said)))[1]
    else:
        source = _text(said, "image") or _text(said, "path") or ""
    if not _is_data(source):
        raise _Bad("there is none in the line")
    return source


def _is_data(source: str) -> bool:
    return source[:5].lower() == "data:"


def _object(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise _Bad("the line is not JSON") from exc
    if not isinstance(said, dict):
        raise _Bad("the line is not a JSON object")
    return said


def _own(line: _Line, custom_id: str, defaults: Defaults) -> Entry:
    strange = sorted(line.said.keys() - _KEYS)
    if strange:
        raise _Bad(f"the line has the unknown key `{strange[0]}`")
    source = _text(line.said, "image") or _text(line.said, "path")
    if not source:
        raise _Bad("the line names no picture: it needs `image` or `path`")
    return _entry(line, custom_id, source, tuple(_own_asks(line.said, defaults)))


def _own_asks(said: Mapping[str, Any], defaults: Defaults) -> Iterator[Ask]:
    prompt, system = _text(said, "prompt"), _text(said, "system")
    options = said.get("options", {})
    if not isinstance(options, dict):
        raise _Bad("`options` is not a JSON object")
    if prompt is None and system is None and not options:
        if not defaults.asks:
            raise _Bad("the line has no `prompt`, and none was given for all")
        return
    if prompt is not None:
        yield Ask(prompt, system, {**defaults.options, **options})
        return
    for ask in defaults.asks:
        yield Ask(ask.prompt, system or ask.system, {**ask.options, **options}, ask.schema)
    if not defaults.asks:
        raise _Bad("the line has no `prompt`, and none was given for all")


def _openai(line: _Line, custom_id: str, defaults: Defaults) -> Entry:
    if line.said.get("method", "POST") != "POST" or line.said.get("url") not in _URLS:
        raise _Bad(f"`{line.said.get('url')}` is not `POST /v1/chat/completions`")
    body = _body(line.said)
    messages = _messages(body)
    system = _system(messages)
    prompt, source = _turn(messages)
    ask = Ask(prompt, system, {**defaults.options, **_options(body)}, _schema(body))
    return _entry(line, custom_id, source, (ask,))


def _entry(line: _Line, custom_id: str, source: str, asks: tuple[Ask, ...]) -> Entry:
    """Return the entry of a picture: the line itself where the picture is in it."""
    if _is_data(source):
        return Entry(line.file, custom_id, line.offset, asks)
    return Entry(_path(source, line.file), custom_id, asks=asks)


def _path(source: str, file: str) -> str:
    try:
        scheme = urlsplit(source).scheme.lower() if "://" in source else ""
    except ValueError as exc:
        raise _Bad(f"`{source}` is no address: {exc}") from exc
    if scheme in {"http", "https"}:
        raise _Bad(f"`{source}` is on the network, and pictures are not fetched")
    if scheme == "file":
        # file://localhost/a and file:///a name the same; what else may be escaped is bytes.
        source = os.fsdecode(unquote_to_bytes(source.partition("://")[2].removeprefix("localhost")))
    if "\0" in source:
        raise _Bad("the picture's path has a NUL in it")
    return os.path.normpath(os.path.join(os.path.dirname(file), source))  # noqa: PTH118, PTH120


def _body(said: Mapping[str, Any]) -> Mapping[str, Any]:
    body = said.get("body")
    if not isinstance(body, dict):
        raise _Bad("the line has no `body`")
    return body


def _messages(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise _Bad("`messages` is not a list of messages")
    roles = [one.get("role") for one in messages]
    if roles not in (["user"], ["system", "user"], ["developer", "user"]):
        raise _Bad("`messages` are not one of the user's, with one of the system before it or not")
    return messages


def _system(messages: Sequence[Mapping[str, Any]]) -> str | None:
    if len(messages) == 1:
        return None
    content = messages[0].get("content")
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(content, str):
        raise _Bad("the system's message has no text")
    return content


def _turn(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the text and the picture of the user's turn."""
    content = messages[-1].get("content")
    parts = content if isinstance(content, list) else []
    pictures = [one for one in parts if isinstance(one, dict) and one.get("type") == "image_url"]
    if len(pictures) != 1:
        raise _Bad(f"the user's message has {len(pictures)} pictures, and one is asked about")
    address = pictures[0].get("image_url")
    url = address.get("url") if isinstance(address, dict) else address
    if not isinstance(url, str) or not url:
        raise _Bad("`image_url` has no `url`")
    return _joined([one for one in parts if one is not pictures[0]]), url


def _joined(parts: Sequence[Any]) -> str:
    texts = [one.get("text") if isinstance(one, dict) else one for one in parts]
    if not all(isinstance(text, str) for text in texts):
        raise _Bad("a message has a part that is neither text nor a picture")
    return "\n".join(map(str, texts))


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    strange = sorted(body.keys() - _OPTIONS.keys() - _BODY)
    if strange:
        raise _Bad(f"`{strange[0]}` is not supported")
    if body.get("n", 1) != 1:
        raise _Bad("`n` is not 1")
    found: dict[str, Any] = {}
    for theirs, ours in _OPTIONS.items():
        value = body.get(theirs)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _Bad(f"`{theirs}` is not a number")
        found[ours] = value
    if (stop := body.get("stop")) is not None:
        found["stop"] = [stop] if isinstance(stop, str) else stop
    return found


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    wanted = body.get("response_format")
    if wanted is None or wanted == {"type": "text"}:
        return None
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        named = wanted.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if isinstance(schema, dict):
            return schema
    raise _Bad("`response_format` is neither text nor a `json_schema` with its `schema`")


def _text(said: Mapping[str, Any], key: str) -> str | None:
    value = said.get(key)
    if value is None or isinstance(value, str):
        return value
    raise _Bad(f"`{key}` is not a text")
