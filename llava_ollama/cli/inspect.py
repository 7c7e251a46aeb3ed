"""`inspect`: what a GGUF file is, before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.frame import command, global_options
from llava_ollama.cli.output import Output, size

if TYPE_CHECKING:
    from llava_ollama.gguf.summary import Inspected, Summary

_PATH = click.Path(path_type=Path, readable=False)


@command(
    epilog="JSON: {files: [{path, summary, findings: [{check, status, detail, fix}]}], pairing}; "
    "pairing is a finding or null."
)
@click.argument("files", nargs=-1, required=True, type=_PATH)
@global_options
@click.pass_context
def inspect(ctx: click.Context, files: tuple[Path, ...]) -> None:
    """Say what GGUF files are, and whether they are sound.

    Only headers are read. Of two files it says whether they are a model and its projector.
    Exit code 1 when something is an error.
    """
    from llava_ollama.gguf.summary import inspect as inspect_files

    app = ctx.ensure_object(App)
    found = inspect_files(files)
    parts = [_text(app.out, file) for file in found.files]
    if found.pairing is not None:
        parts.append(app.out.findings([found.pairing]))
    app.out.result(found, "\n\n".join(parts))
    if any(finding.status == "error" for finding in found.findings):
        ctx.exit(1)


def _text(out: Output, file: Inspected) -> str:
    lines = [str(file.path)]
    if file.summary is not None:
        lines += [f"  {what:<14}{said}" for what, said in _lines(file.summary) if said]
    if file.findings:
        lines.append(out.findings(file.findings))
    elif file.summary is not None:
        lines.append(f"  {'findings':<14}none")
    return "\n".join(lines)


def _lines(said: Summary) -> list[tuple[str, str]]:
    """Return what there is to tell, in the order of interest."""
    side = said.image_size
    run = (
        ""
        if said.blocks_run in {said.blocks, None}
        else f", of which engines run {said.blocks_run}"
    )
    return [
        ("kind", said.kind),
        ("name", said.name or ""),
        ("architecture", said.architecture or "not named"),
        ("projector", said.projector_type or ("no type named" if side else "")),
        ("quant", said.file_type),
        ("size", f"{size(said.size)}, GGUF version {said.version}"),
        ("tensors", f"{said.tensors:,}, {said.elements / 1e6:,.1f} million numbers"),
        ("context", f"{said.context_length:,} tokens" if said.context_length else ""),
        ("width", f"{said.embedding_length:,}" if said.embedding_length else ""),
        ("vocabulary", f"{said.vocabulary}, {said.tokens:,} tokens" if said.vocabulary else ""),
        ("image size", f"{side} x {side} pixels" if side else ""),
        ("blocks", f"{said.blocks}{run}" if said.blocks else ""),
        ("mended from", f"sha256 {said.mended_from}" if said.mended_from else ""),
    ]
