"""`look`: a picture as the model sees it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.complete import installed
from llava_ollama.cli.files import write
from llava_ollama.cli.frame import command, global_options
from llava_ollama.errors import UsageProblem
from llava_ollama.images import CLIP_L_SIDE, Decode, Vision, prepare
from llava_ollama.images.square import LARGEST

_OTHERS = {".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}
"""Suffixes of other formats than the one that is written."""

_PATH = click.Path(path_type=Path, readable=False)


@command(epilog="JSON: {picture, path, width, height, notes, steps}.")
@click.argument("picture", type=click.Path(readable=False))
@click.option("-o", "--output", type=_PATH, help="The PNG file.  [default: PICTURE.seen.png, here]")
@click.option("--model", "-m", shell_complete=installed, help="For this installed model's eyes.")
@click.option(
    "--size",
    type=click.IntRange(1, LARGEST),
    default=CLIP_L_SIDE,
    show_default=True,
    metavar="N",
    help="The side of the square that a model sees, without --model.",
)
@click.option(
    "--decode",
    type=click.Choice(get_args(Decode)),
    default="exact",
    show_default=True,
    help="See `ask`.",
)
@click.option("--as-trained", is_flag=True, help="Neither turn it nor keep its transparency.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@global_options
@click.pass_obj
def look(
    app: App,
    picture: str,
    output: Path | None,
    model: str | None,
    *,
    size: int,
    decode: Decode,
    as_trained: bool,
    force: bool,
) -> None:
    """Write down what a model sees of a picture.

    It says what was done on the way. No daemon is needed but for --model; without it the square
    is that of CLIP-L, and so of LLaVA-Llama-3.
    """
    target = output or Path(f"{_stem(picture)}.seen.png")
    if target == Path("-") or target.suffix.lower() in _OTHERS:
        raise UsageProblem(f"`{target}` is not a PNG file's name", hint="Name it `….png`")
    path = os.path.expanduser(picture)  # noqa: PTH111 - Path eats half of `https://`
    vision = _vision(app, model) if model else Vision(size)
    prepared = prepare(path, vision, decode=decode, as_trained=as_trained)
    write(target, prepared.data, force=force)
    seen = f"wrote {target}: {prepared.width} x {prepared.height} pixels"
    described = {
        "picture": picture,
        "path": target,
        "width": prepared.width,
        "height": prepared.height,
        "notes": prepared.notes,
        "steps": prepared.steps,
    }
    app.out.result(described, "\n".join([*(prepared.steps or ["taken as it is"]), seen]))


def _vision(app: App, model: str) -> Vision:
    from llava_ollama import inventory

    with inventory.did_you_mean(app.daemon, model):
        return app.llava(model).vision()


def _stem(picture: str) -> str:
    return "picture" if picture == "-" or picture[:5].lower() == "data:" else Path(picture).stem
