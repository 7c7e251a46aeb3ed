"""What `doctor` sees in a models folder, made by hand as daemons and kills leave it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from llava_ollama.doctor_store import StoreDoctor, disk
from llava_ollama.findings import Finding
from llava_ollama.ledger import Ledger
from llava_ollama.progress import SILENT
from llava_ollama.store import Store
from llava_ollama.store.manifests import MODEL, PROJECTOR

HOUR = 3600 * 10**9


@dataclass
class Made:
    """A models folder with what a test puts there."""

    folder: Path
    ledger: Ledger

    @property
    def store(self) -> Store:
        return Store(self.folder)

    def blob(self, content: bytes) -> Path:
        path = self.store.blob(hashlib.sha256(content).hexdigest())
        path.write_bytes(content)
        return path

    def model(self, name: str, *contents: bytes) -> Path:
        layers = [
            {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(c).hexdigest()}", "size": len(c)}
            for kind, c in zip((MODEL, PROJECTOR), contents, strict=False)
        ]
        for content in contents:
            self.blob(content)
        path = self.folder / "manifests/registry.ollama.ai/library" / name / "latest"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"layers": layers}))
        return path

    def examine(self) -> list[Finding]:
        return list(StoreDoctor(self.store, self.ledger).examine())

    def only(self) -> Finding:
        (finding,) = self.examine()
        return finding


@pytest.fixture
def made(tmp_path: Path) -> Made:
    folder = tmp_path / "models"
    (folder / "blobs").mkdir(parents=True)
    return Made(folder, Ledger(tmp_path / "ledger.sqlite3"))


def test_a_healthy_store_is_not_mentioned(made: Made):
    made.model("one", b"model" * 100, b"projector" * 100)
    made.blob(b"what 0.34 leaves")
    assert made.examine() == []


def test_orphans_are_counted(made: Made):
    made.model("one", b"model" * 100)
    made.blob(b"nobody's" * 100)
    made.blob(b"nobody's either" * 100)
    found = made.only()
    assert (found.check, found.status) == ("orphans", "warning")
    assert "2 files" in found.detail
    assert "Restart" in found.fix


def test_nothing_is_an_orphan_while_a_manifest_is_damaged(made: Made):
    made.model("one", b"model" * 100).write_bytes(b"")
    found = made.only()
    assert (found.check, found.status) == ("manifests", "error")
    assert "`one`" in found.detail
    assert "empty" in found.detail


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_a_model_without_a_layer_can_be_repaired(damage: str, made: Made):
    made.model("one", b"model" * 100, b"projector" * 100)
    path = made.blob(b"projector" * 100)
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"pro")
    found = made.only()
    assert (found.check, found.status) == ("layers", "error")
    assert "projector" in found.detail
    assert found.fix == "llava-ollama repair one"


@pytest.mark.parametrize(
    ("name", "words", "who"),
    [
        ("sha256-" + "a" * 64 + "-partial-0", "a pull", "ollama pull"),
        ("sha256-2911744516", "an upload", "Only the daemon"),
        ("COPY3129870", "a create", "Only the daemon"),
        ("sha256-llava-ollama-5b1c", "an install", "llava-ollama install"),
    ],
)
def test_what_was_interrupted_has_somebody_who_removes_it(
    name: str, words: str, who: str, made: Made
):
    made.model("one", b"model" * 100)
    (made.store.blobs_folder / name).write_bytes(b"half")
    found = made.only()
    assert (found.check, found.status) == ("leftovers", "warning")
    assert words in found.detail
    assert who in found.fix


class TestLinks:
    @pytest.fixture
    def source(self, made: Made, tmp_path: Path) -> Path:
        """A file of the user's that is a blob as well."""
        manifest = made.model("one", b"model" * 100)
        blob = made.blob(b"model" * 100)
        source = tmp_path / "model.gguf"
        source.hardlink_to(blob)
        now = manifest.stat().st_mtime_ns
        os.utime(blob, ns=(now - HOUR, now - HOUR))
        return source

    def test_an_unchanged_one_is_fine(self, made: Made, source: Path):
        assert source.stat().st_nlink == 2
        assert made.examine() == []

    def test_one_that_was_written_to_is_suspicious(self, made: Made, source: Path):
        _write(source, b"MODEL" * 100)
        found = made.only()
        assert (found.check, found.status) == ("links", "warning")
        assert found.fix == "llava-ollama verify one"

    def test_one_that_has_another_size_is_wrong(self, made: Made, source: Path):
        _write(source, b"MODEL" * 101)
        assert [f.check for f in made.examine()] == ["layers", "links"]

    def test_one_that_was_only_touched_is_fine(self, made: Made, source: Path):
        _write(source, b"model" * 100)
        assert made.examine() == []

    def test_a_large_one_is_fine_where_the_ledger_knows_the_bytes(self, made: Made, source: Path):
        _write(source, b"model" * 100)
        doctor = StoreDoctor(made.store, made.ledger, quick=99)
        assert [found.check for found in doctor.examine()] == ["links"]
        made.ledger.hash(source, SILENT)
        assert list(doctor.examine()) == []

    def test_a_later_manifest_of_the_same_blob_counts(self, made: Made, source: Path):
        _write(source, b"model" * 100)
        later = made.model("two", b"other" * 100).with_name("latest")
        text = (made.folder / "manifests/registry.ollama.ai/library/one/latest").read_text()
        later.write_text(text)
        after = source.stat().st_mtime_ns + HOUR
        os.utime(later, ns=(after, after))
        assert [f.check for f in made.examine()] == ["orphans"]

    def test_a_file_of_its_own_is_not_suspected(self, made: Made, source: Path):
        source.unlink()
        _write(made.blob(b"model" * 100), b"model" * 100)
        assert made.examine() == []


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    after = path.stat().st_mtime_ns + HOUR
    os.utime(path, ns=(after, after))


def test_quarantine_is_remembered(made: Made):
    made.model("one", b"model" * 100)
    (made.folder / "quarantine").mkdir()
    (made.folder / "quarantine" / "sha256-x.1").write_bytes(b"bad")
    found = made.only()
    assert (found.check, found.status) == ("quarantine", "warning")
    assert "quarantine" in found.detail


def test_a_store_that_cannot_be_read_is_said(made: Made):
    (made.folder / "blobs").rmdir()
    (made.folder / "blobs").write_text("no folder")
    found = made.only()
    assert (found.check, found.status) == ("models folder", "warning")
    assert "cannot be read" in found.detail


@pytest.mark.parametrize(
    ("free", "flags", "words"),
    [(10**6, 0, []), (0, 0, ["full"]), (10**6, os.ST_RDONLY, ["read-only"])],
)
def test_the_disk(free: int, flags: int, words: list[str], made: Made):
    size = 4096
    state = os.statvfs_result((size, size, 10**7, free, free, 10**6, 10**6, 10**6, flags, 255))
    found = list(disk(made.store, state))
    assert [f.status for f in found] == ["error"] * len(words)
    assert all(word in f.detail for f, word in zip(found, words, strict=True))
