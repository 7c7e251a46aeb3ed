"""`ask` and `run`: pictures and a question in, an answer out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.complete import installed
from llava_ollama.cli.frame import global_options
from llava_ollama.errors import UsageProblem

if TYPE_CHECKING:
    from llava_ollama.client import Llava

_JSON = "JSON: {text, finish, usage, times, model_digest, engine}."


@click.command(epilog=_JSON)
@click.argument("words", nargs=-1, required=True, metavar="IMAGE... PROMPT")
@click.option("--model", "-m", shell_complete=installed, help="An installed model.")
@click.option("--system", help="System prompt.")
@click.option("--temperature", type=float, help="0 for the same answer every time.")
@click.option("--seed", type=int, help="For the same random choices every time.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="End the answer after so many.")
@click.option("--embedded", metavar="MODEL", help="Run this catalog model here, without Ollama.")
@click.option("--server", metavar="URL", help="Ask a llama-server instead of Ollama.")
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
) -> None:
    """Ask a question about pictures.

    An IMAGE is a file, or `-` for standard input. Without --model it is the one model of ours
    that is installed.
    """
    *pictures, prompt = words
    if not pictures or _is_picture(prompt):
        raise UsageProblem(
            "the prompt is missing: the last word is a picture"
            if _is_picture(prompt)
            else "there is no picture before the prompt",
            hint='Write it as `llava-ollama ask photo.jpg "Describe this image"`',
        )
    given = {"temperature": temperature, "seed": seed, "num_predict": max_tokens}
    options = {key: value for key, value in given.items() if value is not None}
    with app.asked(model, embedded=embedded, server=server) as llava:
        _answer(app, llava, pictures, prompt, system=system, options=options)


@click.command(epilog=_JSON)
@click.argument("name", shell_complete=installed)
@click.argument("words", nargs=-1, required=True, metavar='"PICTURE PROMPT"')
@global_options
@click.pass_obj
def run(app: App, name: str, words: tuple[str, ...]) -> None:
    """Ask with the picture's name in the prompt.

    The model card's own form: `run llava-llama3-int4 "xx.png Describe this image"`. Every word that is a picture on this machine is attached and taken out of the prompt.
    """
    from llava_ollama.client import DESCRIBE

    pictures, rest = _split(words)
    for picture in pictures:
        app.out.note(f"attached {picture}")
    with app.asked(name) as llava:
        _answer(app, llava, pictures, " ".join(rest) or DESCRIBE)


def _split(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Tell pictures from words.

    Raises:
        UsageProblem: a word is named like a picture, but there is no such picture.
    """
    pictures: list[str] = []
    rest: list[str] = []
    # A whole argument may be a path with spaces in it.
    parts = [[w] if _is_picture(w) else w.split() for w in words]
    for word in (word for part in parts for word in part):
        bare = word.strip("'\"`,;")
        if _is_picture(bare):
            pictures.append(bare)
        elif Path(bare).suffix.lower() in _ENDINGS:
            raise UsageProblem(
                f"there is no picture `{bare}`",
                hint="Check its path; to speak of it without showing it, use `llava-ollama ask`",
            )
        else:
            rest.append(word)
    return pictures, rest


_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def _is_picture(word: str) -> bool:
    from llava_ollama.images import looks_like_picture

    try:
        return looks_like_picture(Path(word).expanduser())
    except (OSError, ValueError, RuntimeError):
        return False


def _answer(
    app: App,
    llava: Llava,
    pictures: list[str],
    prompt: str,
    *,
    system: str | None = None,
    options: dict[str, float] | None = None,
) -> None:
    """Ask, and print the answer: whole with `--json`, else as it is made."""
    paths = [p if p == "-" else str(Path(p).expanduser()) for p in pictures]
    if app.json:
        app.out.result(llava.ask(paths, prompt, system=system, options=options))
        return
    answer = None
    for chunk in llava.stream(paths, prompt, system=system, options=options):
        app.out.piece(chunk.text)
        answer = chunk.answer or answer
    app.out.piece("\n")
    if answer and answer.finish == "length":
        app.out.note("the answer was cut off at its limit")
    if answer:
        app.out.detail(
            f"{answer.usage.prompt_tokens} prompt tokens, {answer.usage.completion_tokens} "
            f"answer tokens, {answer.times.total:.2f} s, package {answer.model_digest}"
        )
