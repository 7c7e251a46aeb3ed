"""`ask` and `run`: pictures and a question in, an answer out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.complete import installed
from llava_ollama.cli.frame import command, global_options
from llava_ollama.cli.question import Question, model_options, read_schema, without_ollama
from llava_ollama.errors import UsageProblem

if TYPE_CHECKING:
    from llava_ollama.images import Decode

_PATH = click.Path(readable=False)
"""For the shell's completion; whether a picture can be read is said by its reader."""
_JSON = (
    "JSON: {text, finish, usage: {prompt_tokens, completion_tokens}, "
    "times: {total, load, prompt, completion} in seconds, model_digest, engine}."
)


@command(epilog=f"{_JSON[:-1]}; with --schema {{..., value, repaired}}.")
@click.argument("words", nargs=-1, required=True, type=_PATH, metavar="IMAGE... PROMPT")
@click.option("--model", "-m", shell_complete=installed, help="An installed model.")
@click.option("--system", help="System prompt.")
@click.option("--temperature", type=float, help="0 for the same answer every time.")
@click.option("--seed", type=int, help="For the same random choices every time.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="End the answer after N tokens.",
)
@without_ollama
@click.option(
    "--schema", metavar="FILE", type=_PATH, help="Answer with JSON that fits this JSON schema."
)
@click.option("--no-retry", is_flag=True, help="Do not ask a busy daemon again.")
@click.option("--trusted", is_flag=True, help="Let control tokens in the words act.")
@click.option(
    "--decode",
    type=click.Choice(("exact", "fast", "native")),
    default="exact",
    show_default=True,
    help="As in training, faster, or leave padding and resizing to the engine.",
)
@global_options
@click.pass_obj
def ask(
    app: App,
    words: tuple[str, ...],
    model: str | None,
    system: str | None,
    *,
    temperature: float | None,
    seed: int | None,
    max_tokens: int | None,
    embedded: str | None,
    server: str | None,
    schema: str | None,
    no_retry: bool,
    trusted: bool,
    decode: Decode,
) -> None:
    """Ask a question about pictures.

    An IMAGE is a file, or `-` for standard input. Without --model it is the one model of ours
    that is installed.
    """
    *pictures, prompt = words
    hint = 'Write it as `llava-ollama ask photo.jpg "Describe this image"`'
    for word in pictures:
        _check_is_path(word)
    if _is_picture(prompt):
        raise UsageProblem(f"the prompt is missing: `{prompt}` is a picture", hint=hint)
    if not pictures:
        raise UsageProblem("there is no picture before the prompt", hint=hint)
    options = model_options(temperature, seed, max_tokens)
    wanted = None if schema is None else read_schema(schema)
    question = Question(pictures, prompt, system, options, trusted=trusted, decode=decode)
    app.retry = not no_retry
    with app.asked(model, embedded=embedded, server=server) as llava, _meant(app, model):
        if wanted is None:
            question.put(app, llava)
        else:
            question.put_for_document(app, llava, wanted)


@command(epilog=_JSON)
@click.argument("name", shell_complete=installed)
@click.argument("words", nargs=-1, required=True, metavar='"PICTURE PROMPT"')
@global_options
@click.pass_obj
def run(app: App, name: str, words: tuple[str, ...]) -> None:
    """Ask with the picture's name in the prompt.

    The model card's own form: `run llava-llama3-int4 "xx.png Describe this image"`. Every word
    that is a picture on this machine is attached and taken out of the prompt.
    """
    from llava_ollama.client import DESCRIBE

    pictures, prompt = _split(" ".join(words))
    for picture in pictures:
        app.out.note(f"attached {picture}")
    if not pictures:
        app.out.note("no picture in the prompt")
    with app.asked(name) as llava, _meant(app, name):
        Question(pictures, prompt or DESCRIBE).put(app, llava)


def _split(text: str) -> tuple[list[str], str]:
    """Tell pictures from the prompt around them.

    Raises:
        UsageProblem: a word is named like a picture, but there is no such picture.
    """
    pictures: list[str] = []
    prompt = ""
    spans = [match.span() for match in re.finditer(r"\S+\s*", text)]
    while spans:
        picture, length = _longest_picture(text, spans)
        if length:
            pictures.append(picture)
        else:
            word = text[slice(*spans[0])]
            _check_missing(word.strip())
            prompt += word
        del spans[: length or 1]
    return pictures, prompt.strip()


def _longest_picture(text: str, spans: list[tuple[int, int]]) -> tuple[str, int]:
    """Return the picture that the words at `spans` begin with, and of how many words its path is.

    `my picture.png` is a path of two words; Ollama's own form has a backslash before the space.
    """
    for length in range(min(len(spans), _LONGEST), 0, -1):
        path = _bare(text[spans[0][0] : spans[length - 1][1]].strip())
        for spelled in (path, path.replace("\\ ", " ")):
            if _is_picture(spelled):
                return spelled, length
    return "", 0


def _check_missing(word: str) -> None:
    from llava_ollama.images import SUFFIXES

    if Path(_bare(word)).suffix.lower() in SUFFIXES:
        raise UsageProblem(
            f"there is no picture `{_bare(word)}`",
            hint="Check its path; one that is not absolute counts from the current folder",
        )


def _check_is_path(word: str) -> None:
    """Refuse what stands before the prompt and looks like a word of it."""
    path = os.path.expanduser(word)  # noqa: PTH111 - Path raises for an unknown user's home
    if (
        word == "-"
        or "://" in word
        or word[:5].lower() == "data:"
        or Path(word).suffix
        or os.path.lexists(path)
    ):
        return
    raise UsageProblem(
        f"there is no picture `{word}`",
        hint='Put the prompt in quotes: `llava-ollama ask photo.jpg "Describe this image"`',
    )


def _bare(word: str) -> str:
    """Return a word without the quotes and punctuation around it."""
    return word.lstrip("'\"`(").rstrip("'\"`),;:!?.")


_LONGEST = 12
"""Words in a path."""


def _is_picture(word: str) -> bool:
    from llava_ollama.images import looks_like_picture

    try:
        return looks_like_picture(Path(word).expanduser())
    except (OSError, ValueError, RuntimeError):
        return False


@contextmanager
def _meant(app: App, name: str | None) -> Iterator[None]:
    """Where the daemon does not know the named model, name the nearest that it has."""
    from llava_ollama import inventory

    if name is None:
        yield
        return
    with inventory.did_you_mean(app.daemon, name):
        yield
