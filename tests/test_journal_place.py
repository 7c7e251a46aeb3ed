"""Where a journal lies, and what is said when the disk does not take it."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llava_ollama.batch.journal import Config, Entry, Journal, JournalFeed, Reading, place
from llava_ollama.batch.journal.database import FILE
from llava_ollama.batch.sources import Sources
from llava_ollama.batch.work import Ask, Outcome
from llava_ollama.errors import LlavaOllamaError, NotEnoughSpace, UsageProblem

CONFIG = Config("tiny", "a" * 64, (Ask("Describe this image"),))
MOUNTS = r"""
22 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:40 / /mnt/nas rw,relatime shared:9 - nfs4 nas:/export rw,vers=4.2
31 22 0:41 / /mnt/my\040share rw - cifs //nas/share rw
32 30 8:17 / /mnt/nas/local rw - xfs /dev/sdb1 rw
33 22 0:42 / /home/me/remote rw,nosuid - fuse.sshfs me@host: rw
34 22 0:43 / /over rw - nfs nas:/over rw
35 22 0:44 / /over rw - tmpfs tmpfs rw
36 22 0:45 / /mnt/c rw - 9p drvfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/run", None),
        ("/mnt/nas", "nfs4"),
        ("/mnt/nas/deep/run", "nfs4"),
        ("/mnt/nas2/run", None),
        ("/mnt/nas/local/run", None),
        ("/mnt/my share/run", "cifs"),
        ("/home/me/remote/run", "fuse.sshfs"),
        ("/over/run", None),
        ("/mnt/c/run", "9p"),
    ],
)
def test_network_file_systems_are_known(path: str, kind: str | None) -> None:
    assert place.network(Path(path), MOUNTS) == kind
    assert place.network(Path(path), "") is None
    assert place.network(Path(path), "nonsense - \n- -\n") is None


def nfs(folder: Path) -> str:
    return f"22 1 0:9 / / rw - ext4 x rw\n23 1 0:9 / {folder} rw - nfs4 nas:/x rw\n"


def test_on_a_network_file_system_the_journal_goes_to_local_state(tmp_path: Path) -> None:
    run, state = tmp_path / "nas" / "run", tmp_path / "state"
    with Journal(run, CONFIG, state=state, mounts=nfs(tmp_path / "nas")) as journal:
        assert journal.network == "nfs4"
        journal.add([Entry("/p/1.png")])
        assert journal.folder.is_relative_to(state)
        with pytest.raises(UsageProblem, match="under way"):
            Journal(run, CONFIG, state=state)
    assert [path.name for path in run.iterdir()] == ["journal.json"]
    with Journal(run, CONFIG, state=state) as journal, Reading(run) as view:
        assert [row.path for row in view.rows()] == ["/p/1.png"]
    moved = tmp_path / "state of another machine"
    state.rename(moved)
    for opening in (lambda: Journal(run, CONFIG, state=state), lambda: Reading(run)):
        with pytest.raises(UsageProblem, match="on the machine") as caught:
            opening()
        assert "copy that folder's files into the run" in str(caught.value.hint)
    (folder,) = (moved / "journals").iterdir()
    shutil.copytree(folder, run, dirs_exist_ok=True)
    with Journal(run, CONFIG, state=state), Reading(run) as view:
        assert [row.path for row in view.rows()] == ["/p/1.png"]


def test_a_run_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="is not a run: it has no journal"):
        Reading(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageProblem, match="is a file, and a run is a folder"):
        Journal(tmp_path / "file", CONFIG, state=tmp_path)
    with pytest.raises(LlavaOllamaError, match="cannot be made: not a directory"):
        Journal(tmp_path / "file" / "run", CONFIG, state=tmp_path)


def test_a_full_disk_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(NotEnoughSpace, match="the disk is full") as caught:
        fill_the_disk(run)
    assert "run the same command again" in str(caught.value.hint)
    with Journal(run, CONFIG, state=tmp_path), Reading(run) as view:
        counts = view.counts()
        assert counts.states["done"] >= 50
        assert counts.total == 100
        assert {row.text for row in view.rows() if row.state == "done"} == {"A cat."}


def fill_the_disk(run: Path) -> None:
    with (
        Journal(run, CONFIG, state=run.parent) as journal,
        closing(JournalFeed(journal)) as feed,
    ):
        journal.add([Entry(f"/p/{n}.png") for n in range(100)])
        for job in feed.take(50):
            feed.settle(Outcome(job.item.id, 1, "done", "A cat."))
        journal.flush()
        # SQLite's own limit is the same error as a disk's.
        journal.write(lambda db: db.execute("PRAGMA max_page_count = 1"))
        for job in feed.take(50):
            feed.sending(job.item.id, 1)
            feed.settle(Outcome(job.item.id, 1, "done", "A dog. " * 5000))
        journal.flush()


def test_a_run_is_read_where_nothing_can_be_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Journal(run, CONFIG, state=tmp_path) as journal:
        journal.add([Entry("/p/1.png")])
    assert not (run / f"{FILE}-wal").exists()
    run.chmod(0o500)
    with Reading(run) as view:
        assert view.counts().pictures == 1
    run.chmod(0o700)


class Slow(io.RawIOBase):
    """Standard input from a program that says one name and then nothing."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self._names = [b"/p/1.png\n"]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._names:
            self.over.wait()
            return 0
        name = self._names.pop()
        buffer[: len(name)] = name
        return len(name)


def test_a_source_that_never_ends_does_not_keep_a_run_open(tmp_path: Path) -> None:
    slow = Slow()
    with (
        Journal(tmp_path / "run", CONFIG, state=tmp_path) as journal,
        closing(JournalFeed(journal)) as feed,
    ):
        feed.fill(Sources(lists=[io.BufferedReader(slow)]))
        assert feed.wait() is not None

    def endless() -> Iterator[Entry]:
        number = 0
        while True:
            number += 1
            yield Entry(f"/p/{number}.png")

    with (
        Journal(tmp_path / "run", CONFIG, state=tmp_path) as journal,
        closing(JournalFeed(journal)) as feed,
    ):
        feed.fill(endless())
        while not feed.take(1):
            assert feed.wait() is not None
    slow.over.set()
    with Reading(tmp_path / "run") as view:
        assert view.counts().pictures
