"""`render` and `mend`: commands that only make files."""

from __future__ import annotations

import os
from pathlib import Path

import click

from llava_ollama import whole
from llava_ollama.cli.app import App
from llava_ollama.cli.complete import models, quants
from llava_ollama.cli.frame import command, global_options
from llava_ollama.errors import UsageProblem

_PATH = click.Path(path_type=Path, readable=False)


@command(epilog="JSON: {modelfile, path}.")
@click.argument("model", required=False, shell_complete=models)
@click.option(
    "--quant", metavar="QUANT", shell_complete=quants, help="Which quant, such as int4 or f16."
)
@click.option("-o", "--output", type=_PATH, help="Write it to this file.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@global_options
@click.pass_obj
def render(
    app: App, model: str | None, quant: str | None, output: Path | None, *, force: bool
) -> None:
    """Print a model's Modelfile.

    It works with `ollama create -f` beside the model's two files.
    """
    from llava_ollama import install, modelfile
    from llava_ollama.catalog import DEFAULT_MODEL

    wanted = install.from_catalog(app.catalog, model or DEFAULT_MODEL, quant)
    text = modelfile.render(wanted.words())
    if output is None:
        app.out.result({"modelfile": text, "path": None}, text.rstrip("\n"))
        return
    write(output, text.encode(), force=force)
    app.out.result({"modelfile": text, "path": output}, f"wrote {output}")


@command(epilog="JSON: {path, changes, sha256, source_sha256, size}.")
@click.argument("file", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="Where the mended copy goes.")
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Blocks that a projector's vision tower was trained with.",
)
@click.option("--force", is_flag=True, help="Overwrite the file.")
@global_options
@click.pass_obj
def mend(app: App, file: Path, output: Path, *, layers: int | None, force: bool) -> None:
    """Complete a GGUF file's metadata; its tensors stay as they are.

    A projector gets the type that today's llama.cpp asks for, and its feature layer where engines
    would run too few of its blocks; a Llama-3 model its pre-tokenizer, end token and chat template.
    The catalog knows the depth of the files that it pins; of others `--layers` tells it.
    """
    from llava_ollama.weights import mended as copies

    mended = copies.write(app.weights(), file, output, layers=layers, overwrite=force)
    lines = [*mended.changes, f"wrote {output}"]
    copied = f"nothing to mend: {output} is a copy"
    app.out.result(mended, "\n".join(lines) if mended.changes else copied)


def write(path: Path, data: bytes, *, force: bool) -> None:
    """Write a new file; an existing one only with `force`."""
    try:
        # A device or a pipe is written to; renamed onto, it would be gone.
        if force and (path.is_file() or not path.exists()):
            _replace(path, data)
            return
        with path.open("wb" if force else "xb") as file:
            file.write(data)
    except FileExistsError as exc:
        raise UsageProblem(
            f"`{path}` is there already", hint="Overwrite it with `--force`"
        ) from exc
    except OSError as exc:
        raise UsageProblem(
            f"`{path}` cannot be written: {exc.strerror}", hint="Choose another file with `-o`"
        ) from exc


def _replace(path: Path, data: bytes) -> None:
    """Write over a file so that it is the old one or the new one, whole, at every instant."""
    # The file that a symbolic link points to, not the link.
    with whole.replacing(Path(os.path.realpath(path))) as file:
        file.write(data)
