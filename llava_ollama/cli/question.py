"""A question as the command line has it: put to a model, and its answer printed."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.bars import waiting
from llava_ollama.cli.complete import models
from llava_ollama.errors import InvalidAnswer, UsageProblem

if TYPE_CHECKING:
    from io import BufferedReader

    from llava_ollama.client import Llava
    from llava_ollama.engine.interface import Answer, Chunk
    from llava_ollama.images import Decode
    from llava_ollama.schema import Schema


def without_ollama(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name somebody else than a daemon who is to answer."""
    embedded = click.option(
        "--embedded",
        metavar="MODEL[:QUANT]",
        shell_complete=models,
        help="Run this catalog model here, without Ollama.",
    )
    server = click.option("--server", metavar="URL", help="Ask a llama-server instead of Ollama.")
    return embedded(server(command))


def model_options(
    temperature: float | None, seed: int | None, max_tokens: int | None
) -> dict[str, float]:
    """Return the model options that were given, by Ollama's names."""
    given = {"temperature": temperature, "seed": seed, "num_predict": max_tokens}
    return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class Question:
    """Pictures by their paths, and what is asked about them."""

    pictures: list[str]
    prompt: str
    system: str | None = None
    options: Mapping[str, float] | None = None
    trusted: bool = False
    decode: Decode = "exact"

    def put(self, app: App, llava: Llava) -> None:
        """Print the answer: whole with `--json`, else as it is made."""
        paths, how = self._paths(), self._how()
        if app.json:
            with waiting(app.reporter, f"waiting for {app.asking}"):
                answered = llava.ask(paths, self.prompt, **how)
            app.out.result(answered)
            return
        with waiting(app.reporter, f"waiting for {app.asking}") as arrived:
            chunks = llava.stream(paths, self.prompt, **how)
            answer = _printed(app, chunks, arrived)
        if answer and answer.finish == "length":
            app.out.note("the answer was cut off at its limit")
        if answer:
            app.out.detail(
                f"{answer.usage.prompt_tokens} prompt tokens, {answer.usage.completion_tokens} "
                f"answer tokens, {answer.times.total:.2f} s, package {answer.model_digest}"
            )

    def put_for_document(self, app: App, llava: Llava, schema: Schema) -> None:
        """Print the document that is answered: JSON in any case, the whole answer with `--json`."""
        paths = self._paths()
        try:
            with waiting(app.reporter, f"waiting for {app.asking}"):
                found = llava.extract(paths, schema, self.prompt, **self._how())
        except InvalidAnswer as exc:
            app.out.note(f"{app.asking} said: {exc.text}")
            raise
        if app.json:
            answer = dataclasses.asdict(found.answer)
            app.out.result({**answer, "value": found.value, "repaired": found.repaired})
        else:
            dataclasses.replace(app.out, json=True).result(found.value)

    def _how(self) -> dict[str, Any]:
        names = ("system", "options", "trusted", "decode")
        return {name: getattr(self, name) for name in names}

    def _paths(self) -> list[str]:
        """Return where the pictures are, once it is known that what is said can be sent."""
        for what, text in (("prompt", self.prompt), ("system prompt", self.system or "")):
            if not text.isascii() and text != text.encode(errors="ignore").decode():
                hint = "Check the terminal's locale"
                raise UsageProblem(f"the {what} is not UTF-8 text", hint=hint)
        # Path eats half of `https://`.
        return [os.path.expanduser(picture) for picture in self.pictures]  # noqa: PTH111


def _printed(app: App, chunks: Iterator[Chunk], arrived: Callable[[], None]) -> Answer | None:
    """Print an answer as it is made, and end its line, come what may."""
    answer, text = None, ""
    try:
        for chunk in chunks:
            arrived()
            app.out.piece(chunk.text)
            text += chunk.text
            answer = chunk.answer or answer
    finally:
        if text and not text.endswith("\n"):
            app.out.piece("\n")
    return answer


def read_schema(path: str) -> Schema:
    """Return the JSON schema in a file that the user named."""
    from llava_ollama import schema

    return schema.load(os.path.expanduser(path))  # noqa: PTH111 - Path raises for an unknown home


def standard_input() -> BufferedReader:
    """Return standard input, to be read as bytes.

    Raises:
        UsageProblem: whoever has called this program has closed it.
    """
    if sys.stdin is None:
        raise UsageProblem(
            "standard input is closed", hint="Send names to it: `find . -print0 | ... --list -`"
        )
    return cast("BufferedReader", sys.stdin.buffer)
