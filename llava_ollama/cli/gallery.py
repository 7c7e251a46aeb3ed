"""`gallery`: a run as a page to look at."""

from __future__ import annotations

from pathlib import Path

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.frame import command, global_options
from llava_ollama.cli.watching import tell_of_the_rest

_PATH = click.Path(path_type=Path, readable=False)


@command(epilog="JSON: {folder, page, pictures, left}; left are answers still to come.")
@click.argument("run", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="The folder.  [default: RUN/gallery]")
@click.option("--open", "opened", is_flag=True, help="Open it in the browser.")
@global_options
@click.pass_obj
def gallery(app: App, run: Path, output: Path | None, *, opened: bool) -> None:
    """Write a page on which a run's pictures and answers are looked at.

    It is a folder that opens in any browser, without a server or a network: search, filters, the
    answers beside the original. Written again, it replaces the old one. Pictures are not copied:
    the page finds those beside the run by a relative path.
    """
    from llava_ollama import gallery as room
    from llava_ollama.batch.journal import Reading
    from llava_ollama.batch.thumbnails import Thumbnails

    base = run.absolute().parent if output is None else None
    with Reading(run) as journal, Thumbnails(journal.folder) as small:
        counts = journal.counts()
        made = room.build(
            journal.rows(),
            small,
            output or run / "gallery",
            title=run.absolute().name,
            base=base,
            total=counts.pictures,
            reporter=app.reporter,
        )
    app.out.result(
        {
            "folder": made.folder,
            "page": made.page,
            "pictures": made.pictures,
            "left": counts.unfinished,
        },
        f"wrote {made.page}: {made.pictures} {'picture' if made.pictures == 1 else 'pictures'}",
    )
    tell_of_the_rest(app.out, counts)
    if not opened:
        app.out.note("Open that file in a browser, or run the same command with `--open`")
    elif not _show(made.page):
        app.out.note("no browser was found on this machine: open that file in one")


def _show(page: Path) -> bool:
    import webbrowser

    return webbrowser.open(page.as_uri())
