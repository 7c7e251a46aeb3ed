"""`verify` and `repair`: every byte that a daemon holds, proven and mended."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.complete import installed
from llava_ollama.cli.doctor import SOME_FAILED
from llava_ollama.cli.frame import command, global_options
from llava_ollama.cli.output import Output, size
from llava_ollama.errors import UsageProblem

if TYPE_CHECKING:
    from llava_ollama.pins import Known
    from llava_ollama.repair import Outcome
    from llava_ollama.store import NoStore, Store
    from llava_ollama.verify import LayerReport, ModelReport

UNCHECKED = 1
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@command(
    epilog="JSON: {models: [{name, verdict, problem, not_checked, "
    "layers: [{kind, sha256, size, state, catalog, detail}]}]}; verdict is sound, wrong or "
    "unchecked, state is present, missing, corrupt, rewritten or unknown."
)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=installed)
@click.option("--all", "everything", is_flag=True, help="Check all models of the daemon.")
@global_options
@click.pass_context
def verify(ctx: click.Context, names: tuple[str, ...], *, everything: bool) -> None:
    """Check that the daemon has the right bytes.

    Every file of the models is read and hashed; without a name, of all that this tool installed.
    Exit code 4 when anything is wrong, 1 when something could not be checked, 3 when the daemon
    does not answer.
    """
    from llava_ollama import store
    from llava_ollama.verify import verify as verify_models

    if names and everything:
        raise UsageProblem("names and `--all` exclude each other", hint="Give one of them")
    app = ctx.ensure_object(App)
    which = names or ("all" if everything else "ours")
    found = store.find(app.daemon, app.settings.models)
    reports = verify_models(_known(app), which, found, app.reporter, ledger=app.ledger())
    data = [{**vars(r), "name": r.short, "verdict": r.verdict} for r in reports]
    text = "\n\n".join(_report(app.out, report) for report in reports)
    app.out.result({"models": data}, text or "no model of ours is installed")
    verdicts = {report.verdict for report in reports}
    if "wrong" in verdicts:
        ctx.exit(SOME_FAILED)
    if "unchecked" in verdicts:
        ctx.exit(UNCHECKED)


@command(
    epilog="JSON: {blobs: [{sha256, kind, was, models, how, quarantine, problem, hint}]}; "
    "problem is empty for what was mended."
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=installed)
@click.option("--dir", "folder", type=_FOLDER, help="Look for the files in this folder first.")
@global_options
@click.pass_context
def repair(ctx: click.Context, names: tuple[str, ...], folder: Path | None) -> None:
    """Bring back the right bytes of a model.

    What `verify` would find wrong is moved into the folder `quarantine` beside the daemon's
    blobs and fetched again, from this machine if it is here. Exit code 4 when something could
    not be mended, 1 when something could not be checked.
    """
    from llava_ollama.repair import repair as repair_models
    from llava_ollama.store import NoStore
    from llava_ollama.supply import Supply

    app = ctx.ensure_object(App)
    app.recover()
    found = _store(app)
    weights = app.weights((*((folder,) if folder else ()), Path()))
    supply = Supply(
        _known(app),
        found,
        weights,
        app.ledger(),
        app.reporter,
        registry=app.settings.registry,
        no_pull=app.settings.no_pull,
    )
    outcomes = [
        dataclasses.replace(outcome, models=tuple(map(_short, outcome.models)))
        for outcome in repair_models(names, supply)
    ]
    text = "\n".join(_outcome(outcome) for outcome in outcomes)
    app.out.result({"blobs": outcomes}, text or "nothing to mend")
    if any(outcome.problem for outcome in outcomes):
        ctx.exit(SOME_FAILED)
    if isinstance(found, NoStore):
        app.out.note(f"no file could be read: {found.reason}. {found.hint}")
        ctx.exit(UNCHECKED)


def _short(name: str) -> str:
    """Return a name as it is written elsewhere: without the tag that is the default."""
    return name.removesuffix(":latest")


def _known(app: App) -> Known:
    from llava_ollama.pins import Known

    return Known.of(app.daemon, app.catalog, app.records)


def _store(app: App) -> Store | NoStore:
    """Return the store to write to; a daemon that lists nothing is asked with a small file."""
    from llava_ollama import store

    found = store.find(app.daemon, app.settings.models)
    if isinstance(found, store.NoStore) and found.unproven:
        return store.prove(app.daemon, found.unproven, app.records)
    return found


def _report(out: Output, report: ModelReport) -> str:
    name = report.short
    lines = [f"{name}: {report.verdict}"]
    if report.problem:
        lines.append(f"  {report.problem}")
    if report.layers:
        table = out.table(["LAYER", "SIZE", "STATE", "SHA256", "CATALOG"], map(_row, report.layers))
        lines += [f"  {line}" for line in table.split("\n")]
    lines += [
        f"  {layer.kind}: {layer.state}, {layer.detail}"
        for layer in report.layers
        if layer.detail and not (report.not_checked and layer.state == "unknown")
    ]
    if report.not_checked:
        lines.append(f"  Not checked: {report.not_checked}")
    if any(layer.bad for layer in report.layers):
        lines.append(f"  Fix: llava-ollama repair {name}")
    return "\n".join(lines)


def _row(layer: LayerReport) -> list[str]:
    known = size(layer.size) if layer.size is not None else "-"
    return [layer.kind, known, layer.state, f"{layer.sha256[:12]}…", layer.catalog or "-"]


def _outcome(outcome: Outcome) -> str:
    what = f"the {outcome.kind} sha256 {outcome.sha256[:12]}… of {', '.join(outcome.models)}"
    if outcome.problem:
        hint = f"\n  Hint: {outcome.hint}" if outcome.hint else ""
        return f"not mended: {what} stays {outcome.was}, since {outcome.problem}{hint}"
    kept = f"; the wrong bytes are now {outcome.quarantine}" if outcome.quarantine else ""
    return f"mended: {what}, by {outcome.how}{kept}"
