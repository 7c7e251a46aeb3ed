"""`list`, `show` and `remove`: what is known, what is installed, and away with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from llava_ollama.catalog import Entry
from llava_ollama.cli.app import App
from llava_ollama.cli.complete import installed as complete_installed
from llava_ollama.cli.frame import command, global_options
from llava_ollama.cli.output import size
from llava_ollama.errors import DaemonError, UsageProblem
from llava_ollama.inventory import Installed


@command(
    "list",
    epilog="JSON: {catalog: [{model, quant, size, title, installed_as: [name]}], "
    "installed: [{name, size, ours, catalog, vision, damaged, package_digest}]}.",
)
@global_options
@click.pass_context
def list_models(ctx: click.Context) -> None:
    """List the catalog and what is installed.

    Without a daemon only the catalog is listed, and the exit code is 3.
    """
    from llava_ollama import inventory

    app = ctx.ensure_object(App)
    found: list[Installed] = []
    missing: DaemonError | None = None
    try:
        found = [
            dataclasses.replace(model, name=model.name.removesuffix(":latest"))
            for model in inventory.installed(app.daemon, app.catalog, app.records)
        ]
    except DaemonError as exc:
        missing = exc
    rows = [row for entry in app.catalog.entries.values() for row in _rows(entry, found)]
    app.out.result({"catalog": rows, "installed": found}, _list_text(app, rows, found))
    if missing is not None:
        app.out.error(missing.message, missing.hint)
        ctx.exit(missing.exit_code)


@command(
    epilog="JSON: {name, ours, catalog, package_digest, model, projector, template, "
    "system, parameters, capabilities, image_size}."
)
@click.argument("name", shell_complete=complete_installed)
@global_options
@click.pass_obj
def show(app: App, name: str) -> None:
    """Say which bytes and which words a model is made of."""
    from llava_ollama import inventory
    from llava_ollama.daemon import full_name

    full_name(name)
    with inventory.did_you_mean(app.daemon, name):
        shown = app.daemon.show(name)
    package = shown.package()
    data = {
        "name": name,
        "ours": inventory.is_ours(shown, app.catalog, app.records, app.daemon.key),
        "catalog": inventory.catalog_name(shown, app.catalog, app.records, app.daemon.key),
        "package_digest": package.digest() if package else None,
        "model": package.model if package else None,
        "projector": package.projector if package else None,
        "template": shown.template,
        "system": shown.system,
        "parameters": shown.parameters,
        "capabilities": shown.capabilities,
        "image_size": shown.image_size,
    }
    lines = [
        f"{'name':<14}{name}",
        f"{'catalog':<14}{data['catalog'] or 'not a catalog model'}",
        f"{'ours':<14}{'yes' if data['ours'] else 'no'}",
        f"{'package':<14}{data['package_digest'] or 'not one model and one projector'}",
        *(f"{role:<14}sha256:{data[role]}" for role in ("model", "projector") if data[role]),
        f"{'capabilities':<14}{', '.join(shown.capabilities)}",
        f"{'image size':<14}{_square(shown.image_size)}",
        *(
            f"{key:<14}{item}"
            for key, value in shown.parameters.items()
            for item in (value if isinstance(value, tuple) else (value,))
        ),
        *([f"{'system':<14}{shown.system}"] if shown.system else []),
        "template",
        *(f"  {line}".rstrip() for line in shown.template.rstrip("\n").split("\n")),
    ]
    app.out.result(data, "\n".join(lines))


@command(epilog="JSON: {removed: [name]}.")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_installed)
@click.option("--force", is_flag=True, help="Remove also what this tool did not install.")
@global_options
@click.pass_obj
def remove(app: App, names: tuple[str, ...], *, force: bool) -> None:
    """Remove an installed model."""
    from llava_ollama import inventory, presence, swap
    from llava_ollama.daemon import full_name

    app.recover()
    host = app.daemon.key
    for name in names:
        full_name(name)
        if presence.patiently(app.daemon, name) == "absent" and not presence.is_listed(
            app.daemon, name
        ):
            with inventory.did_you_mean(app.daemon, name):
                app.daemon.show(name)  # raises
    for name in names:
        if not force and presence.state(app.daemon, name) == "good":
            shown = app.daemon.show(name)
            if not inventory.is_ours(shown, app.catalog, app.records, host):
                raise UsageProblem(
                    f"`{name}` was not installed by this tool",
                    hint=f"Remove it with `--force`, or with `ollama rm {name}`",
                )
    for name in names:
        swap.remove(app.daemon, name, app.records)
        app.records.drop("installed", host, full_name(name))
    app.out.result({"removed": names}, "\n".join(f"removed {name}" for name in names))


def _square(side: int | None) -> str:
    return f"{side} x {side} pixels" if side else "not said by the daemon"


def _rows(entry: Entry, found: list[Installed]) -> list[dict[str, Any]]:
    return [
        {
            "model": entry.name,
            "quant": quant,
            "size": file.size + (entry.projector.size or 0) if file.size else None,
            "title": entry.title,
            "installed_as": sorted(m.name for m in found if m.catalog == f"{entry.name} {quant}"),
        }
        for quant, file in entry.quants.items()
    ]


def _list_text(app: App, rows: list[dict[str, Any]], found: list[Installed]) -> str:
    catalog = app.out.table(
        ["MODEL", "QUANT", "SIZE", "INSTALLED AS"],
        [
            [str(row["model"]), str(row["quant"]), size(row["size"] if isinstance(row["size"], int)
             else None), ", ".join(row["installed_as"]) or "-"]
            for row in rows
        ],
    )  # fmt: skip
    others = [model for model in found if not model.catalog]
    if not others:
        return catalog
    table = app.out.table(
        ["OTHER MODEL", "SIZE", "OURS", "VISION"],
        [
            [
                m.name,
                size(m.size),
                "yes" if m.ours else "no",
                "damaged" if m.damaged else "yes" if m.vision else "no",
            ]
            for m in others
        ],
    )
    return f"{catalog}\n\n{table}"
