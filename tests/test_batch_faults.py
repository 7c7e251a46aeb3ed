"""What goes wrong in a run: by kind, and never as an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_ollama.batch.chunks import ChunkFeed
from llava_ollama.batch.outcomes import EMPTY
from tests.batches import asked, host, jobs
from tests.scripted import (
    BAD,
    BROKEN,
    BUSY,
    CRASH,
    HANG_UP,
    STALL,
    Reply,
    Scripted,
    colourful,
    expected,
    failing,
    of,
)

COUNT = 12


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return colourful(tmp_path / "pictures", COUNT)


def everything_is_right(
    feed: ChunkFeed, pictures: list[Path], *, but: tuple[int, ...] = ()
) -> None:
    assert len(feed.outcomes) == len(pictures)
    for number, path in enumerate(pictures):
        if number not in but:
            assert feed.outcomes[number, 0].state == "done", feed.outcomes[number, 0]
            assert feed.outcomes[number, 0].text == expected(path)


@pytest.mark.parametrize(
    ("replies", "attempts"),
    [
        ([BUSY] * 3, 1),
        ([HANG_UP], 1),
        ([BROKEN], 2),
        ([BROKEN, BROKEN], 3),
        ([STALL], 2),
        ([""], 2),
        ([" \n"], 2),
        ([CRASH], 1),
        ([(502, "<html>Bad gateway</html>")], 1),
        ([(500, "<html>Oh</html>")], 2),
        ([{"done": False, "content": "I se"}], 2),
    ],
    ids=str,
)
def test_what_passes_costs_at_most_an_attempt(
    replies: list[Reply], attempts: int, pictures: list[Path]
):
    feed = ChunkFeed(jobs(pictures))
    with Scripted(failing(replies, of(pictures[4]))) as daemon:
        asked([host(daemon.url, timeout=0.5)], feed)
    everything_is_right(feed, pictures)
    assert feed.outcomes[4, 0].attempts == attempts
    assert len(daemon.asked) == COUNT + len(replies)


@pytest.mark.parametrize(
    ("reply", "kind", "times"),
    [
        (BAD, "request", 1),
        (BROKEN, "daemon", 3),
        ("", "empty", 3),
        (STALL, "timeout", 3),
        (CRASH, "crash", 2),
        (HANG_UP, "crash", 3),
    ],
)
def test_what_lasts_is_a_failure_of_its_kind(
    reply: Reply, kind: str, times: int, pictures: list[Path]
):
    feed = ChunkFeed(jobs(pictures))
    with Scripted(failing([reply] * 20, of(pictures[4]))) as daemon:
        summary = asked([host(daemon.url, timeout=0.5)], feed)
    everything_is_right(feed, pictures, but=(4,))
    failed = feed.outcomes[4, 0]
    assert (failed.state, failed.error_kind) == ("failed", kind)
    assert failed.text == "" or reply == STALL
    assert len(daemon.about(of(pictures[4]))) == times
    assert (summary.counts.done, summary.counts.failed) == (COUNT - 1, 1)


def test_an_empty_answer_has_its_sentence(pictures: list[Path]):
    feed = ChunkFeed(jobs(pictures[:1]))
    with Scripted(failing([""] * 3)) as daemon:
        asked([host(daemon.url)], feed)
    assert feed.outcomes[0, 0].error == EMPTY


def test_who_crashes_a_runner_is_asked_alone_and_once_elsewhere(pictures: list[Path]):
    killer = of(pictures[4])
    feed = ChunkFeed(jobs(pictures))
    replies = failing([CRASH] * 9, killer)
    with Scripted(replies) as one, Scripted(replies) as other:
        asked([host(one.url, level=3), host(other.url, level=3)], feed)
    everything_is_right(feed, pictures, but=(4,))
    assert feed.outcomes[4, 0].error_kind == "crash"
    heard = one.about(killer), other.about(killer)
    assert sorted(map(len, heard)) == [1, 2]
    alone = [each for many in heard for each in (many[1:] if len(many) > 1 else many)]
    assert [each.at_once for each in alone] == [1, 1]
