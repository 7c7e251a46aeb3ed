"""`batch`: many pictures, and again the same command to go on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llava_ollama.cli.answering import Who
from llava_ollama.cli.app import App
from llava_ollama.cli.complete import installed
from llava_ollama.cli.doctor import SOME_FAILED
from llava_ollama.cli.frame import command, options_but_host
from llava_ollama.cli.question import model_options, read_schema, standard_input, without_ollama
from llava_ollama.errors import UsageProblem

if TYPE_CHECKING:
    from llava_ollama.batch.local import Batch
    from llava_ollama.batch.sources import Sources
    from llava_ollama.batch.work import Ask
    from llava_ollama.cli.answering import Describe

_PATH = click.Path(readable=False)
_RUN = click.Path(path_type=Path)
_MANY = click.IntRange(min=1)


@command(
    epilog="With --json one document a line: {event: resumed, settled, warned, host_changed or "
    "progress, ...}, and at the end JSON: {event: end, run, done, failed, retry, gone, copied, "
    "tokens, seconds, left, truncated, found: {skipped, gone, hidden, sidecars, unreadable, "
    "seen_before}}."
)
@click.argument("words", nargs=-1, type=_PATH, metavar="SOURCE... [PROMPT]")
@click.option("-o", "--run", "run", type=_RUN, metavar="RUN", help="The run's folder.  [required]")
@click.option("--prompt", "prompts", multiple=True, help="Ask this; may be repeated.")
@click.option(
    "--list",
    "lists",
    multiple=True,
    type=_PATH,
    metavar="FILE",
    help="Read names of pictures, lines or NUL-separated; `-` is standard input.",
)
@click.option("--model", "-m", shell_complete=installed, help="An installed model.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="ADDRESS",
    help="A daemon to ask; may be repeated.  [env: OLLAMA_HOST]",
)
@click.option("--system", help="System prompt.")
@click.option("--temperature", type=float, help="0 unless told otherwise.")
@click.option("--seed", type=int, help="For the same random choices every time.")
@click.option("--max-tokens", type=_MANY, metavar="N", help="End an answer after N tokens.")
@click.option("--schema", metavar="FILE", type=_PATH, help="Answer with JSON that fits this.")
@without_ollama
@click.option(
    "--ray",
    "address",
    metavar="ADDRESS",
    help="Have the nodes of a Ray cluster answer: `auto`, or `host:port` of its head.",
)
@click.option("--concurrency", type=_MANY, metavar="N", help="N questions at once, always.")
@click.option("--limit", type=_MANY, metavar="N", help="Stop after N pictures.")
@click.option("--sample", type=_MANY, metavar="N", help="Ask about N pictures drawn from all.")
@click.option("--retry-failed", is_flag=True, help="Ask again what has failed.")
@click.option("--add", is_flag=True, help="Add a further question to the run.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="End when no host has answered for so long, with exit code 3.",
)
@options_but_host
@click.pass_obj
def batch(
    app: App,
    words: tuple[str, ...],
    run: Path | None,
    prompts: tuple[str, ...],
    lists: tuple[str, ...],
    model: str | None,
    hosts: tuple[str, ...],
    *,
    system: str | None,
    temperature: float | None,
    seed: int | None,
    max_tokens: int | None,
    schema: str | None,
    embedded: str | None,
    server: str | None,
    address: str | None,
    concurrency: int | None,
    limit: int | None,
    sample: int | None,
    retry_failed: bool,
    add: bool,
    wait: float,
) -> None:
    """Ask about many pictures, and go on where it stopped.

    A SOURCE is a folder, a picture, or a file of requests (.jsonl). All is kept in the folder RUN:
    the same command goes on after Ctrl-C, a crash or a power cut, and takes in new pictures.
    """
    from llava_ollama.batch import local

    if run is None:
        raise UsageProblem("`--run` is missing", hint="Name a folder for the run: `-o run1`")
    options = model_options(temperature, seed, max_tokens)
    document = None if schema is None else read_schema(schema)
    if not 0 <= wait < float("inf"):
        raise UsageProblem(f"`{wait}` is not a number of seconds", hint="Give `--wait 600`, say")
    begun = local.begun_with(run)
    sources, asked = _split(words, prompts, lists, goes_on=begun is not None)
    asks = local.asks(asked, system, options, document)
    if begun is not None:
        model = model or (None if embedded or server else begun.model)
        asks = asks or begun.asks
    named, describe = Who(model, hosts, embedded, server, address).found(app, wait)
    wanted = local.Batch(
        run=run,
        model=named,
        asks=asks,
        state=app.settings.state,
        add=add,
        limit=limit,
        sample=sample,
        retry_failed=retry_failed,
        wait=wait,
        concurrency=concurrency,
    )
    _describe(app, wanted, describe, _sources(sources, lists, asks, run))


def _split(
    words: Sequence[str], prompts: Sequence[str], lists: Sequence[str], *, goes_on: bool
) -> tuple[list[str], list[str]]:
    """Tell sources from the prompt: the last word, unless `--prompt` has them all.

    A run that goes on knows what it asks: then the last word may be a source as well.
    """
    from llava_ollama.batch.sources import REQUESTS

    sources, asked = list(words), list(prompts)
    requests = sources and all(Path(word).suffix.lower() in REQUESTS for word in sources)
    known = goes_on and bool(sources) and _exists(sources[-1])
    if not asked and sources and not requests and not known:
        asked = [sources.pop()]
        if _exists(asked[0]):
            raise UsageProblem(
                f"the prompt is missing: `{asked[0]}` is a file or folder",
                hint='Write it as `llava-ollama batch pictures "Describe this image" -o run1`',
            )
    if not sources and not lists:
        raise UsageProblem(
            "no pictures are named",
            hint='Write it as `llava-ollama batch pictures "Describe this image" -o run1`',
        )
    return sources, asked


def _exists(word: str) -> bool:
    """Return whether there is such a file; pathlib raises where a prompt is long, or `~nobody`."""
    return os.path.exists(os.path.expanduser(word))  # noqa: PTH110, PTH111 - see above


def _sources(
    paths: Sequence[str], lists: Sequence[str], asks: tuple[Ask, ...], run: Path
) -> Sources:
    from llava_ollama.batch.sources import Sources

    expanded = [os.path.expanduser(path) for path in paths]  # noqa: PTH111 - as in `_exists`
    named = [standard_input() if name == "-" else name for name in lists]
    return Sources(expanded, lists=named, asks=asks, leave_out=[run])


def _describe(app: App, batch: Batch, describe: Describe, sources: Sources) -> None:
    from llava_ollama.batch.journal import Reading
    from llava_ollama.cli.watching import ended, watching

    with watching(app.out) as tell:
        summary = describe(batch, sources, tell)
    with Reading(batch.run) as reading:
        counts = reading.counts()
    if counts.total == counts.states["skipped"]:
        raise UsageProblem(
            "no picture was found",
            hint="Name a folder with pictures, pictures, or a file of requests (`.jsonl`)",
        )
    ended(app.out, batch.run, summary, counts, sources.found)
    if failed := counts.states["failed"]:
        app.out.error(
            f"{failed:,} of {counts.total:,} answers have failed",
            f"`llava-ollama status {batch.run}` counts why; the same command with "
            "`--retry-failed` asks again",
        )
        click.get_current_context().exit(SOME_FAILED)
