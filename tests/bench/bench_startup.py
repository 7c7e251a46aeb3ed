"""How long the program takes to say what it is, against huggingface_hub's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.bench import Figure, compare

ROUNDS = 15


def measure() -> list[Figure]:
    figures = []
    programs = Path(sys.executable).parent
    for flag in ("--help", "--version"):
        ours, theirs = ([str(programs / "llava-ollama"), flag], [str(programs / "hf"), "--help"])
        for command in (ours, theirs):  # once unmeasured: bytecode is written
            _run(command)
        ratio, _ = compare(partial(_run, ours), partial(_run, theirs), rounds=ROUNDS)
        figures.append(Figure(f"`llava-ollama {flag}`", "`hf --help`", ratio, 0.2, ROUNDS))
    return figures


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
