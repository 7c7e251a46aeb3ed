"""The ledger: what is unchanged is not read again, what may have changed is."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from llava_ollama.errors import ChecksumMismatch, StoreError
from llava_ollama.ledger import Identity, Ledger
from llava_ollama.progress import SILENT, Reporter


class Reads(Reporter):
    """Counts the bytes that were hashed."""

    def __init__(self) -> None:
        self.bytes = 0

    def advanced(self, task: str, amount: int) -> None:
        del task
        self.bytes += amount


class Meddler(Reporter):
    """Changes a file as soon as somebody begins to read it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def started(self, task: str, total: int | None = None) -> None:
        del task, total
        with self._path.open("r+b") as file:
            file.write(b"other")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights" * 1000)
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "cache" / "ledger.sqlite3")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_by(ledger: Ledger, path: Path) -> int:
    reads = Reads()
    assert ledger.digest(path, reads).sha256 == sha256(path)
    return reads.bytes


def test_an_unchanged_file_is_read_once(ledger: Ledger, file: Path, tmp_path: Path) -> None:
    assert ledger.known(file) is None
    assert read_by(ledger, file) == 7000
    assert read_by(ledger, file) == 0
    assert ledger.digest(file, SILENT).size == 7000
    assert read_by(Ledger(tmp_path / "cache" / "ledger.sqlite3"), file) == 0


def test_links_and_unlinks_change_nothing(ledger: Ledger, file: Path, tmp_path: Path) -> None:
    ledger.digest(file, SILENT)
    (tmp_path / "link").hardlink_to(file)
    (tmp_path / "symlink").symlink_to(file)
    assert read_by(ledger, tmp_path / "link") == 0
    assert read_by(ledger, tmp_path / "symlink") == 0
    (tmp_path / "link").unlink()
    file.rename(tmp_path / "elsewhere.gguf")
    assert read_by(ledger, tmp_path / "elsewhere.gguf") == 0


@pytest.mark.parametrize("change", ["bytes", "size", "mtime", "replaced"])
def test_a_changed_file_is_read_again(ledger: Ledger, file: Path, change: str) -> None:
    ledger.digest(file, SILENT)
    if change == "bytes":
        with file.open("r+b") as open_file:
            open_file.write(b"W")
    elif change == "size":
        old = file.stat()
        file.write_bytes(b"weights")
        os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    elif change == "mtime":
        os.utime(file, ns=(1, 1_000_000_001))
    else:
        old = file.stat()
        other = file.with_name("other")
        other.write_bytes(b"W" * 7000)
        os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
        other.replace(file)
    assert read_by(ledger, file) == file.stat().st_size


def test_a_write_within_the_same_tick_of_the_clock_is_seen(ledger: Ledger, file: Path) -> None:
    for content in (b"a", b"b", b"c", b"d"):
        with file.open("r+b") as open_file:
            open_file.write(content)
        assert ledger.digest(file, SILENT).sha256 == sha256(file)
        with file.open("r+b") as open_file:
            open_file.write(content.upper())
        assert ledger.digest(file, SILENT).sha256 == sha256(file)


def test_whole_seconds_are_a_coarse_clock(ledger: Ledger, file: Path) -> None:
    import time

    now = time.time_ns() // 10**9 * 10**9
    os.utime(file, ns=(now, now))
    begun = time.monotonic()
    ledger.digest(file, SILENT)
    assert time.time_ns() - now >= 2 * 10**9
    assert time.monotonic() - begun < 3


def test_rehash_does_not_ask_but_remembers(ledger: Ledger, file: Path, tmp_path: Path) -> None:
    for _ in range(2):
        anew = Ledger(tmp_path / "cache" / "ledger.sqlite3", rehash=True)
        assert read_by(anew, file) == 7000
        # What it has read itself is not the past.
        assert read_by(anew, file) == 0
    assert read_by(ledger, file) == 0


class Touching(Reporter):
    """Plays another install's `create`, which sets the times of a linked file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.times = 0

    def finished(self, task: str) -> None:
        del task
        if not self.times:
            os.utime(self.file, ns=(1, 1))
        self.times += 1


def test_a_file_that_is_only_touched_has_not_changed(ledger: Ledger, file: Path) -> None:
    touching = Touching(file)
    assert ledger.digest(file, touching).sha256 == sha256(file)
    assert touching.times == 2
    assert read_by(ledger, file) == 0


def test_asking_makes_no_ledger(ledger: Ledger, file: Path, tmp_path: Path) -> None:
    assert ledger.known(file) is None
    assert not list((tmp_path / "cache").rglob("*"))


def test_a_file_that_was_hashed_on_its_way(ledger: Ledger, file: Path) -> None:
    ledger.arrived(file, sha256(file))
    assert read_by(ledger, file) == 0
    ledger.arrived(file.with_name("gone"), sha256(file))


def test_renewed_after_create_has_touched_it(ledger: Ledger, file: Path) -> None:
    found = ledger.digest(file, SILENT)
    os.utime(file)
    ledger.renew(file, found.sha256)
    assert read_by(ledger, file) == 0


@pytest.mark.parametrize("case", ["never seen", "another digest", "another size", "gone"])
def test_only_what_is_known_is_renewed(ledger: Ledger, file: Path, case: str) -> None:
    digest = sha256(file)
    if case != "never seen":
        ledger.digest(file, SILENT)
    if case == "another digest":
        digest = "0" * 64
    if case == "another size":
        file.write_bytes(b"short")
    os.utime(file, ns=(1, 1))
    if case == "gone":
        file.unlink()
        ledger.renew(file, digest)
        return
    ledger.renew(file, digest)
    assert ledger.known(file) is None


def test_a_file_that_changes_while_it_is_read_is_refused_and_forgotten(
    ledger: Ledger, file: Path
) -> None:
    with pytest.raises(ChecksumMismatch, match="changed while it was read"):
        ledger.digest(file, Meddler(file))
    assert ledger.known(file) is None


@pytest.mark.parametrize("what", ["missing", "a folder"])
def test_what_cannot_be_read(ledger: Ledger, tmp_path: Path, what: str) -> None:
    path = tmp_path / "model.gguf"
    if what == "a folder":
        path.mkdir()
    with pytest.raises(StoreError, match=r"`.*model\.gguf` cannot be read"):
        ledger.digest(path, SILENT)


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "table", "middle", "folder"])
def test_a_damaged_ledger_is_made_anew(tmp_path: Path, file: Path, damage: str) -> None:
    path = tmp_path / "ledger.sqlite3"
    for number in range(200):
        Ledger(path).remember("0" * 64, Identity(1, number, 1, 1))
    Ledger(path).digest(file, SILENT)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if damage == "table":
            db.execute("DROP TABLE files")
            db.execute("CREATE TABLE files (name TEXT)")
    data = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(os.urandom(len(data)))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(data[:5000])
    elif damage == "middle":
        path.write_bytes(data[:4096] + os.urandom(len(data) - 4096))
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    ledger = Ledger(path)
    assert read_by(ledger, file) == 7000
    ledger.digest(file, SILENT)
    assert read_by(Ledger(path), file) == (7000 if damage == "folder" else 0)


@pytest.mark.parametrize("column", ["sha256", "seal", "mtime_ns", "size"])
def test_a_row_that_was_changed_is_not_believed(tmp_path: Path, file: Path, column: str) -> None:
    path = tmp_path / "ledger.sqlite3"
    Ledger(path).digest(file, SILENT)
    values = {
        "sha256": "0" * 64,
        "seal": "0" * 16,
        "mtime_ns": str(10**18),
        "size": "7000",
    }
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"UPDATE files SET {column} = ?", (values[column],))
    os.utime(file, ns=(10**18, 10**18)) if column == "mtime_ns" else None
    assert read_by(Ledger(path), file) == (0 if column == "size" else 7000)


def test_a_ledger_that_cannot_be_written_costs_time_only(tmp_path: Path, file: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    ledger = Ledger(tmp_path / "cache" / "ledger.sqlite3")
    assert read_by(ledger, file) == 7000
    assert read_by(ledger, file) == 7000


def test_a_ledger_that_cannot_be_looked_for_costs_time_only(tmp_path: Path, file: Path) -> None:
    ledger = Ledger(tmp_path / ("x" * 300) / "ledger.sqlite3")  # no file system takes such a name
    assert ledger.known(file) is None
    assert read_by(ledger, file) == 7000


def test_threads_share_it(ledger: Ledger, tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.gguf" for n in range(16)]
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]) * 5000)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for path in files:
                assert ledger.digest(path, SILENT).sha256 == sha256(path)
        except BaseException as exc:
            failures.append(exc)
            raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(read_by(ledger, path) == 0 for path in files)


_WRITER = """
import sys
from pathlib import Path
from llava_ollama.ledger import Ledger
from llava_ollama.progress import SILENT
ledger = Ledger(Path(sys.argv[1]))
for path in sorted(Path(sys.argv[2]).iterdir()):
    print(ledger.digest(path, SILENT).sha256)
"""


@pytest.mark.parametrize("damaged", [False, True], ids=["sound", "damaged"])
def test_processes_share_it(tmp_path: Path, *, damaged: bool) -> None:
    folder, path = tmp_path / "files", tmp_path / "ledger.sqlite3"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}").write_bytes(bytes([number]) * 5000)
    if damaged:
        path.write_bytes(b"no database at all" * 500)
    command = [sys.executable, "-c", _WRITER, str(path), str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    expected = [sha256(file) for file in sorted(folder.iterdir())]
    for process in running:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out.decode().split() == expected
    ledger = Ledger(path)
    for file in folder.iterdir():
        ledger.digest(file, SILENT)
    assert all(read_by(ledger, file) == 0 for file in folder.iterdir())


def test_sqlite_is_imported_when_it_is_used() -> None:
    code = "import sys, llava_ollama.ledger; print('sqlite3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "False"
