"""Exports: what a journal says, in every form, whole, repeatable, and inert where it is opened."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from llava_ollama import whole
from llava_ollama.batch.work import Row
from llava_ollama.cli import main
from llava_ollama.errors import LlavaOllamaError, UsageProblem
from llava_ollama.export import Format, Options, Result, export
from llava_ollama.export.csv import cell
from llava_ollama.export.openai import OpenAI
from tests.rows import PLAIN, given, journal, row

FORMATS: tuple[Format, ...] = get_args(Format)
TABLES: tuple[Format, ...] = ("jsonl", "csv", "parquet", "openai")
HOSTILE = {
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>]]></x:xmpmeta>&lt;",
    "formula": '=cmd|"/C calc"!A0',
    "controls": "a\x00b\x1b[31mc\x07\x85d\u2028e\u2029f\ufffe",
    "right to left": "\u202egnp.tac\u202c שלום",
    "emoji": "👩‍👩‍👧 and 🐈",
    "lines": 'one\ntwo\r\nthree\t"quoted", and; more',
    "long": "word " * 200_000,
}


def write(
    rows: list[Row], formats: list[Format] | tuple[Format, ...], run: Path, **more
) -> list[Result]:
    return export(given(rows), formats, Options(run, **more))


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def all_states(folder: Path) -> list[Row]:
    """Return rows in every state, with all that may be odd about them."""
    odd = os.fsdecode(b"caf\xe9.jpg")
    done = [row(n, folder / f"{n}.jpg", text) for n, text in enumerate(HOSTILE.values(), 10)]
    return [
        row(1, folder / "cat.jpg", "A cat on a mat."),
        row(1, folder / "cat.jpg", "One.", ask=2, prompt="How many?"),
        row(2, folder / odd, "A café.", custom_id="mine"),
        *done,
        row(90, folder / "bad.jpg", "", state="failed", error_kind="picture", error="cut off"),
        row(91, folder / "wait.jpg", "", state="pending", finish=None, tokens=0),
        row(92, folder / "notes.md", "", state="skipped", error="no picture's extension"),
    ]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path):
    rows = all_states(tmp_path / "pictures")
    for name in ("one", "other"):
        results = write(rows, FORMATS, tmp_path, place=tmp_path / name)
        assert [result.format for result in results] == list(FORMATS)
        assert not any(result.failed for result in results), results
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    again = write(rows, FORMATS, tmp_path, place=tmp_path / "one")
    assert [(r.written, r.skipped, r.appended) for r in again] == [(0, 0, 0)] * len(FORMATS)
    assert all(result.unchanged for result in again)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_a_line_of_jsonl_has_all_of_a_row(tmp_path: Path):
    rows = all_states(tmp_path)
    write(rows, ["jsonl"], tmp_path)
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["text"] for one in found] == [one.text for one in rows]
    assert [one["path"] for one in found] == [one.path for one in rows]
    assert os.fsencode(found[2]["path"]).endswith(b"caf\xe9.jpg")
    assert found[0] == {
        "path": str(tmp_path / "cat.jpg"),
        "id": "",
        "prompt": "Describe this image",
        "text": "A cat on a mat.",
        "state": "done",
        "finish": "stop",
        "error": "",
        "tokens": 6,
        "seconds": 0.25,
        "host": "http://127.0.0.1:11434",
        "model_digest": "a" * 64,
    }


def test_csv_and_parquet_have_the_columns_of_jsonl(tmp_path: Path):
    rows = all_states(tmp_path)
    write(rows, ["csv", "jsonl", "parquet"], tmp_path)
    text = (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    exact = [json.loads(line) for line in text.splitlines()]
    csv.field_size_limit(1 << 24)
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as file:
        for want, got in zip(exact, csv.DictReader(file), strict=True):
            assert list(got) == list(want)
            assert got["text"] == cell(want["text"])
            assert (int(got["tokens"]), float(got["seconds"])) == (want["tokens"], want["seconds"])
    table = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    for want, found in zip(exact, table, strict=True):
        path = want.pop("path").encode("utf-8", "backslashreplace").decode()
        assert found.pop("path") == path
        assert found == want


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t=", "\r=", "\n=", " =", "\uff1d", "\x00="]
)
def test_no_cell_is_a_formula(start: str):
    assert cell(f"{start}1+1").startswith("'")


def test_a_plain_cell_stays_as_it_is():
    assert [cell(value) for value in ("A cat - grey = small", "", -1, 0.5)] == [
        *("A cat - grey = small", "", -1, 0.5)
    ]


def test_openai_files_are_a_batchs_output(tmp_path: Path):
    write(all_states(tmp_path), ["openai"], tmp_path)
    text = (tmp_path / "openai-0001.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    assert [one["custom_id"] for one in found[:3]] == [
        *(f"{tmp_path / 'cat.jpg'}#1", f"{tmp_path / 'cat.jpg'}#2", "mine"),
    ]
    assert len({one["id"] for one in found}) == len({one["custom_id"] for one in found})
    body = found[0]["response"]["body"]
    assert found[0]["response"]["status_code"] == 200
    assert body["choices"][0]["message"]["content"] == "A cat on a mat."
    assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("stop", 6)
    assert [(one["response"], one["error"]) for one in found[-3:]] == [
        (None, {"code": "picture", "message": "cut off"}),
        (None, {"code": "pending", "message": "it is pending"}),
        (None, {"code": "skipped", "message": "no picture's extension"}),
    ]


def test_openai_files_are_split_at_the_limits(tmp_path: Path):
    rows = [row(n, f"/p/{n}.jpg", "x" * 100, custom_id=f"id-{n}") for n in range(10)]
    run = tmp_path / "run"
    OpenAI(run, most=3).write(given(rows))
    parts = sorted(run.iterdir())
    assert [p.read_bytes().count(b"\n") for p in parts] == [3, 3, 3, 1]
    line = parts[-1].stat().st_size
    OpenAI(run, largest=5 * line).write(given(rows))
    parts = sorted(run.iterdir())
    assert [path.read_bytes().count(b"\n") for path in parts] == [5, 5]
    everything = b"".join(path.read_bytes() for path in parts).splitlines()
    assert [json.loads(one)["custom_id"] for one in everything] == [one.custom_id for one in rows]


def test_captions_stand_beside_the_pictures(tmp_path: Path):
    rows = all_states(tmp_path)
    (result,) = write(rows, ["txt"], tmp_path)
    assert result.written == len({one.path for one in rows if one.state == "done"})
    assert (tmp_path / "cat.txt").read_text() == "A cat on a mat.\nOne.\n"
    assert (tmp_path / os.fsdecode(b"caf\xe9.txt")).read_text() == "A café.\n"
    assert not (tmp_path / "bad.txt").exists()
    assert (tmp_path / "12.txt").read_bytes() == "ab[31mcd\u2028e\u2029f\ufffe\n".encode()


def test_captions_elsewhere_have_the_pictures_tree(tmp_path: Path):
    rows = [row(1, "/p/a/b/1.jpg"), row(2, "/p/a/c/d/2.jpg"), row(3, "/p/a/3.jpg")]
    write(rows, ["txt", "xmp"], tmp_path, place=tmp_path / "out")
    assert sorted(contents(tmp_path)) == [
        *("out/3.jpg.xmp", "out/3.txt", "out/b/1.jpg.xmp", "out/b/1.txt"),
        *("out/c/d/2.jpg.xmp", "out/c/d/2.txt"),
    ]


def test_only_the_answers_to_one_prompt(tmp_path: Path):
    rows = all_states(tmp_path)
    write(rows, ["txt"], tmp_path, prompt="How many?")
    assert contents(tmp_path) == {"cat.txt": b"One.\n"}


@pytest.mark.parametrize(
    ("existing", "content", "counts"),
    [
        ("skip", b"by hand", (0, 1, 0, 0)),
        ("overwrite", b"A cat.\n", (1, 0, 0, 0)),
        ("append", b"by hand\nA cat.\n", (0, 0, 1, 0)),
    ],
)
def test_a_caption_that_is_there(tmp_path: Path, existing, content: bytes, counts):
    (tmp_path / "a.txt").write_bytes(b"by hand")
    rows = [row(1, tmp_path / "a.jpg")]
    (done,) = write(rows, ["txt"], tmp_path, existing=existing)
    assert (tmp_path / "a.txt").read_bytes() == content
    assert (done.written, done.skipped, done.appended, done.unchanged) == counts
    write(rows, ["txt"], tmp_path, existing=existing)
    assert (tmp_path / "a.txt").read_bytes() == content


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("txt", [row(1, "/p/a.jpg"), row(2, "/p/b.jpg"), row(3, "/p/a.png")], "`/p/a.jpg` and "),
        ("xmp", [row(1, "/p/a.jpg"), row(2, "/p/a.png")], "`/p/a.jpg` and `/p/a.png` would share"),
        ("txt", [row(1, "/p/a.jpg", custom_id="x"), row(2, "/p/a.jpg", custom_id="y")], "twice"),
    ],
)
def test_a_shared_sidecar_is_found_before_anything_is_written(
    tmp_path: Path, name: Format, rows: list[Row], said: str
):
    with pytest.raises(UsageProblem, match=said) as caught:
        write(rows, ["jsonl", name], tmp_path, place=tmp_path / "out", xmp_full_name=False)
    assert caught.value.hint
    assert not contents(tmp_path)


def test_unanswered_pictures_share_nothing(tmp_path: Path):
    rows = [row(1, tmp_path / "a.jpg"), row(2, tmp_path / "a.png", state="failed")]
    write(rows, ["txt"], tmp_path)
    assert contents(tmp_path) == {"a.txt": b"A cat.\n"}


def test_what_is_no_plain_file_is_left(tmp_path: Path):
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"picture")
    (tmp_path / "a.txt").symlink_to(picture)
    (tmp_path / "b.txt").mkdir()
    os.mkfifo(tmp_path / "c.txt")
    rows = [row(n, tmp_path / f"{name}.jpg") for n, name in enumerate("abc")]
    nul = row(9, "/p/a\x00b.jpg")
    (result,) = write([*rows, nul], ["txt"], tmp_path, existing="overwrite")
    assert picture.read_bytes() == b"picture"
    assert [problem.what for problem in result.problems] == [
        *("it is a symbolic link", "it is not a file", "it is not a file", "embedded null byte"),
    ]


def refused(folder: Path) -> bool:
    """Whether a shut folder is shut for us: not for root, who still meets a file in its place."""
    return os.geteuid() != 0 and not os.access(folder, os.W_OK)


def test_a_folder_that_refuses_is_told_and_the_rest_is_written(tmp_path: Path):
    (tmp_path / "no folder").write_bytes(b"")
    rows = [row(1, tmp_path / "no folder" / "a.jpg"), row(2, tmp_path / "gone" / "b.jpg")]
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut").chmod(0o500)
    shut = [row(3, tmp_path / "shut" / "c.jpg")] if refused(tmp_path / "shut") else []
    (result,) = write([*rows, *shut, row(4, tmp_path / "d.jpg")], ["txt"], tmp_path)
    assert (result.written, result.failed) == (1, 2 + len(shut))
    assert result.problems[0].what == "Not a directory"
    assert result.problems[1].what == "No such file or directory"
    assert (tmp_path / "d.txt").read_bytes() == b"A cat.\n"


@pytest.mark.parametrize(
    "name", ["answers.jsonl", "answers.csv", "answers.parquet", "openai-0002.jsonl"]
)
def test_a_users_own_file_is_not_replaced(tmp_path: Path, name: str):
    (tmp_path / name).write_text('{"custom_id": "mine"}')
    kind = next(
        one for one in get_args(Format) if one in name and (one != "jsonl" or name[0] == "a")
    )
    with pytest.raises(UsageProblem) as caught:
        export(lambda: iter(all_states(tmp_path)), [kind], Options(tmp_path))
    assert caught.value.message == f"`{tmp_path / name}` is there already, and is no such export"
    assert (tmp_path / name).read_text() == '{"custom_id": "mine"}'


def test_a_place_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").touch()
    for name in FORMATS:
        with pytest.raises(UsageProblem, match="is not a folder"):
            write([PLAIN], [name], tmp_path, place=tmp_path / "file" / "x")


_FULL = """
import resource, sys
from pathlib import Path
from llava_ollama.errors import LlavaOllamaError
from llava_ollama.export import Options, export
from tests.rows import given, row
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import random
noise = random.Random(1)
rows = [row(n, f"/p/{n}.jpg", noise.randbytes(500).hex()) for n in range(300)]
try:
    export(given(rows), [sys.argv[1]], Options(Path(sys.argv[2])))
except LlavaOllamaError as exc:
    print(exc)
"""


@pytest.mark.parametrize("name", TABLES)
def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path, name: Format):
    write([PLAIN], [name], tmp_path)
    before = contents(tmp_path)
    assert "cannot be written: File too large" in child(_FULL, name, str(tmp_path))
    assert contents(tmp_path) == before


def test_a_full_disk_ends_the_export(tmp_path: Path):
    def rows() -> Iterator[Row]:
        yield row(1, tmp_path / "a.jpg")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in TABLES:
        with pytest.raises(LlavaOllamaError, match="is full"):
            export(rows, [name], Options(tmp_path))
        assert not contents(tmp_path)


_KILLED = """
import sys
from pathlib import Path
import pyarrow.parquet
from llava_ollama.export import Options, export
from tests.rows import given, row
rows = [row(n, f"{sys.argv[1]}/{n}.jpg", "A cat. " * 400) for n in range(100)]
print("ready", flush=True)
while True:
    options = Options(Path(sys.argv[2]), existing="overwrite")
    export(given(rows), ["jsonl", "csv", "openai", "parquet", "txt", "xmp"], options)
    print("again", flush=True)
"""


def test_killed_exports_leave_no_torn_file(tmp_path: Path):
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    run.mkdir()
    rows = [row(n, pictures / f"{n}.jpg", "A cat. " * 400) for n in range(100)]
    write(rows, FORMATS, tmp_path / "whole", place=tmp_path / "whole")
    wanted = contents(tmp_path / "whole")
    for delay in (0.02, 0.06, 0.2):
        child = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(pictures), str(run)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(delay)  # the instant of the kill is what is drawn, not something waited for
        child.kill()
        child.communicate()
        found = contents(pictures) | contents(run)
        whole_ones = {name: data for name, data in found.items() if ".part" not in name}
        assert all(wanted[name] == data for name, data in whole_ones.items())
    for path in [*pictures.iterdir(), *run.iterdir()]:
        os.utime(path, (0, 0))  # only their age tells that nobody writes them any more
    write(rows, FORMATS, run)
    assert contents(pictures) | contents(run) == wanted


def test_an_interrupt_leaves_nothing(tmp_path: Path):
    def rows() -> Iterator[Row]:
        yield row(1, "/p/a.jpg")
        raise KeyboardInterrupt

    for name in TABLES:
        with pytest.raises(KeyboardInterrupt):
            export(rows, [name], Options(tmp_path / "run"))
    assert not contents(tmp_path)


def test_a_link_is_replaced_and_its_target_kept(tmp_path: Path):
    (tmp_path / "own.jsonl").write_bytes(b"mine")
    (tmp_path / "answers.jsonl").symlink_to("own.jsonl")
    write([PLAIN], ["jsonl"], tmp_path)
    assert (tmp_path / "own.jsonl").read_bytes() == b"mine"
    assert not (tmp_path / "answers.jsonl").is_symlink()


_MANY = """
import sys
from dataclasses import replace
from pathlib import Path
from llava_ollama.export import Options, export, make
from tests.memory import peak
from tests.rows import PLAIN
def rows():
    for number in range(int(sys.argv[1])):
        yield replace(PLAIN, item=number, path=f"/nowhere/{number}.jpg")
export(rows, ["jsonl"], Options(Path(sys.argv[2])))
make("txt", Options(Path(sys.argv[2]))).plan(rows)
print(peak())
"""


def test_many_rows_need_little_memory(tmp_path: Path):
    peaks = [int(child(_MANY, str(number), str(tmp_path))) for number in (100, 100_000)]
    # The bits of the names are touched here and there, and with many names everywhere.
    assert peaks[1] - peaks[0] < 20 << 20


def test_a_hundred_problems_are_told(tmp_path: Path):
    (txt,) = write([row(n, f"/nowhere/{n}.jpg") for n in range(500)], ["txt"], tmp_path)
    assert (txt.failed, len(txt.problems)) == (500, 100)


def child(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    return done.stdout


def test_a_part_is_swept_when_it_is_old(tmp_path: Path):
    part = whole.part_of(tmp_path / "x")
    part.touch()
    whole.sweep(tmp_path)
    assert part.exists()
    os.utime(part, (0, 0))
    whole.sweep(tmp_path)
    assert not part.exists()


def test_the_command(tmp_path: Path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    names = ["a.jpg", os.fsdecode(b"\xff.png")]
    journal(tmp_path / "run", [(pictures / name, f"It is {n}.") for n, name in enumerate(names)])
    call = ["export", str(tmp_path / "run"), "--format", "txt", "--format", "jsonl", "--json"]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.stderr
    txt, jsonl = json.loads(done.stdout)["exports"]
    assert (txt["written"], jsonl["files"]) == (2, [str(tmp_path / "run" / "answers.jsonl")])
    assert contents(pictures) == {"a.txt": b"It is 0.\n", os.fsdecode(b"\xff.txt"): b"It is 1.\n"}
    (pictures / "a.txt").unlink()
    (pictures / "a.txt").mkdir()
    done = CliRunner().invoke(main, call[:-1])
    assert done.exit_code == 4
    assert "a.txt: it is not a file" in done.stderr
    assert done.stdout.startswith("txt: 1 unchanged, 1 failed\njsonl: ")
