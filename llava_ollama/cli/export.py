"""`export`: a run's answers in the forms in which others take them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.doctor import SOME_FAILED
from llava_ollama.cli.frame import command, global_options
from llava_ollama.cli.watching import tell_of_the_rest
from llava_ollama.export.interface import Existing, Format, Result

_PATH = click.Path(path_type=Path, readable=False)


@command(
    "export",
    epilog="JSON: {exports: [{format, files, written, skipped, appended, unchanged, failed, "
    "problems: [{path, what}]}], left}; counts are of files, problems the first hundred, and left "
    "the answers that are still to come.",
)
@click.argument("run", type=_PATH)
@click.option(
    "--format",
    "formats",
    type=click.Choice(get_args(Format)),
    required=True,
    multiple=True,
    metavar="FORMAT",
    help="txt, jsonl, csv, parquet, xmp or openai; may be repeated.",
)
@click.option(
    "-o",
    "--output",
    type=_PATH,
    metavar="PLACE",
    help="Write into this folder.  [default: beside the pictures (txt, xmp) or the run's folder]",
)
@click.option(
    "--existing",
    type=click.Choice(get_args(Existing)),
    default="skip",
    show_default=True,
    help="What to do with captions that are there.",
)
@click.option(
    "--xmp-name",
    type=click.Choice(["full", "stem"]),
    default="full",
    show_default=True,
    help="`photo.jpg.xmp`, or Adobe's `photo.xmp`.",
)
@click.option("--prompt", metavar="TEXT", help="Only the answers to this prompt.")
@global_options
@click.pass_context
def export(
    ctx: click.Context,
    run: Path,
    formats: tuple[Format, ...],
    *,
    output: Path | None,
    existing: Existing,
    xmp_name: Literal["full", "stem"],
    prompt: str | None,
) -> None:
    """Write a run's answers as sidecars or tables.

    txt and xmp are sidecars, `photo.txt` and `photo.jpg.xmp`, of pictures that were answered;
    with -o in the tree that the pictures have. In an xmp sidecar of another program the
    description and keywords are added and all else stays. jsonl, csv and parquet have a row for
    each picture and prompt, openai is a batch's output; they replace `answers.*` and
    `openai-*.jsonl` of an earlier export. Pictures are never touched, files appear whole, and the
    same run gives the same bytes. Exit code 4 when some sidecars could not be written.
    """
    from llava_ollama.batch.journal import Reading
    from llava_ollama.export import Options
    from llava_ollama.export import export as write

    app = ctx.ensure_object(App)
    with Reading(run) as reading:
        counts = reading.counts()
        options = Options(
            run,
            output,
            existing,
            xmp_full_name=xmp_name == "full",
            prompt=prompt,
            total=counts.total,
        )
        results = write(reading.rows, formats, options, app.reporter)
    data = {"exports": results, "left": counts.unfinished}
    app.out.result(data, "\n".join(map(_line, results)))
    for result in results:
        _tell(app, result)
    tell_of_the_rest(app.out, counts)
    if any(result.failed for result in results):
        ctx.exit(SOME_FAILED)


def _line(result: Result) -> str:
    if result.files:
        return f"{result.format}: {', '.join(result.files)}"
    counts = ("written", "appended", "unchanged", "skipped", "failed")
    said = [f"{getattr(result, name):,} {name}" for name in counts if getattr(result, name)]
    return f"{result.format}: {', '.join(said) or 'no picture was answered'}"


def _tell(app: App, result: Result) -> None:
    for problem in result.problems:
        app.out.note(f"{problem.path}: {problem.what}")
    if (more := result.failed - len(result.problems)) > 0:
        app.out.note(f"and {more:,} more")
