"""`compare`: the same pictures through two installed models."""

from __future__ import annotations

import os

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.complete import installed
from llava_ollama.cli.frame import command, global_options
from llava_ollama.errors import UsageProblem

_PATH = click.Path(readable=False)
_PAIR = 2


@command(epilog="JSON: {prompt, models, pictures: [{picture, answers, same}], different}.")
@click.argument("pictures", nargs=-1, required=True, type=_PATH, metavar="PICTURE...")
@click.option(
    "--model", "-m", "names", multiple=True, shell_complete=installed, help="One of the two models."
)
@click.option("--prompt", default="Describe this image", show_default=True, help="The question.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    metavar="N",
    help="End each answer after N tokens.",
)
@global_options
@click.pass_obj
def compare(
    app: App, pictures: tuple[str, ...], names: tuple[str, ...], prompt: str, max_tokens: int
) -> None:
    """Show what two models say of the same pictures.

    Without --model they are the model that is installed both as published and with --mend.
    """
    from llava_ollama import compare as library

    if names and len({*names}) != _PAIR:
        raise UsageProblem(
            f"two models are compared, not {len({*names})}",
            hint="Write `--model A --model B`, or leave both out",
        )
    if "-" in pictures:
        raise UsageProblem(
            "standard input gives a picture only once, and two models are asked",
            hint="Save the picture to a file",
        )
    paths = [os.path.expanduser(path) for path in pictures]  # noqa: PTH111 - Path eats half of `https://`
    names = names or library.both_forms(app.daemon, app.catalog, app.records)
    models = {name: app.llava(name) for name in names}
    options = {"num_predict": max_tokens}
    compared = library.compare(models, paths, prompt, options=options, reporter=app.reporter)
    different = sum(not item.same for item in compared)
    width = max(map(len, names))
    lines = []
    for item in compared:
        lines.append(f"{item.picture}: {'the same' if item.same else 'different'}")
        said = zip(names, item.answers, strict=True)
        lines += [f"  {name:<{width}}  {answer}" for name, answer in said]
    lines.append(f"{different} of {len(compared)} answers differ")
    told = {"prompt": prompt, "models": names, "pictures": compared, "different": different}
    app.out.result(told, "\n".join(lines))
