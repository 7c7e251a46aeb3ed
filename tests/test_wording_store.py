"""What `verify` and `repair` say of bytes that they cannot mend, and where each message is held.

A daemon of a few replies stands before a models folder that is made by hand: no real one can be
brought to lack the words of a model that it runs.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

import llava_ollama
from llava_ollama import errors
from llava_ollama.cli import main
from llava_ollama.daemon import Daemon
from llava_ollama.store import NoStore, find
from tests.stand_ins import BARE, SEEING, stand_in
from tests.test_wording import AS_ANYONE

MEDIA = "application/vnd.ollama.image."


@dataclass(frozen=True)
class Case:
    """What is wrong with the blobs of the model `x`, and what `repair x` says of it."""

    name: str
    layers: tuple[str, ...]
    """Kinds; the last one is corrupt."""
    message: str
    hint: str


CASES = (
    Case(
        "no source",
        ("projector", "model"),
        "no file with sha256 {digest}… is known",
        "Name the folder that has it with `--dir`",
    ),
    Case(
        "words that are lost",
        ("model", "template"),
        "what the daemon wrote for `x` cannot be made again",
        "Install the model again with `--force`",
    ),
    Case(
        "other bytes again",
        ("model", "projector", "template"),
        "what was brought does not have the right bytes",
        "Look after the disk, and run it again",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_cannot_be_mended_is_told_and_stays(case: Case, tmp_path: Path):
    with _daemon(tmp_path / "models", case.layers) as host:
        before = _contents(tmp_path / "models")
        call = ["repair", "x", "--host", host]
        done = CliRunner().invoke(main, call, prog_name="llava-ollama")
    assert done.stdout == _said(case)
    assert done.exit_code == 4
    assert _contents(tmp_path / "models") == before


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path):
    models = tmp_path / "models"
    case = Case(
        "shut",
        ("model", "projector"),
        f"the wrong bytes cannot be moved away: `{models}` is read-only",
        "Run it as the user that the daemon runs as, or with `sudo -E`",
    )
    with _daemon(models, case.layers) as host:
        (models / "blobs").chmod(0o500)
        command = [sys.executable, "-c", AS_ANYONE, "repair", "x", "--host", host]
        try:
            done = subprocess.run(
                command, env={**os.environ}, capture_output=True, text=True, check=False
            )
        finally:
            (models / "blobs").chmod(0o700)
    assert done.stdout == _said(case)
    assert done.returncode == 4


def test_a_manifest_that_cannot_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    with _daemon(tmp_path / "models", None) as host:
        done = CliRunner().invoke(main, ["repair", "x", "--host", host], prog_name="llava-ollama")
    assert done.stderr == (
        "Error: the manifest of `x` cannot be used: it has no layers\n"
        "Hint: Install the model again with `--force`\n"
    )
    assert done.exit_code == 1


def test_a_daemon_that_cannot_read_its_only_model_says_not_where_it_is(tmp_path: Path):
    replies = {**BARE, "/api/tags": {"models": [{"name": "x:latest"}]}}
    with stand_in(replies) as host:
        daemon = Daemon(host)
        found = find(daemon, [tmp_path])
        daemon.close()
    assert found == NoStore(
        f"no model at {host} says in which folder it is, and the folders that are known here "
        "have others",
        "Name the daemon's models folder with `OLLAMA_MODELS`, or install a model first",
    )


def _said(case: Case) -> str:
    digest = _sha256(case.layers[-1])[:12]
    return (
        f"not mended: the {case.layers[-1]} sha256 {digest}… of x stays corrupt, since "
        f"{case.message.format(digest=digest)}\n  Hint: {case.hint}\n"
    )


@contextmanager
def _daemon(models: Path, layers: tuple[str, ...] | None) -> Iterator[str]:
    """Stand before a folder with the model `x`; without layers its manifest is none."""
    (models / "blobs").mkdir(parents=True)
    path = models / "manifests/registry.ollama.ai/library/x/latest"
    path.parent.mkdir(parents=True)
    listed = []
    for kind in layers or ():
        listed.append(
            {"mediaType": MEDIA + kind, "digest": f"sha256:{_sha256(kind)}", "size": len(kind)}
        )
        text = kind[::-1] if kind == (layers or ())[-1] else kind
        (models / "blobs" / f"sha256-{_sha256(kind)}").write_text(text)
    path.write_text(json.dumps({} if layers is None else {"layers": listed}))
    written = path.stat().st_mtime_ns
    at = datetime.fromtimestamp(written // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    model = {
        "name": "x:latest",
        "digest": hashlib.sha256(path.read_bytes()).hexdigest(),
        "modified_at": f"{at}.{written % 10**9:09}Z",
    }
    sources = [kind for kind in layers or () if kind in {"model", "projector"}]
    lines = [f"FROM {models}/blobs/sha256-{_sha256(kind)}\n" for kind in sources]
    replies: Mapping[str, object] = {
        **BARE,
        "/api/tags": {"models": [model]},
        "/api/show": {**SEEING, "modelfile": "".join(lines)},
        "/api/blobs": {},
        "/api/create": {"status": "success"},
        "/api/generate": {},
        "/api/delete": {},
    }
    with stand_in(replies) as host:
        yield host


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Every message is held by a test

HELD = """
batch/canary batch/hosts batch/keeper batch/pictures
batch/captioner batch/crew batch/roster
catalog cli/app cli/ask cli/compare cli/files cli/frame cli/inspect cli/install cli/verify compare
daemon doctor_store images/arrays images/pixels images/signatures images/sources images/square
ledger locks package planning preflight quarantine records repair store/folder supply
transfer/interface transfer/link transfer/pull transfer/sources verify weights/download weights/hub
weights/hub_errors weights/local weights/mended
"""
TABLES = """
test_batch_faults test_batch_pictures
test_wording_cluster
test_wording test_wording_store test_wording_weights test_transfer_faults test_images test_pixels
test_mended
"""
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}


def test_every_message_stands_in_a_table():
    here = Path(__file__).parent
    written = [text for name in TABLES.split() for text in _strings(here / f"{name}.py")]
    missing = [
        f"{name}.py:{line}: {message}"
        for name in HELD.split()
        for line, message in _messages(Path(llava_ollama.__file__).parent / f"{name}.py")
        if not any(message in text for text in written)
    ]
    assert not missing


def _messages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the longest piece without a value of each message that the file makes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ERRORS and node.args:
            yield node.lineno, max(_pieces(node.args[0]), key=len, default="")


def _pieces(node: ast.expr) -> list[str]:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [part.value for part in parts if isinstance(part, ast.Constant)]
    return [text.strip(" `:,") for text in texts if isinstance(text, str)]


def _strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"\\(.)", r"\1", node.value)
