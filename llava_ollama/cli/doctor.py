"""`doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.frame import command, global_options
from llava_ollama.errors import UsageProblem
from llava_ollama.findings import Finding

SOME_FAILED = 4
UNREACHABLE = 3


@command(epilog="JSON: {findings: [{check, status, detail, fix}]}.")
@global_options
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Look for what is wrong with this machine.

    Exit code 4 when something is, 3 when the daemon does not answer.
    """
    app = ctx.ensure_object(App)
    findings = list(examined(app))
    app.out.result({"findings": findings}, app.out.findings(findings))
    errors = {finding.check for finding in findings if finding.status == "error"}
    if "daemon" in errors:
        ctx.exit(UNREACHABLE)
    if errors:
        ctx.exit(SOME_FAILED)


def examined(app: App) -> Iterator[Finding]:
    """Yield what there is to say of this machine and its daemon."""
    from llava_ollama import catalog
    from llava_ollama.doctor import Doctor

    try:
        known = app.catalog
    except UsageProblem as exc:
        yield Finding("catalog", "error", exc.message, exc.hint or "")
        known = catalog.load()
    yield from Doctor(app.daemon, app.settings, known, app.records, app.ledger()).examine()
