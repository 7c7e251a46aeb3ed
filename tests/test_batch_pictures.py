"""What can be wrong with the files of a run, and pictures that are equal."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_ollama.batch import pictures as reading
from llava_ollama.batch import run
from llava_ollama.batch.failures import Blame, Verdict, judge
from llava_ollama.batch.run import Manner
from llava_ollama.batch.work import Ask, ErrorKind, Item, State
from llava_ollama.errors import ImageError
from llava_ollama.images import Vision
from tests.batches import DESCRIBE, QUICK, asked, host, jobs
from tests.chunks import ChunkFeed
from tests.scripted import CRASH, Heard, Reply, Scripted, colourful, expected, failing, of, says


def _gone(path: Path) -> None:
    path.unlink()


def _no_folder(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere" / "x.png")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _text(path: Path) -> None:
    path.write_text("no picture")


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "state", "kind"),
    [
        (_gone, "gone", "picture"),
        (_no_folder, "gone", "picture"),
        (_empty, "failed", "picture"),
        (_cut, "failed", "picture"),
        (_text, "failed", "picture"),
        (_loop, "failed", "picture"),
        (_folder, "failed", "picture"),
        (_pipe, "failed", "picture"),
    ],
)
def test_a_bad_file_costs_itself_alone(
    spoil: Callable[[Path], None], state: State, kind: ErrorKind, tmp_path: Path
):
    pictures = colourful(tmp_path / "pictures", 5)
    spoil(pictures[2])
    feed = ChunkFeed(jobs(pictures))
    with Scripted() as daemon:
        asked([host(daemon.url)], feed)
    bad = feed.outcomes.pop((2, 0))
    assert (bad.state, bad.error_kind, bad.attempts) == (state, kind, 1)
    assert "002.png" in bad.error
    assert {number: o.text for (number, _), o in feed.outcomes.items()} == {
        number: expected(path) for number, path in enumerate(pictures) if number != 2
    }


def test_a_name_that_is_not_utf_8_can_be_told(tmp_path: Path):
    odd = tmp_path / os.fsdecode(b"\xff.png")
    odd.write_bytes(b"no picture")
    feed = ChunkFeed(jobs([odd]))
    with Scripted() as daemon:
        asked([host(daemon.url)], feed)
    assert feed.outcomes[0, 0].error.encode()
    assert "\\udcff" in feed.outcomes[0, 0].error


def test_links_and_files_that_change_meanwhile_are_read_as_they_are(tmp_path: Path):
    pictures = colourful(tmp_path / "pictures", 4)
    link = tmp_path / "link.png"
    link.symlink_to(pictures[3])

    def reply(heard: Heard) -> Reply:
        shutil.copyfile(pictures[1], pictures[0])
        return says(heard)

    feed = ChunkFeed(jobs([*pictures[:3], link]))
    was = expected(pictures[0]), expected(pictures[1])
    with Scripted(reply) as daemon:
        asked([host(daemon.url)], feed)
    assert feed.outcomes[0, 0].text in was
    assert feed.outcomes[3, 0].text == expected(pictures[3])


def test_equal_pictures_are_asked_once_also_while_in_flight(tmp_path: Path):
    pictures = colourful(tmp_path / "pictures", 3)
    same = [pictures[0]] * 6 + pictures[1:]
    feed = ChunkFeed(jobs(same))
    with Scripted() as daemon:
        summary = asked([host(daemon.url, level=4)], feed)
    assert len(daemon.asked) == 3
    assert [feed.outcomes[n, 0].text for n in range(8)] == [expected(path) for path in same]
    origins = {feed.outcomes[n, 0].copied_from for n in range(6)}
    assert len(origins) == 2
    assert None in origins
    assert summary.counts.copied == 5


def test_above_temperature_0_each_is_asked(tmp_path: Path):
    warm = replace(DESCRIBE, options={"temperature": 0.5})
    feed = ChunkFeed(jobs(colourful(tmp_path / "pictures", 1) * 3, warm))
    with Scripted() as daemon:
        asked([host(daemon.url)], feed)
    assert [heard.options["temperature"] for heard in daemon.asked] == [0.5] * 3


def test_when_the_one_that_was_asked_fails_the_others_are_asked_themselves(tmp_path: Path):
    pictures = colourful(tmp_path / "pictures", 1) * 3
    feed = ChunkFeed(jobs(pictures))
    with Scripted(failing([(400, {"error": "no"})])) as daemon:
        asked([host(daemon.url, level=3)], feed)
    states = sorted(outcome.state for outcome in feed.outcomes.values())
    assert states == ["done", "done", "failed"]
    assert len(daemon.asked) == 2


def test_a_picture_that_kills_runners_does_so_once_for_all_its_copies(tmp_path: Path):
    pictures = [*colourful(tmp_path / "pictures", 2)[:1] * 3, tmp_path / "pictures" / "001.png"]
    feed = ChunkFeed(jobs(pictures))
    with Scripted(failing([CRASH] * 9, of(pictures[0]))) as daemon:
        asked([host(daemon.url, level=3)], feed)
    assert [feed.outcomes[n, 0].error_kind for n in range(4)] == ["crash"] * 3 + [None]
    assert len(daemon.about(of(pictures[0]))) == 2


DOCUMENT = Ask("How many?", None, {}, {"type": "object", "properties": {"n": {"minimum": 5}}})


@pytest.mark.parametrize(
    ("replies", "state", "text"),
    [
        (['{"n": 6}'], "done", '{"n": 6}'),
        (['{"n": 1}', '{"n": 7}'], "done", '{"n": 7}'),
        (['{"n": 1}', '{"n": 2}'], "failed", ""),
        ([{"content": '{"n"', "done_reason": "length"}], "failed", ""),
    ],
    ids=["fits", "is mended", "never fits", "ends early"],
)
def test_a_document_that_does_not_fit_is_no_answer(
    replies: list[Reply], state: State, text: str, tmp_path: Path
):
    feed = ChunkFeed(jobs(colourful(tmp_path / "pictures", 1), DOCUMENT))
    with Scripted(failing(replies)) as daemon:
        asked([host(daemon.url)], feed)
    outcome = feed.outcomes[0, 0]
    assert (outcome.state, outcome.text) == (state, text)
    assert outcome.error_kind == ("answer" if state == "failed" else None)
    assert len(daemon.asked) == len(replies)


def test_a_run_that_is_stopped_answers_what_is_under_way_and_goes_on_later(tmp_path: Path):
    pictures = colourful(tmp_path / "pictures", 20)
    feed = ChunkFeed(jobs(pictures))

    def reply(heard: Heard) -> Reply:
        if len(daemon.asked) == 5 and not heard.is_canary:
            loop, task = running
            loop.call_soon_threadsafe(task.cancel)
        return says(heard)

    async def whole() -> None:
        hosts = [host(daemon.url)]
        agreed = await run.agree(hosts)
        task = asyncio.create_task(run.run(hosts, feed, agreed, Manner(QUICK)))
        running.extend([asyncio.get_running_loop(), task])
        with pytest.raises(asyncio.CancelledError):
            await task

    running: list[Any] = []
    with Scripted(reply) as daemon:
        asyncio.run(whole())
        stopped = len(daemon.asked)
        assert 5 <= len(feed.outcomes) == stopped < 9
        asked([host(daemon.url)], feed)
    assert len(daemon.asked) == 20
    assert [feed.outcomes[n, 0].text for n in range(20)] == [expected(path) for path in pictures]


def test_what_was_in_flight_when_runs_died_goes_last_and_alone(tmp_path: Path):
    pictures = colourful(tmp_path / "pictures", 12)
    feared = {1, 2}
    work = [replace(job, crashes=2 * (job.item.id in feared)) for job in jobs(pictures)]
    feed = ChunkFeed(work)
    with Scripted() as daemon:
        asked([host(daemon.url, level=4)], feed)
    last = daemon.asked[-2:]
    assert {heard.picture for heard in last} == {of(pictures[n]) for n in feared}
    assert [heard.at_once for heard in last] == [1, 1]


def test_a_file_that_is_being_written_is_read_again_later():
    # What the kernel makes up as it is read has no size beforehand: like a file that grows.
    with pytest.raises(ImageError) as caught:
        reading.ready(Item(0, "/proc/version"), Vision(112))
    assert caught.value.message == "`/proc/version` is being written"
    assert caught.value.hint == "It is read again later"
    assert judge(caught.value) == Verdict(Blame.PASSING, "picture")
