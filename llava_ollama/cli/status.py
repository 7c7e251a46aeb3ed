"""`status`: how far a run is, from another terminal, at any time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.frame import command, global_options
from llava_ollama.cli.watching import span

if TYPE_CHECKING:
    from llava_ollama.batch.journal import Config, Counts
    from llava_ollama.batch.work import Row

RUN = click.Path(path_type=Path)
_TOLD, _LISTED = 10, 100
"""Failures that are shown, and those in JSON."""


@command(
    epilog="JSON: {run, under_way, model, model_digest, prompts, pictures, states: {pending, done, "
    "failed, retry, skipped, gone}, errors: {kind: count}, truncated, tokens, seconds, "
    "hosts: [{url, answers, tokens, seconds, level, tokens_per_s}], rate, sending, "
    "seconds_left, failures: [{path, id, prompt, kind, error}]}; failures are the first hundred."
)
@click.argument("run", type=RUN)
@global_options
@click.pass_obj
def status(app: App, run: Path) -> None:
    """Say how far a batch run is.

    It may be under way in another terminal, or have ended long ago.
    """
    from llava_ollama.batch.journal import Reading, place

    with Reading(run) as reading:
        config, counts = reading.config(), reading.counts()
        failures = reading.failures(_LISTED) if counts.states["failed"] else []
    under_way = place.under_way(run)
    data = {
        "run": str(run),
        "under_way": under_way,
        "model": config.model,
        "model_digest": config.model_digest,
        "prompts": [ask.prompt for ask in config.asks],
        **dataclasses.asdict(counts),
        "seconds_left": counts.seconds_left if under_way else None,
        "failures": [
            {
                "path": row.path,
                "id": row.custom_id,
                "prompt": row.prompt,
                "kind": row.error_kind,
                "error": row.error,
            }
            for row in failures
        ],
    }
    app.out.result(data, _text(app, config, counts, under_way=under_way))
    _tell(app, run, failures, counts.states["failed"])


def _text(app: App, config: Config, counts: Counts, *, under_way: bool) -> str:
    finished = "done" if not counts.unfinished else "to go on with"
    rows = [
        ["run", "under way" if under_way else finished],
        ["model", f"{config.model} ({config.model_digest[:12]})"],
        *(["prompt", ask.prompt] for ask in config.asks),
        ["pictures", f"{counts.pictures:,}"],
        *([state, f"{count:,}"] for state, count in counts.states.items() if count),
        *([f"failed: {kind}", f"{count:,}"] for kind, count in counts.errors.items()),
    ]
    if counts.truncated:
        rows.append(["cut off at their limit", f"{counts.truncated:,}"])
    if under_way and counts.seconds_left is not None:
        rows.append(["speed", f"{counts.rate:.1f}/s, {span(counts.seconds_left)} left"])
    if under_way:
        rows.append(["with hosts now", f"{counts.sending:,}"])
    for host in counts.hosts:
        level = f", {host.level} at a time" if host.level else ""
        rows.append([host.url, f"{host.answers:,} answers, {host.tokens:,} tokens{level}"])
    return app.out.table(rows[0], rows[1:])


def _tell(app: App, run: Path, failures: Sequence[Row], failed: int) -> None:
    if app.out.json:
        return
    for row in failures[:_TOLD]:
        which = f" ({row.custom_id})" if row.custom_id else ""
        app.out.note(f"{row.path}{which}: {row.error}")
    if failed > _TOLD:
        app.out.note(
            f"and {failed - _TOLD:,} more: `llava-ollama export {run} --format csv` has all"
        )
