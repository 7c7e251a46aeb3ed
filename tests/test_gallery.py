"""The gallery's folder: what is in it, that it is whole, and that it can be written again."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from llava_ollama.batch.journal import Config, Entry, Journal
from llava_ollama.batch.thumbnails import Thumbnails
from llava_ollama.batch.work import Ask
from llava_ollama.cli import main
from llava_ollama.errors import LlavaOllamaError, UsageProblem
from llava_ollama.gallery import build, scripts
from llava_ollama.progress import Reporter
from tests.galleries import gallery, jpeg, many, picture, row


def calls(folder: Path, pattern: str) -> list[Any]:
    """Return what the scripts hand to the page, script by script."""
    found = []
    for path in sorted(folder.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        assert re.fullmatch(r"gallery\.\w+\(.*\);\n", text)
        found.append(json.loads(f"[{text[text.index('(') + 1 : -3]}]"))
    return found


def index(folder: Path) -> Any:
    return calls(folder, "data/index.js")[0][0]


def pictures(folder: Path) -> list[Any]:
    return [one for _, part in calls(folder, "data/[0-9]*.js") for one in part]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_picture_and_answer_is_there_once(tmp_path):
    rows = [replace(one, ask=ask) for one in many(2500) for ask in (7, 9)]
    made = gallery(tmp_path, *rows)
    found = pictures(made.folder)
    assert made.pictures == index(made.folder)["pictures"] == len(found) == 2500
    assert [len(part) for _, part in calls(made.folder, "data/[0-9]*.js")] == [1000, 1000, 500]
    assert [one[0] for one in found] == [one.path for one in rows[::2]]
    assert [answer[2] for one in found for answer in one[6]] == [one.text for one in rows]


def test_states_errors_and_hosts_are_counted_by_picture(tmp_path):
    failed = {"state": "failed", "error_kind": "picture", "error": "it is cut off"}
    rows = [row(1), row(1, ask=2, finish="length"), row(2, **failed), row(2, ask=2, **failed)]
    told = index(gallery(tmp_path, *rows, row(3)).folder)
    named = {
        name: dict(zip(told[name], counts, strict=True)) for name, counts in told["counts"].items()
    }
    assert named["states"] == {"done": 2, "failed": 1}
    assert named["kinds"] == {"": 2, "picture": 1}
    assert named["finishes"] == {"stop": 2, "length": 1, "": 1}


def test_a_question_for_each_picture_does_not_fill_the_index(tmp_path):
    rows = [row(n, ask=n, prompt=f"Is it {n}?") for n in range(1, 1501)]
    made = gallery(tmp_path, *rows)
    asks = index(made.folder)["asks"]
    told = [answer[0] for one in pictures(made.folder) for answer in one[6]]
    said = [asks[one] if isinstance(one, int) else one for one in told]
    assert len(asks) == 1000
    assert [one["prompt"] for one in said] == [one.prompt for one in rows]


def test_small_pictures_come_from_the_run(tmp_path):
    with Thumbnails(tmp_path) as store:
        for number in range(0, 100, 2):
            store.put(f"{number:064x}", jpeg("blue"))
    rows = [row(n + 1, sha256=f"{n:064x}") for n in range(100)]
    made = gallery(tmp_path, *rows)
    parts = calls(made.folder, "thumbnails/0/*.js")
    assert [len(part) for _, part in parts] == [32, 32, 32, 4]
    small = [one for _, part in parts for one in part]
    assert [one is not None for one in small] == [one[5] == 1 for one in pictures(made.folder)]
    assert [one is not None for one in small] == [n % 2 == 0 for n in range(100)]
    assert base64.b64decode(small[0]) == jpeg("blue")


def test_a_small_picture_that_is_missing_is_made_and_kept(tmp_path):
    path = tmp_path / "photo.jpg"
    digest = picture(path, "green", (640, 320))
    one = row(1, path=str(path), sha256=digest)
    made = gallery(tmp_path, one)
    (_, (small,)), *_ = calls(made.folder, "thumbnails/0/*.js")
    with Image.open(io.BytesIO(base64.b64decode(small))) as image:
        assert image.size == (224, 112)
    path.unlink()
    assert contents(gallery(tmp_path, one).folder) == contents(made.folder)


@pytest.mark.parametrize("what", ["another", "broken", "gone", "a folder"])
def test_an_original_that_changed_gives_no_small_picture(tmp_path, what):
    path = tmp_path / "photo.jpg"
    digest = picture(path)
    path.unlink()
    if what == "another":
        picture(path, "blue")
    elif what == "broken":
        path.write_bytes(b"\xff\xd8\xff")
    elif what == "a folder":
        path.mkdir()
    made = gallery(tmp_path, row(1, path=str(path), sha256=digest))
    assert pictures(made.folder)[0][5] == 0
    assert not (made.folder / "thumbnails").exists()


def test_names_that_are_not_utf_8_lead_to_their_files(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 #1.jpg")
    name, _, address, *_ = pictures(gallery(tmp_path, row(1, path=path)).folder)[0]
    assert name == f"{tmp_path}/caf\N{REPLACEMENT CHARACTER} #1.jpg"
    assert address == f"{tmp_path.as_uri()}/caf%E9%20%231.jpg"


def test_a_picture_within_a_file_of_requests_has_the_users_name_and_no_original(tmp_path):
    made = gallery(tmp_path, row(1, path="/data/requests.jsonl", custom_id="cat \ud83d"))
    assert pictures(made.folder)[0][:3] == [
        "/data/requests.jsonl",
        "cat \N{REPLACEMENT CHARACTER}",
        0,
    ]


@pytest.mark.parametrize(
    "text", ["</script><script>", "<!--", "\u2028\u2029", "\ud800", "\0", "\\u003c", "\"'`${1}"]
)
def test_no_text_ends_a_script_or_a_line_of_it(tmp_path, text):
    made = gallery(tmp_path, row(1, text=text, path=f"/{text}.jpg", prompt=text, host=text))
    data = (made.folder / "data/0001.js").read_bytes()
    assert data.count(b"\n") == 1
    assert b"<" not in data
    assert not re.search("[\u2028\u2029]", data.decode())
    assert pictures(made.folder)[0][6][0][2] == text.replace("\ud800", "?")


def test_it_is_written_again_and_old_parts_are_gone(tmp_path):
    first = contents(gallery(tmp_path, *many(2100)).folder)
    assert "data/0003.js" in first
    assert contents(gallery(tmp_path, *many(2100)).folder) == first
    made = gallery(tmp_path, *many(10))
    second = contents(made.folder)
    assert "data/0002.js" not in second
    assert set(tmp_path.glob("*gallery*")) - {tmp_path / ".gallery.lock"} == {made.folder}


def test_what_fails_on_the_way_leaves_the_old_gallery(tmp_path):
    before = contents(gallery(tmp_path, *many(10)).folder)

    def broken():
        yield from many(2000)
        raise LlavaOllamaError("the journal is damaged")

    with pytest.raises(LlavaOllamaError, match="damaged"):
        gallery(tmp_path, *broken())
    with Thumbnails(tmp_path) as small, pytest.raises(LlavaOllamaError, match="damaged"):
        build(broken(), small, tmp_path / "gallery")
    assert contents(tmp_path / "gallery") == before
    assert not (tmp_path / ".gallery.part").exists()


def test_what_killed_ones_left_is_cleared_and_the_old_gallery_is_back(tmp_path):
    made = gallery(tmp_path, row(1))
    made.folder.rename(tmp_path / ".gallery.old")  # killed between the two renames
    (tmp_path / ".gallery.part").mkdir()

    def looking():
        assert (tmp_path / "gallery/index.html").exists()
        yield row(1)

    with Thumbnails(tmp_path) as small:
        build(looking(), small, tmp_path / "gallery")
    assert set(tmp_path.glob("*gallery*")) - {tmp_path / ".gallery.lock"} == {made.folder}


@pytest.mark.parametrize("what", ["a file", "a folder", "a gallery with more", "another's"])
def test_what_is_no_gallery_is_not_replaced(tmp_path, what):
    target = tmp_path / "gallery"
    if what == "a file":
        target.write_text("mine")
    elif what == "a gallery with more":
        gallery(tmp_path, row(1))
        (target / "data" / "notes.txt").write_text("mine")
    elif what == "another's":
        (target / "data").mkdir(parents=True)
        (target / "data" / "index.js").write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    with pytest.raises(UsageProblem) as caught:
        gallery(tmp_path, row(1))
    assert caught.value.message == f"`{target}` is there already, and no gallery"
    assert caught.value.hint == "Choose another folder with `-o`"
    kept = [path for path in (target, *target.rglob("*")) if path.is_file()]
    assert "mine" in {path.read_text() for path in kept}


def test_a_second_writer_is_refused(tmp_path):
    def rows():
        with pytest.raises(UsageProblem) as caught:
            gallery(tmp_path, row(1))
        assert caught.value.message == (
            f"another process is writing the gallery `{tmp_path}/gallery`"
        )
        yield row(1)

    with Thumbnails(tmp_path) as small:
        assert build(rows(), small, tmp_path / "gallery").pictures == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with Thumbnails(tmp_path) as small, pytest.raises(LlavaOllamaError) as caught:
        build([row(1)], small, tmp_path / "file" / "gallery")
    assert f"{tmp_path}/file" in caught.value.message
    assert caught.value.hint


def test_progress_is_told_in_pictures(tmp_path):
    class Told(Reporter):
        total = 0
        whole: int | None = None

        def counting(self, task: str, total: int | None = None) -> None:  # noqa: ARG002
            self.whole = total

        def advanced(self, task: str, amount: int) -> None:  # noqa: ARG002
            self.total += amount

    told = Told()
    with Thumbnails(tmp_path) as small:
        build(many(3000), small, tmp_path / "gallery", total=3000, reporter=told)
    assert told.total == told.whole == 3000


def test_the_scripts_of_a_million_pictures_are_spread_over_folders():
    assert scripts.thumbnails_file(1) == "thumbnails/0/0001.js"
    assert scripts.thumbnails_file(1000) == "thumbnails/0/1000.js"
    assert scripts.thumbnails_file(31_250) == "thumbnails/31/31250.js"
    assert scripts.pictures_file(1000) == "data/1000.js"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Begin a run of one picture, still pending."""
    path = tmp_path / "photo.jpg"
    picture(path)
    config = Config("tiny", "a" * 64, (Ask("Describe this image"),))
    with Journal(tmp_path / "run1", config, state=tmp_path / "state") as journal:
        journal.add([Entry(str(path), size=1, mtime_ns=1)])
    return tmp_path / "run1"


def test_the_command_writes_the_gallery_of_a_run(run):
    done = CliRunner().invoke(main, ["gallery", str(run)])
    page = run / "gallery/index.html"
    assert done.stdout == f"wrote {page}: 1 picture\n"
    assert done.stderr == (
        "1 of 1 answers are still to come\n"
        "Open that file in a browser, or run the same command with `--open`\n"
    )
    told = index(run / "gallery")
    assert (told["title"], told["states"]) == ("run1", ["pending"])
    assert (told["base"], told["up"]) == (str(run.parent), "../../")


def test_the_command_has_json_and_another_place(run, tmp_path):
    call = ["gallery", str(run), "-o", str(tmp_path / "page"), "--json"]
    done = CliRunner().invoke(main, call)
    folder = str(tmp_path / "page")
    assert json.loads(done.stdout) == {
        "folder": folder,
        "page": f"{folder}/index.html",
        "pictures": 1,
        "left": 1,
    }


def test_the_gallery_of_no_run_is_refused(tmp_path):
    done = CliRunner().invoke(main, ["gallery", str(tmp_path)], prog_name="llava-ollama")
    assert done.stderr == (
        f"Error: `{tmp_path}` is not a run: it has no journal\n"
        "Hint: Begin one: `llava-ollama batch PICTURES PROMPT -o RUN`\n"
    )
    assert done.exit_code == 2
