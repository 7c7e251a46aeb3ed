"""`install` and `download`: files from a catalog, from the Hub or from disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.complete import models, quants
from llava_ollama.cli.frame import command, global_options
from llava_ollama.cli.output import Output, size
from llava_ollama.errors import UsageProblem

if TYPE_CHECKING:
    from llava_ollama.install import InstallPlan, InstallResult, PlannedPart, Wanted
    from llava_ollama.transfer import Name
    from llava_ollama.weights import Mending

_PATH = click.Path(path_type=Path, readable=False)
_NAME = click.Path(readable=False)
"""A path, or with `--repo` a name there: a text, which a shell completes as a path."""
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


def _sources(command: Any) -> Any:
    """Add the options that say which files are meant."""
    for decorate in (
        click.option("--revision", metavar="REV", help="Revision of `--repo` (default: main)."),
        click.option("--repo", metavar="OWNER/NAME", help="Hub repository of the two files."),
        click.option(
            "--mmproj-file",
            type=_NAME,
            metavar="FILE",
            help="A projector of your own (GGUF).",
        ),
        click.option(
            "--model-file", type=_NAME, metavar="FILE", help="A model of your own (GGUF)."
        ),
        click.option(
            "--dir", "folder", type=_FOLDER, help="Look for the files in this folder first."
        ),
        click.option(
            "--quant",
            metavar="QUANT",
            shell_complete=quants,
            help="Which quant, such as int4 or f16.",
        ),
        click.argument("model", required=False, shell_complete=models),
    ):
        command = decorate(command)
    return command


@command(
    epilog="JSON: {name, changed, package_digest, parts: [{role, source_digest, stored_digest, "
    "transfer, bytes_written, mended_digest}], seconds, check}; with --dry-run {wanted, "
    "host, existing, parts: [{role, file, digest, size, origin, path, to_download, transfer, cost, "
    "passed_over, mending: {source_digest, changes}}], modelfile, found, unproven, "
    "findings: [{check, status, detail, fix}]}."
)
@_sources
@click.option("--name", metavar="NAME", help="Name in Ollama (default: MODEL-QUANT).")
@click.option("--template", type=_PATH, help="Chat template (a Go template file).")
@click.option("--system", default="", help="System prompt that the model carries.")
@click.option(
    "--parameter",
    "given",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter such as num_ctx=8192; may be repeated.",
)
@click.option("--force", is_flag=True, help="Replace another model of the same name.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@click.option("--check", is_flag=True, help="Ask the model about a picture afterwards.")
@click.option("--keep-files", is_flag=True, help="Keep what was downloaded only to be sent.")
@click.option(
    "--transfer",
    type=click.Choice(["link", "upload", "pull"]),
    metavar="WAY",
    help="link, upload or pull (default: the cheapest).",
)
@click.option("--rehash", is_flag=True, help="Read also files known to be unchanged.")
@click.option(
    "--mend", is_flag=True, help="Mend the projector, so that all its vision tower is run."
)
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --mend: its trained blocks, where the catalog does not know.",
)
@global_options
@click.pass_obj
def install(
    app: App,
    /,
    model: str | None,
    quant: str | None,
    folder: Path | None,
    *,
    name: str | None,
    given: tuple[str, ...],
    system: str,
    template: Path | None,
    force: bool,
    dry_run: bool,
    check: bool,
    keep_files: bool,
    transfer: Name | None,
    rehash: bool,
    mend: bool,
    layers: int | None,
    **files: str | None,
) -> None:
    """Bring a model into Ollama.

    MODEL is a name of the catalog (`llava-ollama list`); without it, it is llava-llama3.
    """
    wanted = _wanted(app, model, quant, name, files, template)
    wanted = _mended(_with_words(wanted, system, given), name, layers, mend=mend)
    if not dry_run:
        app.recover()
    installer = app.installer(_folders(folder), only=transfer, rehash=rehash)
    plan = installer.plan(wanted)
    if dry_run:
        app.out.result(plan, _plan_text(app.out, plan))
        return
    result = installer.apply(plan, force=force, keep_files=keep_files)
    seen = _check(app, result.name) if check else None
    app.out.result({**vars(result), "check": seen}, "\n".join(_result_text(result, plan, seen)))


@command(epilog="JSON: {files: [{path, sha256, size, origin}]}.")
@_sources
@global_options
@click.pass_obj
def download(
    app: App,
    /,
    model: str | None,
    quant: str | None,
    folder: Path | None,
    **files: str | None,
) -> None:
    """Fetch a model's files without installing it.

    What is here already is checked and used where it is.
    """
    wanted = _wanted(app, model, quant, "unnamed", files, None)
    weights = app.weights(_folders(folder))
    pair = (wanted.model, wanted.projector)
    weights.check_room(weights.locate(file).missing for file in pair)
    found = []
    for file in pair:
        app.records.drop("transient", *file.key)
        found.append(weights.fetch(file))
    lines = [f"{local.path}  {size(local.size)}  sha256:{local.sha256}" for local in found]
    app.out.result({"files": found}, "\n".join(lines))


def _wanted(
    app: App,
    model: str | None,
    quant: str | None,
    name: str | None,
    files: dict[str, str | None],
    template: Path | None,
) -> Wanted:
    """Return what the options name: a model of the catalog, or two files."""
    import dataclasses

    from llava_ollama import install as library
    from llava_ollama.catalog import DEFAULT_MODEL
    from llava_ollama.modelfile import read_template

    text = read_template(template) if template else None
    if files["model_file"] is None and files["mmproj_file"] is None:
        if files["repo"] or files["revision"]:
            raise UsageProblem(
                "`--repo` names a repository, not its files",
                hint="Add `--model-file` and `--mmproj-file` with their names there",
            )
        wanted = library.from_catalog(app.catalog, model or DEFAULT_MODEL, quant, to=name)
        return dataclasses.replace(wanted, template=text) if text else wanted
    if model or quant:
        raise UsageProblem(
            "MODEL and `--quant` name catalog files, `--model-file` and `--mmproj-file` your own",
            hint="Give either the one or the other, and your own files a `--name`",
        )
    wanted = library.from_files(
        files["model_file"],
        files["mmproj_file"],
        name=name,
        repo=files["repo"],
        revision=files["revision"],
    )
    return dataclasses.replace(wanted, template=text) if text else wanted


def _with_words(wanted: Wanted, system: str, given: tuple[str, ...]) -> Wanted:
    import dataclasses

    from llava_ollama.package import parameters

    pairs: dict[str, Any] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageProblem(f"`{item}` is not KEY=VALUE", hint="For instance num_ctx=8192")
        pairs.setdefault(key, []).append(value)
    values = parameters({k: v if k == "stop" else v[-1] for k, v in pairs.items()})
    return dataclasses.replace(wanted, system=system, parameters={**wanted.parameters, **values})


def _mended(wanted: Wanted, name: str | None, layers: int | None, *, mend: bool) -> Wanted:
    """Return the same with its projector mended, if so wished, beside the published one's name."""
    import dataclasses

    from llava_ollama.planning import MENDED, mended

    if not mend:
        if layers:
            raise UsageProblem("`--layers` is for a projector to be mended", hint="Add `--mend`")
        return wanted
    return dataclasses.replace(mended(wanted, layers), name=name or wanted.name + MENDED)


def _folders(folder: Path | None) -> tuple[Path, ...]:
    """Return where to look first: `--dir`, then here, where the card's `wget` leaves its files."""
    return (*((folder,) if folder else ()), Path())


def _check(app: App, name: str) -> dict[str, str]:
    """Show the model a picture; return what was drawn and what it said.

    Raises:
        CheckFailed: the answer does not name the colour and the shape.
    """
    from llava_ollama.tiny.check import check

    llava = app.llava(name)
    drawn, said = check(llava)
    return {"drawn": drawn, "said": said}


def _plan_text(out: Output, plan: InstallPlan) -> str:
    from llava_ollama.preflight import remarks

    rows = [
        [part.role, part.file.name, size(part.size), part.origin,
         f"{part.transfer}?" if plan.unproven and part.transfer == "link" else part.transfer,
         *(size(count) if count else "-"
           for count in (part.cost.fetched, part.cost.read, part.cost.written))]
        for part in plan.parts
    ]  # fmt: skip
    table = out.table(["", "FILE", "SIZE", "FROM", "WAY", "FETCH", "READ", "WRITE"], rows)
    reasons = dict(pair for part in reversed(plan.parts) for pair in part.passed_over)
    asides = [f"not by {way}: {why}" for way, why in reasons.items()]
    if plan.unproven:
        asides.append(
            f"link?: nothing tells yet whether `{plan.unproven}` is the daemon's models folder. It "
            "is tried first; if it is not, the next way is taken, mostly upload, which reads and "
            "writes each byte"
        )
    asides += remarks(plan.findings)
    asides += [_mending_text(p, p.mending) for p in plan.parts if p.mending]
    state = {
        "absent": "is free",
        "equal": "has exactly this already: nothing to do",
        "different": "has another model; `--force` would replace it",
        "broken": "has a damaged model, which would be replaced",
    }[plan.existing]
    head = f"{plan.wanted.name} at {plan.host}: the name {state}"
    middle = "\n".join([table, *asides])
    return f"{head}\n\n{middle}\n\n{plan.modelfile.rstrip()}"


def _mending_text(part: PlannedPart, mending: Mending) -> str:
    """Say what a mended copy is made of, and what is different in it."""
    copy = f"sha256:{part.digest}" if part.digest else "its sha256 is known after the download"
    made = f"{part.role}: a mended copy of sha256:{mending.source_digest} is sent, {copy}"
    return "\n  ".join([made, *mending.changes])


def _result_text(
    result: InstallResult, plan: InstallPlan, seen: dict[str, str] | None
) -> list[str]:
    if not result.changed:
        lines = [f"{result.name} is installed already: nothing to do"]
    else:
        by = [part.transfer.replace("there", "already there") for part in result.parts]
        ways = " and ".join(dict.fromkeys(by))
        written = sum(part.bytes_written for part in result.parts)
        cost = f"{size(written)} written" if written else "nothing written"
        lines = [f"Installed {result.name} in {result.seconds:.1f} s: {ways}, {cost}"]
    for part in result.parts:
        kept = (
            ""
            if part.stored_digest in {part.source_digest, part.mended_digest}
            else (f", kept by the daemon as sha256:{part.stored_digest}")
        )
        mended = f", mended: sha256:{part.mended_digest}" if part.mended_digest else ""
        lines.append(f"  {part.role:<9}  sha256:{part.source_digest}{mended}{kept}")
    if seen:
        lines.append(f"Checked: drew {seen['drawn']}, it said: {seen['said']}")
    if result.changed:
        lines.append(f'Try it: ollama run {plan.wanted.name} "./picture.png Describe this image"')
    return lines
