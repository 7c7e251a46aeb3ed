"""What goes wrong in a run: by kind, and never as an answer."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from llava_ollama.batch.events import Event, HostChanged, Warned
from llava_ollama.batch.outcomes import EMPTY, Patience
from llava_ollama.batch.run import Manner
from llava_ollama.errors import CheckFailed, DaemonUnreachable, LlavaOllamaError, UsageProblem
from tests.batches import asked, host, jobs
from tests.chunks import ChunkFeed
from tests.scripted import (
    BAD,
    BROKEN,
    BUSY,
    CRASH,
    HANG_UP,
    STALL,
    Heard,
    Reply,
    Scripted,
    colourful,
    expected,
    failing,
    of,
    says,
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


def test_attempts_of_earlier_runs_count(pictures: list[Path]):
    (job,) = jobs(pictures[:1])
    tried = replace(job, questions=(replace(job.questions[0], attempts=2),))
    feed = ChunkFeed([tried])
    with Scripted(failing([BROKEN] * 3)) as daemon:
        asked([host(daemon.url)], feed)
    assert (feed.outcomes[0, 0].state, feed.outcomes[0, 0].attempts) == ("failed", 3)
    assert len(daemon.asked) == 1


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


def test_a_daemon_whose_runner_always_dies_is_not_the_pictures_fault(pictures: list[Path]):
    feed = ChunkFeed(jobs(pictures))
    died: list[bool] = []

    def reply(heard: Heard) -> Reply:
        died.append(bool(died) or heard.picture == of(pictures[4]))
        return CRASH if died[-1] else says(heard)

    with Scripted(reply) as daemon, pytest.raises(DaemonUnreachable) as caught:
        asked([host(daemon.url)], feed, Manner(Patience(hosts=1.0)))
    assert "unexpectedly stopped" in caught.value.message
    assert all(outcome.state == "done" for outcome in feed.outcomes.values())
    assert not feed.outcomes.keys() & {(4, 0)}


# Hosts


def test_a_host_that_dies_gives_its_pictures_back_and_is_used_again(tmp_path: Path):
    pictures = colourful(tmp_path / "pictures", 60)
    heard: list[Event] = []
    with Scripted() as one, Scripted() as other:
        back = Scripted(port=one.port)

        def reply(question: Heard) -> Reply:
            if len(other.asked) == 10:
                one.die()
            if len(other.asked) == 25:
                back.__enter__()
            if len(other.asked) > 25:
                back.met.wait(10)
            return says(question)

        other.reply = reply
        feed = ChunkFeed(jobs(pictures))
        asked([host(one.url), host(other.url)], feed, heard=heard)
        back.die()
    everything_is_right(feed, pictures)
    assert all(outcome.attempts == 1 for outcome in feed.outcomes.values())
    states = [e.state for e in heard if isinstance(e, HostChanged) and e.name == one.url]
    assert [states[0], states[-1]] == ["up", "up"]
    assert "down" in states
    assert one.asked
    assert back.asked
    assert len(one.asked) + len(other.asked) + len(back.asked) <= 60 + 2


def test_hosts_with_different_models_are_refused(pictures: list[Path]):
    feed = ChunkFeed(jobs(pictures))
    with Scripted() as one, Scripted(model="b") as other, pytest.raises(UsageProblem) as caught:
        asked([host(one.url), host(other.url)], feed)
    assert caught.value.message == (
        f"`{other.url}` holds another model than `{one.url}`, so their answers would not be of"
        " one kind"
    )
    assert caught.value.hint is not None
    assert f"--host {other.url} --name tiny --force" in caught.value.hint
    assert not one.heard


def test_a_host_that_comes_later_with_another_model_is_left_out(pictures: list[Path]):
    late = Scripted(model="b")
    with late:
        pass  # so that it has a port

    def reply(question: Heard) -> Reply:
        if len(one.asked) == 3:
            late.__enter__()
        if len(one.asked) > 3:
            left_out.wait(10)
        return says(question)

    left_out = threading.Event()

    class Events(list[Event]):
        def append(self, event: Event) -> None:
            super().append(event)
            if isinstance(event, HostChanged) and event.state == "left out":
                left_out.set()

    heard = Events()
    feed = ChunkFeed(jobs(pictures))
    with Scripted(reply) as one:
        asked([host(one.url), host(late.url)], feed, heard=heard)
    late.die()
    everything_is_right(feed, pictures)
    assert left_out.is_set()
    assert not late.heard
    warned = [event.message for event in heard if isinstance(event, Warned)]
    assert [late.url in message for message in warned] == [True, True]


def test_a_model_that_is_replaced_during_a_run_ends_it(pictures: list[Path]):
    """What it said since is asked again: nothing of it is written down as the run's model's."""
    feed = ChunkFeed(jobs(pictures))

    def reply(question: Heard) -> Reply:
        if len(daemon.asked) < 4:
            return says(question)
        daemon.model = "b"
        return f"another model says {question.number}"

    with Scripted(reply) as daemon, pytest.raises(UsageProblem, match="holds another model than"):
        asked([host(daemon.url, level=1)], feed)
    assert not [one for one in feed.outcomes.values() if one.text.startswith("another")]
    with Scripted() as daemon:
        asked([host(daemon.url)], feed)
    everything_is_right(feed, pictures)


def test_a_model_that_is_removed_during_a_run_ends_it(pictures: list[Path]):
    feed = ChunkFeed(jobs(pictures))
    missing = 404, {"error": "model 'x' not found"}

    def reply(question: Heard) -> Reply:
        return says(question) if len(daemon.asked) < 4 else missing

    with Scripted(reply) as daemon, pytest.raises(DaemonUnreachable, match="has no model"):
        asked([host(daemon.url, level=1)], feed, Manner(Patience(hosts=0.5)))
    assert len(feed.outcomes) == 3
    with Scripted() as daemon:
        asked([host(daemon.url)], feed)
    everything_is_right(feed, pictures)


def test_without_a_host_the_run_ends_and_may_go_on_later(pictures: list[Path]):
    feed = ChunkFeed(jobs(pictures))

    def reply(question: Heard) -> Reply:
        if len(daemon.asked) == 5:
            threading.Thread(target=daemon.die).start()
        return says(question)

    with Scripted(reply) as daemon, pytest.raises(DaemonUnreachable) as caught:
        asked([host(daemon.url)], feed, Manner(Patience(hosts=0.5)))
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("no host has answered for 0.5 seconds: ")
    done = len(feed.outcomes)
    assert 0 < done < COUNT
    with Scripted() as daemon:
        asked([host(daemon.url)], feed)
    everything_is_right(feed, pictures)
    assert len(daemon.asked) == COUNT - done


# The canary


@pytest.mark.parametrize("words", ["A picture of nothing at all.", ""])
def test_a_model_that_does_not_see_ends_the_run(words: str, pictures: list[Path]):
    feed = ChunkFeed(jobs(pictures))
    with Scripted(lambda _: words) as daemon, pytest.raises(CheckFailed) as caught:
        asked([host(daemon.url)], feed)
    assert caught.value.message.startswith("the model does not see: of two different pictures")
    assert not daemon.asked
    assert not feed.outcomes


def test_a_model_that_stops_seeing_ends_the_run(tmp_path: Path):
    pictures = colourful(tmp_path / "pictures", 40)
    feed = ChunkFeed(jobs(pictures))
    blind: list[Heard] = []

    def reply(heard: Heard) -> Reply:
        if len(daemon.asked) <= 10:
            return says(heard)
        blind.append(heard)
        return "A dark picture of an empty room."

    heard: list[Event] = []
    with Scripted(reply) as daemon, pytest.raises(CheckFailed):
        asked([host(daemon.url)], feed, heard=heard)
    assert len(blind) < 16
    assert any("keeps saying" in event.message for event in heard if isinstance(event, Warned))


def test_pictures_that_are_alike_are_no_reason_to_end(tmp_path: Path):
    pictures = colourful(tmp_path / "pictures", 40)

    def reply(heard: Heard) -> Reply:
        return says(heard) if heard.is_canary else "A dark picture of an empty room."

    feed = ChunkFeed(jobs(pictures))
    with Scripted(reply) as daemon:
        assert asked([host(daemon.url)], feed).counts.done == 40
    canaries = sum(heard.is_canary for heard in daemon.heard)
    assert 4 <= canaries <= 8


def test_short_answers_may_be_the_same(tmp_path: Path):
    pictures = colourful(tmp_path / "pictures", 40)

    def reply(heard: Heard) -> Reply:
        return says(heard) if heard.is_canary else "No."

    feed = ChunkFeed(jobs(pictures))
    with Scripted(reply) as daemon:
        asked([host(daemon.url)], feed)
    assert sum(heard.is_canary for heard in daemon.heard) == 2


def test_errors_of_a_journal_end_the_run_as_they_are(pictures: list[Path]):
    class Full(ChunkFeed):
        def take(self, most: int):
            if self.outcomes:
                raise LlavaOllamaError("the disk is full")
            return super().take(most)

    with Scripted() as daemon, pytest.raises(LlavaOllamaError, match="the disk is full"):
        asked([host(daemon.url)], Full(jobs(pictures)))
