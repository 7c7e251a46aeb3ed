"""The README's generated parts: made from the program, compared with the README.

    python -m tests.readme            # fail when the README is stale
    python -m tests.readme --write    # write it anew (`make readme`)

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import click
from click.testing import CliRunner

from llava_ollama import catalog, settings
from llava_ollama.cli import COMMANDS, main
from llava_ollama.cli.output import size
from tests.bench import Figure

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
_PART = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def text() -> str:
    """Return the README as it should be."""
    return _PART.sub(lambda m: m[1] + PARTS[m[2]]() + m[3], README.read_text(encoding="utf-8"))


def write() -> None:
    README.write_text(text(), encoding="utf-8")


def _help() -> str:
    shown = CliRunner().invoke(main, ["--help"], prog_name="llava-ollama", terminal_width=88)
    return f"```\n{shown.output}```\n"


def _json() -> str:
    rows = ["| command | `--json` prints |", "|---|---|"]
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        if command.epilog and "JSON:" in command.epilog:
            shape = " ".join(command.epilog.partition("JSON:")[2].split()).rstrip(".")
            rows.append(f"| `{name}` | `{shape}` |")
    return "\n".join(rows) + "\n"


def _variables() -> str:
    rows = [f"| `{name}` | {what} |" for name, what in settings.VARIABLES.items()]
    return "\n".join(["| variable | what it sets |", "|---|---|", *rows]) + "\n"


def _catalog() -> str:
    rows = ["| model | quant | model file | projector | total |", "|---|---|---|---|---|"]
    for entry in catalog.load().entries.values():
        for quant, file in entry.quants.items():
            total = file.size + (entry.projector.size or 0) if file.size else None
            files = f"`{file.name}` | `{entry.projector.name}`"
            shown = size(total) if total else "about 17 GB"
            rows.append(f"| `{entry.name}` | `{quant}` | {files} | {shown} |")
    return "\n".join(rows) + "\n"


def _bench() -> str:
    results = ROOT / "tests" / "bench" / "results.json"
    figures = [Figure(**row) for row in json.loads(results.read_text(encoding="utf-8"))]
    rows = ["| what | against | ratio | bar |", "|---|---|---|---|"]
    return "\n".join([*rows, *(figure.row() for figure in figures)]) + "\n"


PARTS: Mapping[str, Callable[[], str]] = {
    "help": _help,
    "json": _json,
    "variables": _variables,
    "catalog": _catalog,
    "bench": _bench,
}


def check() -> int:
    if text() == README.read_text(encoding="utf-8"):
        return 0
    sys.stderr.write("README.md is stale: run `make readme`\n")
    return 1


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    else:
        raise SystemExit(check())
