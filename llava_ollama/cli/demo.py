"""`demo`: the whole way on drawn pictures, through Ollama where one runs, else in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.frame import command, global_options
from llava_ollama.errors import CheckFailed, DaemonTimeout, DaemonUnreachable, EngineUnavailable

if TYPE_CHECKING:
    from llava_ollama.batch.hosts import Site
    from llava_ollama.client import Llava

_FOLDER = click.Path(path_type=Path, file_okay=False)


@command(epilog="JSON: {engine, pictures: [{picture, answer, right}], gallery}.")
@click.option(
    "--folder",
    type=_FOLDER,
    default=Path("demo-pictures"),
    show_default=True,
    help="Where the pictures are drawn.",
)
@global_options
@click.pass_obj
def demo(app: App, folder: Path) -> None:
    """Draw some pictures and have them described.

    With a daemon, the bundled tiny model is installed under a name of its own and removed again;
    without one, llama.cpp runs it in this process. Then the folder is described as a batch, and
    its gallery is written.
    """
    from llava_ollama.tiny import demo as library

    library.check(folder)  # before a model is loaded, let alone installed
    described = []
    with _tiny(app) as (llava, site, engine):
        app.out.note(f"tiny-llava through {engine}:")
        for item in library.describe(llava, folder):
            described.append(item)
            if not app.json:
                mark = "right" if item.right else "WRONG"
                app.out.result(None, f"{item.picture}: {item.answer}  [{mark}]")
        page = _album(app, folder, site())
    if app.json:
        app.out.result({"engine": engine, "pictures": described, "gallery": page})
    app.out.note(f"all of it as a batch, to be looked at in a browser: {page}")
    wrong = [item for item in described if not item.right]
    if wrong:
        raise CheckFailed(
            f"{len(wrong)} of {len(described)} pictures were described wrong",
            hint="`llava-ollama doctor` looks for the cause",
        )


def _album(app: App, folder: Path, site: Site) -> Path:
    """Describe the folder as a batch; return the page of its gallery."""
    from llava_ollama import gallery
    from llava_ollama.batch import local
    from llava_ollama.batch.journal import Reading
    from llava_ollama.batch.sources import Sources
    from llava_ollama.batch.thumbnails import Thumbnails
    from llava_ollama.client import DESCRIBE

    run = folder / "run"
    asks = local.asks([DESCRIBE])
    # An older demo's model may have been another: then there are the answers of both.
    batch = local.Batch(run, "tiny-llava", asks, app.settings.state, add=run.is_dir())
    sources = Sources([folder], asks=asks, leave_out=[run] if run.is_dir() else [])
    local.describe(batch, [site], sources)
    with Reading(run) as journal, Thumbnails(journal.folder) as small:
        made = gallery.build(journal.rows(), small, run / "gallery", base=folder)
    return run / "gallery" / made.page.name


@contextmanager
def _tiny(app: App) -> Iterator[tuple[Llava, Callable[[], Site], str]]:
    """Yield a client of the tiny model, the same for a batch, and the name of what runs it."""
    from llava_ollama.batch import hosts
    from llava_ollama.in_process import Which

    try:
        app.daemon.version()
    except (DaemonUnreachable, DaemonTimeout) as exc:
        say = app.out.note if isinstance(exc, DaemonTimeout) else app.out.detail
        say(exc.message)
        with _embedded(app) as llava:
            which = Which("tiny-llava")
            site = partial(hosts.embedded, which, reporter=app.reporter)
            yield llava, site, "llama.cpp in this process"
        return
    with _installed(app) as name:
        host = app.settings.host
        yield app.llava(name), partial(hosts.OllamaSite, name, host), f"Ollama at {host}"


def _embedded(app: App) -> Llava:
    try:
        return app.embedded("tiny-llava")
    except EngineUnavailable as exc:
        raise EngineUnavailable(
            f"neither an Ollama daemon at {app.settings.host} nor llama.cpp in this process can "
            "run the demo",
            hint=f"{exc.hint}, or start Ollama with `ollama serve`",
        ) from exc


@contextmanager
def _installed(app: App) -> Iterator[str]:
    """Install the tiny model under a name of its own for as long as the demo lasts."""
    from llava_ollama import install
    from llava_ollama.tiny import demo as library

    app.recover()
    installer = app.installer()
    with library.reserved(app.daemon, app.records) as name:
        wanted = install.from_catalog(app.catalog, "tiny-llava", None, to=name)
        installer.apply(installer.plan(wanted))
        yield name
