"""What is remembered from run to run: how many questions at once were best."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_ollama.batch.levels import Levels

HOST, DIGEST = "http://gpu1:11434", "a" * 64


def test_a_level_is_remembered_by_host_and_model(tmp_path: Path):
    Levels(tmp_path).put(HOST, DIGEST, 8)
    known = Levels(tmp_path)
    assert known.get(HOST, DIGEST) == 8
    assert known.get(HOST, "b" * 64) == 1
    assert known.get("http://gpu2:11434", DIGEST) == 1
    known.put(HOST, DIGEST, 4)
    assert known.get(HOST, DIGEST) == 4
    assert len(list((tmp_path / "levels").iterdir())) == 1


@pytest.mark.parametrize(
    "said", ["", "[]", '{"level": "8"}', '{"level": 0}', '{"level": 1001}', "[" * 1000, "\udcff"]
)
def test_what_cannot_be_believed_is_found_anew(said: str, tmp_path: Path):
    Levels(tmp_path).put(HOST, DIGEST, 8)
    (file,) = (tmp_path / "levels").iterdir()
    file.write_bytes(said.encode("utf-8", "surrogateescape"))
    assert Levels(tmp_path).get(HOST, DIGEST) == 1


def test_a_state_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path):
    (tmp_path / "levels").write_text("a file")
    levels = Levels(tmp_path)
    levels.put(HOST, DIGEST, 8)
    assert levels.get(HOST, DIGEST) == 1
