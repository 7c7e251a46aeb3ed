"""Records and locks: what survives a kill, and one writer at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llava_ollama import locks
from llava_ollama.errors import LlavaOllamaError
from llava_ollama.records import Records


def test_a_record_is_there_until_it_is_dropped(tmp_path):
    records = Records(tmp_path / "state")
    assert records.get("pending", "host", "name") is None
    assert list(records.all("pending")) == []
    records.put("pending", "host", "name", record={"a": "ä\n"})
    assert Records(tmp_path / "state").get("pending", "host", "name") == {"a": "ä\n"}
    records.put("pending", "host", "name", record={"b": "2"})
    assert list(records.all("pending")) == [{"b": "2"}]
    records.drop("pending", "host", "name")
    records.drop("pending", "host", "name")
    assert list(records.all("pending")) == []
    assert list((tmp_path / "state" / "pending").iterdir()) == []


def test_keys_and_kinds_do_not_meet(tmp_path):
    records = Records(tmp_path)
    records.put("pending", "a", "b", record={"is": "a, b"})
    records.put("pending", "ab", record={"is": "ab"})
    records.put("installed", "a", "b", record={"is": "installed"})
    assert records.get("pending", "a", "b") == {"is": "a, b"}
    assert records.get("pending", "ab") == {"is": "ab"}
    assert len(list(records.all("pending"))) == 2


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff", b'{"a": ', b"[" * 50_000], ids=lambda text: repr(text)[:9]
)
def test_a_damaged_record_counts_as_none(tmp_path, damage):
    records = Records(tmp_path)
    records.put("installed", "x", record={"a": "b"})
    next((tmp_path / "installed").iterdir()).write_bytes(damage)
    assert records.get("installed", "x") is None
    assert list(records.all("installed")) == []
    records.put("installed", "x", record={"a": "c"})
    assert records.get("installed", "x") == {"a": "c"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are Unix's")
def test_what_is_no_file_or_too_large_counts_as_none(tmp_path):
    records = Records(tmp_path)
    records.put("installed", "x", record={"a": "b"})
    path = next((tmp_path / "installed").iterdir())
    path.write_text('{"a": "' + "b" * (1 << 16) + '"}')
    assert records.get("installed", "x") is None
    path.unlink()
    os.mkfifo(path)
    assert records.get("installed", "x") is None
    path.unlink()
    path.symlink_to("/dev/zero")
    assert list(records.all("installed")) == []


def test_a_key_may_be_a_name_that_is_no_text(tmp_path):
    records = Records(tmp_path)
    for key in ("\ud800", os.fsdecode(b"\xff")):
        records.put("transient", key, record={"name": key})
        assert records.get("transient", key) == {"name": key}


def test_what_a_killed_writer_left_is_cleared_once_it_is_old(tmp_path):
    records = Records(tmp_path)
    records.put("installed", "x", record={})
    path = next((tmp_path / "installed").iterdir())
    old, fresh = path.with_suffix(".1-1.tmp"), path.with_suffix(".2-2.tmp")
    old.touch()
    fresh.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    records.put("probe", "never written again", record={})
    assert (old.exists(), fresh.exists()) == (False, True)


WRITER = """
import sys
from pathlib import Path
from llava_ollama.records import Records
records = Records(Path(sys.argv[1]))
print("begun", flush=True)
while True:
    for value in "ab":
        records.put("pending", "x", record={"value": value * 60_000})
"""


def test_a_kill_leaves_a_record_whole(tmp_path):
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        records = Records(tmp_path)
        seen: set[str] = set()
        while len(seen) < 2:  # the writer is at it, and every reader sees one whole record
            record = records.get("pending", "x")
            if record:
                seen.add(record["value"])
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        record = records.get("pending", "x")
        assert record is not None
        assert record["value"] in seen
        assert list(records.all("pending")) == [record]


def test_threads_may_write_the_same_record(tmp_path):
    records = Records(tmp_path)
    failures: list[BaseException] = []

    def write(value: str) -> None:
        try:
            for _ in range(20):
                records.put("installed", "x", record={"value": value})
        except LlavaOllamaError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert records.get("installed", "x") is not None


def test_a_state_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    records = Records(tmp_path / "file" / "state")
    with pytest.raises(LlavaOllamaError, match="state") as caught:
        records.put("pending", "x", record={})
    assert "LLAVA_OLLAMA_STATE" in str(caught.value.hint)
    with pytest.raises(LlavaOllamaError, match="state"):
        Records(tmp_path / ("n" * 300)).drop("pending", "x")
    assert records.get("pending", "x") is None
    with (
        pytest.raises(LlavaOllamaError, match="lock"),
        locks.locked(records.lock_file("pending", "x")),
    ):
        pass


def test_the_lock_of_a_record_is_not_a_record(tmp_path):
    records = Records(tmp_path)
    with locks.locked(records.lock_file("pending", "x")):
        assert list(records.all("pending")) == []


HOLDER = """
import sys
from pathlib import Path
from llava_ollama import locks
with locks.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held" + os.linesep.encode()
    return process


def end(process: subprocess.Popen[bytes], how: signal.Signals | None = None) -> None:
    if how:
        process.send_signal(how)
    process.communicate(b"\n" if how is None else None)


def test_a_lock_is_waited_for_and_that_is_said_once(tmp_path):
    path = tmp_path / "folder" / "x.lock"
    process = holder(path)
    said = []

    def waiting() -> None:
        said.append("waiting")
        end(process)

    with locks.locked(path, waiting=waiting):
        assert said == ["waiting"]
    with locks.locked(path, waiting=waiting):
        assert said == ["waiting"]


def test_a_lock_ends_with_the_process_that_held_it(tmp_path):
    path = tmp_path / "x.lock"
    process = holder(path)
    with locks.if_free(path) as free:
        assert free is False
    end(process, signal.SIGKILL)
    with locks.if_free(path) as free:
        assert free is True
        with locks.if_free(path) as again:
            assert again is False
    with locks.if_free(path) as free:
        assert free is True
