"""Run the benchmarks named, or all of them."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench import Figure

NAMES = (
    *("startup", "ask", "pictures", "install", "transfer", "hashing", "memory"),
    *("journal", "testing", "pace", "rivals", "cluster", "gallery"),
)
RESULTS = Path(__file__).with_name("results.json")


def main(names: list[str]) -> int:
    figures: list[Figure] = []
    for name in names or NAMES:
        figures += importlib.import_module(f"tests.bench.bench_{name}").measure()
        for figure in figures[-1:]:
            sys.stderr.write(f"{name} done: {figure.what}: {figure.ratio:.2f}\n")
    sys.stdout.write("\n".join(figure.row() for figure in figures) + "\n")
    rows = {} if not names else {_key(row): row for row in json.loads(RESULTS.read_text())}
    rows |= {_key(row): row for row in map(asdict, figures)}
    RESULTS.write_text(json.dumps(list(rows.values()), indent=2) + "\n")
    importlib.import_module("tests.readme").write()
    return 0


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["what"], row["against"]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
