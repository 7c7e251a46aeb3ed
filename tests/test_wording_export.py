"""What `export` says when it cannot: one sentence, one hint, the exit code, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rows import journal

WITHOUT = (
    "import sys; sys.modules['pyarrow'] = None\n"
    "from llava_ollama.cli import main; main(prog_name='llava-ollama')"
)
CASES = {
    "a shared caption": (
        ("--format", "jsonl", "--format", "txt"),
        "`{folder}/a.jpg` and `{folder}/a.png` would share `{folder}/a.txt`",
        "Rename one of them, or export `--format jsonl`, where each has a row",
        2,
    ),
    "a shared sidecar": (
        ("--format", "xmp", "--xmp-name", "stem"),
        "`{folder}/a.jpg` and `{folder}/a.png` would share `{folder}/a.xmp`",
        "Leave out `--xmp-name stem`: sidecars then have the pictures' whole names",
        2,
    ),
    "a place that is a file": (
        ("--format", "csv", "-o", "file"),
        "`file` is not a folder",
        "Choose another folder with `-o`",
        2,
    ),
    "a prompt that was never asked": (
        ("--format", "txt", "--prompt", "How?"),
        "the run never asked `How?`",
        "It asked `Describe this image`",
        2,
    ),
    "no pyarrow": (
        ("--format", "parquet"),
        "`parquet` needs pyarrow, which is not installed",
        "Run `pip install 'llava-ollama[parquet]'`, or export `--format jsonl`",
        1,
    ),
    "a table that cannot be written": (
        ("--format", "jsonl", "-o", "held"),
        "`held/answers.jsonl` cannot be written: Is a directory",
        "Choose another folder with `-o`",
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_said(name: str, tmp_path: Path):
    options, message, hint, code = CASES[name]
    folder = tmp_path / "here"
    (folder / "held" / "answers.jsonl").mkdir(parents=True)
    (folder / "file").touch()
    journal(folder / "run", [(folder / "a.jpg", "A cat."), (folder / "a.png", "A dog.")])
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "export", "run", *options],
        cwd=folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"Error: {message}\nHint: {hint}\n".replace("{folder}", str(folder))
    assert done.stderr == said
    assert done.returncode == code
    assert not [p for p in folder.rglob("*") if p not in before and "journal" not in p.name]
