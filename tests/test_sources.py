"""Sources: every picture is found once, and what is none is told with its reason."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ollama.batch.journal import Entry
from llava_ollama.batch.sources import Sources, read_source
from llava_ollama.batch.work import Ask, Item
from llava_ollama.errors import ImageError, UsageProblem

ASK = Ask("Describe this image", "Be brief", {"temperature": 0, "seed": 7}, {"type": "object"})
PICTURE = b"\x89PNG\r\n\x1a\nnot decoded here"
URI = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)


def names(folder: Path, entries: Sources) -> dict[str, str]:
    return {
        os.path.relpath(entry.path, folder): f"{entry.state} {entry.reason}".strip()
        for entry in entries
    }


def requests(folder: Path, *lines: object) -> list[Entry]:
    path = folder / "requests.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return list(Sources([path], asks=(ASK,)))


def openai(content: object, **body: object) -> dict[str, object]:
    messages = [{"role": "user", "content": content}]
    return {
        "custom_id": "one",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": messages, **body},
    }


def about(url: str, **body: object) -> dict[str, object]:
    text = {"type": "text", "text": "What is it?"}
    return openai([text, {"type": "image_url", "image_url": {"url": url}}], **body)


def test_folders_are_read_in_order(folder: Path) -> None:
    make(folder, "b.png", "a/2.JPG", "a/1.webp", "c.png", ".hidden.png", ".git/x.png", "a/noted.md")
    sources = Sources([folder])
    assert names(folder, sources) == {
        "b.png": "pending",
        "c.png": "pending",
        "a/1.webp": "pending",
        "a/2.JPG": "pending",
        "a/noted.md": "skipped `.md` is not the extension of a picture",
    }
    assert list(names(folder, Sources([folder])))[-1] == "a/noted.md"
    assert sources.found.hidden == 2
    entry = next(iter(Sources([folder / "b.png"])))
    stat = (folder / "b.png").stat()
    assert (entry.size, entry.mtime_ns) == (len(PICTURE), stat.st_mtime_ns)


def test_sidecars_are_counted_and_not_listed(folder: Path) -> None:
    make(folder, "a.png", "a.txt", "a.png.xmp", "b.txt")
    sources = Sources([folder])
    assert set(names(folder, sources)) == {"a.png", "b.txt"}
    assert sources.found.sidecars == 2


def test_loops_of_links_end(folder: Path) -> None:
    make(folder, "real/a.png")
    (folder / "real" / "up").symlink_to(folder)
    (folder / "a link").symlink_to(folder / "real")
    (folder / "self.png").symlink_to("self.png")
    (folder / "b.png").symlink_to(folder / "real" / "a.png")
    (folder / "lost.png").symlink_to(folder / "nothing.png")
    sources = Sources([folder, folder / "real"])
    found = names(folder, sources)
    assert {k: v.split()[0] for k, v in found.items()} == {
        "b.png": "pending",
        "lost.png": "gone",
        "self.png": "gone",
        "real/a.png": "pending",
    }
    assert sources.found.seen_before == 3


def test_a_folder_behind_a_link_is_read(folder: Path, tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "a.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert names(folder, Sources([folder])) == {"link/a.png": "pending"}


def test_names_that_are_not_utf8_and_what_is_no_file(folder: Path) -> None:
    odd = os.fsencode(folder) + b"/\xff\xfe.png"
    Path(os.fsdecode(odd)).write_bytes(PICTURE)
    os.mkfifo(folder / "pipe.png")
    found = {os.fsencode(entry.path): entry for entry in Sources([folder])}
    assert found[odd].state == "pending"
    assert read_source(Item(1, found[odd].path)) == PICTURE
    assert found[os.fsencode(folder / "pipe.png")].reason == "it is not a file"


def test_the_runs_own_folder_is_passed_by(folder: Path) -> None:
    make(folder, "a.png", "run/gallery/1.png")
    assert set(names(folder, Sources([folder], leave_out=[folder / "run"]))) == {"a.png"}
    assert "a.png" in names(folder, Sources([folder], leave_out=[folder / "none"]))


def test_an_unreadable_folder_is_told(folder: Path) -> None:
    make(folder, "a.png", "gone/b.png")
    sources = Sources([folder])
    entries = iter(sources)
    assert Path(next(entries).path).name == "a.png"
    (folder / "gone" / "b.png").unlink()
    (folder / "gone").rmdir()
    assert list(entries) == []
    assert sources.found.unreadable == 1
    assert sources.found.told == [f"`{folder / 'gone'}` cannot be read: no such file or directory"]


def test_what_is_named_must_be_there(folder: Path) -> None:
    with pytest.raises(UsageProblem, match="no such file") as caught:
        Sources([folder / "x"])
    assert caught.value.hint
    with pytest.raises(UsageProblem, match="no such file"):
        Sources(lists=[folder / "x"])


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
@pytest.mark.parametrize("ends", [0, 1])
def test_lists_of_names(folder: Path, separator: bytes, ends: int) -> None:
    make(folder, "a b.png", "c/d.png")
    listed = [os.fsencode(folder / name) for name in ("a b.png", "missing.png", "c")]
    data = separator.join(listed) + separator * ends
    (folder / "list").write_bytes(data)
    for lists in ([folder / "list"], [io.BytesIO(data)]):
        assert names(folder, Sources(lists=lists)) == {
            "a b.png": "pending",
            "missing.png": "gone no such file or directory",
            "c/d.png": "pending",
        }


def test_a_name_in_a_list_may_have_a_line_break(folder: Path) -> None:
    make(folder, "a\nb.png")
    data = os.fsencode(folder / "a\nb.png") + b"\0"
    assert names(folder, Sources(lists=[io.BytesIO(data)])) == {"a\nb.png": "pending"}
    assert [e.state for e in Sources(lists=[io.BytesIO(b"x" * 300_000)])] == ["skipped"]


def test_lines_of_our_own(folder: Path) -> None:
    make(folder, "a.png")
    found = requests(
        folder,
        {"image": "a.png"},
        {"path": str(folder / "a.png"), "prompt": "Why?", "id": "x", "options": {"seed": 1}},
        {"image": "a.png", "system": "Be long"},
        {"image": URI, "prompt": "What?"},
        {"image": "b.png"},
    )
    path = str(folder / "a.png")
    assert [(e.path, e.custom_id, e.state) for e in found] == [
        (path, "", "pending"),
        (path, "x", "pending"),
        (path, "", "pending"),
        (str(folder / "requests.jsonl"), "", "pending"),
        (str(folder / "b.png"), "", "gone"),
    ]
    assert found[0].asks == ()
    assert found[1].asks == (Ask("Why?", None, {"temperature": 0, "seed": 1}),)
    assert found[2].asks[0].system == "Be long"
    assert found[2].asks[0].schema == ASK.schema
    assert read_source(Item(1, found[3].path, "", found[3].offset)) == PICTURE


def test_lines_of_openai(folder: Path) -> None:
    make(folder, "a.png", "b c.png")
    schema = {"type": "object"}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    said = about(URI, max_tokens=9, temperature=0.5, seed=3, stop="x", response_format=shape)
    with_system = about("a.png")
    system = {"role": "system", "content": "Be brief"}
    with_system["body"]["messages"].insert(0, system)  # type: ignore[index]
    found = requests(folder, said, with_system, about(f"file://{folder}/b%20c.png"))
    assert [(e.custom_id, e.state, e.reason) for e in found] == [("one", "pending", "")] * 3
    options = {"num_predict": 9, "temperature": 0.5, "seed": 3, "stop": ["x"]}
    assert found[0].asks == (Ask("What is it?", None, {**ASK.options, **options}, schema),)
    assert read_source(Item(1, found[0].path, "one", found[0].offset)) == PICTURE
    assert (found[1].asks[0].system, found[1].path) == ("Be brief", str(folder / "a.png"))
    assert found[2].path == str(folder / "b c.png")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nothing", "the line is not a JSON object"),
        ({"prompt": "What?"}, "the line names no picture: it needs `image` or `path`"),
        ({"image": 3}, "`image` is not a text"),
        ({"image": "a.png", "propmt": "x"}, "the line has the unknown key `propmt`"),
        ({"image": "a.png", "options": 3}, "`options` is not a JSON object"),
        (about("https://example.com/a.png"), "is on the network, and pictures are not fetched"),
        (openai("only text"), "the user's message has 0 pictures, and one is asked about"),
        (about(URI, tools=[]), "`tools` is not supported"),
        (about(URI, n=2), "`n` is not 1"),
        (about(URI, seed=True), "`seed` is not a number"),
        (about(URI, response_format={"type": "json_object"}), "`response_format` is neither text"),
        (about(URI) | {"url": "/v1/embeddings"}, "`/v1/embeddings` is not `POST /v1/chat/comple"),
        ({"custom_id": "one", "url": "/v1/chat/completions"}, "the line has no `body`"),
    ],
)
def test_a_line_that_cannot_be_asked_fails_alone(folder: Path, line: object, reason: str) -> None:
    make(folder, "a.png")
    bad, good = requests(folder, line, {"image": "a.png"})
    assert (bad.state, bad.error_kind, bad.offset) == ("failed", "request", 0)
    assert reason in bad.reason
    assert good.state == "pending"


def test_bytes_that_are_no_line(folder: Path) -> None:
    make(folder, "a.png")
    (folder / "r.jsonl").write_bytes(b'\xff\n\n{"image": "\\ud800.png"}\n[[[\n{"image": "a.png"}')
    found = list(Sources([folder / "r.jsonl"], asks=(ASK,)))
    assert [e.state for e in found] == ["failed", "gone", "failed", "pending"]
    assert [e.key for e in found]


def test_a_request_file_that_has_changed(folder: Path) -> None:
    (entry,) = requests(folder, {"image": URI})
    Path(entry.path).write_text("{}\n")
    for offset in (0, 1, 99):
        with pytest.raises(ImageError, match="cannot be read"):
            read_source(Item(1, entry.path, "", offset))


@pytest.mark.parametrize(
    "number", [20_000, pytest.param(1_000_000, marks=pytest.mark.soak)], ids=str
)
def test_names_cost_no_memory(folder: Path, number: int) -> None:
    """A process of its own: it must not grow with the names (a million have 100 MB in all)."""
    for n in range(number):
        os.mknod(folder / f"a picture with a name of some length {n:07}.png")
    program = """
import sys
from llava_ollama.batch.sources import Sources
from tests.memory import peak
print(sum(1 for _ in Sources([sys.argv[1]])), peak())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    count, most = map(int, done.stdout.split())
    assert count == number
    assert most <= 100_000_000


def test_a_run_that_is_made_later_is_left_out(folder: Path) -> None:
    make(folder, "a.png")
    sources = Sources([folder], leave_out=[folder / "run"])
    make(folder, "run/journal.png")
    assert set(names(folder, sources)) == {"a.png"}


def test_a_folder_cannot_be_source_and_run(folder: Path) -> None:
    with pytest.raises(UsageProblem, match="is both the run and a source"):
        Sources([folder], leave_out=[folder / ".." / folder.name])


@pytest.mark.parametrize("source", ["file://[::1/x.png", "http://[bad/x.png"])
def test_an_address_that_is_none_is_told(folder: Path, source: str) -> None:
    (entry,) = requests(folder, {"image": source})
    assert entry.state == "failed"
    assert entry.reason == f"`{source}` is no address: Invalid IPv6 URL"
