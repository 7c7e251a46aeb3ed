"""The journal: what was committed is neither lost nor done twice, whatever happens."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from llava_ollama.batch.journal import Config, Entry, Journal, JournalFeed, Reading
from llava_ollama.batch.thumbnails import Thumbnails
from llava_ollama.batch.work import Ask, Job, Outcome, Seen
from llava_ollama.errors import LlavaOllamaError, UsageProblem

DESCRIBE = Ask("Describe this image", options={"temperature": 0})
COUNT = Ask("How many?", options={"temperature": 0})
CONFIG = Config("tiny", "a" * 64, (DESCRIBE,))
HOST = "http://127.0.0.1:11434"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@contextmanager
def begun(run: Path, config: Config = CONFIG, **more) -> Iterator[tuple[Journal, JournalFeed]]:
    """Open a run and its feed."""
    feed_options = {key: more.pop(key) for key in ("limit", "sample", "clock") if key in more}
    with (
        Journal(run, config, state=run.parent / "state", **more) as journal,
        closing(JournalFeed(journal, **feed_options)) as feed,
    ):
        yield journal, feed


def pictures(number: int, first: int = 1) -> list[Entry]:
    return [Entry(f"/p/{n}.png", size=1, mtime_ns=1) for n in range(first, first + number)]


def look(job: Job, content: str) -> Seen:
    return Seen(job.item.id, content.encode().hex().ljust(64, "0"), 1, 1, 640, 480)


def answer(job: Job, text: str = "A cat.", **more) -> Outcome:
    (question,) = job.questions
    done = Outcome(job.item.id, question.id, "done", text, "stop", 3, 0.5, HOST, 1)
    return replace(done, **more)


def states(run: Path) -> dict[str, int]:
    with Reading(run) as view:
        counted: dict[str, int] = {}
        for row in view.rows():
            counted[row.state] = counted.get(row.state, 0) + 1
        assert counted == {k: n for k, n in view.counts().states.items() if n}
    return counted


def test_a_run_goes_on_where_it_was_left(run: Path) -> None:
    with begun(run) as (journal, feed):
        journal.add(pictures(5))
        jobs = feed.take(2)
        assert [job.item.path for job in jobs] == ["/p/1.png", "/p/2.png"]
        for job in jobs:
            feed.sending(job.item.id, job.questions[0].id)
            feed.settle(answer(job))
    assert states(run) == {"done": 2, "pending": 3}
    with begun(run) as (journal, feed):
        journal.add(pictures(6))
        assert [job.item.path for job in feed.take(9)] == [f"/p/{n}.png" for n in (3, 4, 5, 6)]
        assert all(not job.crashes for job in feed.take(9))
    assert states(run) == {"done": 2, "pending": 4}


def test_a_row_has_all_that_is_known(run: Path) -> None:
    odd = b"/p/\xff \xc3\xbc.png".decode("utf-8", "surrogateescape")
    with begun(run) as (journal, feed):
        journal.add([Entry(odd, custom_id="mine")])
        (job,) = feed.take(1)
        feed.seen(replace(look(job, "x"), thumbnail=b"small"))
        feed.settle(answer(job, "Ein \ud83d Hund", finish="length"))
    with Reading(run) as view:
        (row,) = view.rows()
        counts = view.counts()
        small = Thumbnails(view.folder)
        assert small.get(str(row.sha256)) == b"small"
        small.close()
    assert (row.path, row.custom_id, row.text) == (odd, "mine", "Ein � Hund")
    assert (row.width, row.height, row.host, row.finish) == (640, 480, HOST, "length")
    assert (row.prompt, row.system, row.structured) == ("Describe this image", None, False)
    assert row.model_digest == "a" * 64
    assert (counts.truncated, counts.tokens, counts.pictures) == (1, 3, 1)
    assert [(host.url, host.answers) for host in counts.hosts] == [(HOST, 1)]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(CONFIG, asks=(COUNT,)), "`Describe this image` and is `How many?`"),
        (
            replace(CONFIG, asks=(replace(DESCRIBE, options={"temperature": 0, "seed": 7}),)),
            "the option seed was not set and is `7`",
        ),
        (replace(CONFIG, asks=(replace(DESCRIBE, system="Be brief"),)), "was none and is `Be br"),
        (replace(CONFIG, asks=(replace(DESCRIBE, schema={}),)), "the schema is another"),
        (replace(CONFIG, model_digest="b" * 64), "the model was `aaaaaaaaaaaa` and is `bbbbbbbb"),
        (Config("other", "b" * 64), "the model was `tiny` (aaaaaaaaaaaa) and is `other` (bbbbbbb"),
    ],
)
def test_another_question_is_refused_or_added(run: Path, config: Config, said: str) -> None:
    with begun(run) as (journal, _):
        journal.add([*pictures(2), Entry("/p/a.txt", state="skipped", reason="no picture")])
    with pytest.raises(UsageProblem) as caught, begun(run, config):
        pass
    assert said in str(caught.value)
    assert "--add" in str(caught.value.hint)
    assert states(run) == {"pending": 2, "skipped": 1}
    with begun(run, config, add=True) as (_, feed):
        own = (config.model_digest == CONFIG.model_digest) + len(config.asks)
        assert [len(job.questions) for job in feed.take(9)] == [own] * (2 if own else 0)
    twice = 1 + len(config.asks)
    assert states(run) == {"pending": 2 * twice, "skipped": twice}
    with begun(run, config):
        pass  # what was added belongs to the run


def test_a_run_is_for_one_process(run: Path) -> None:
    with begun(run) as (journal, feed):
        journal.add(pictures(1))
        with pytest.raises(UsageProblem, match="under way") as caught, begun(run):
            pass
        assert f"status {run}" in str(caught.value.hint)
        assert states(run) == {"pending": 1}
        feed.settle(answer(feed.take(1)[0]))
    assert states(run) == {"done": 1}


def test_equal_pictures_are_asked_once_at_temperature_0(run: Path) -> None:
    with begun(run) as (journal, feed):
        journal.add(pictures(3))
        first, second, third = feed.take(3)
        feed.seen(look(first, "x"))
        assert feed.answered(look(first, "x").sha256, 1) is None
        feed.settle(answer(first))
        copy = feed.answered(look(first, "x").sha256, 1)
        assert copy is not None
        assert (copy.text, copy.copied_from, copy.tokens) == ("A cat.", first.item.id, 0)
        journal.flush()
        assert feed.answered(look(first, "x").sha256, 1) == replace(copy, retry_at=None)
        assert feed.answered(look(first, "y").sha256, 1) is None
        feed.seen(look(second, "x"))
        feed.settle(replace(copy, item=second.item.id))
        journal.flush()
        assert feed.answered(look(first, "x").sha256, 1) == copy
        feed.give_back(third.item.id)
    warm = replace(CONFIG, asks=(replace(DESCRIBE, options={"temperature": 0.5}),))
    with begun(run, warm, add=True) as (_, feed):
        jobs = feed.take(9)
        feed.seen(look(jobs[0], "x"))
        feed.settle(Outcome(jobs[0].item.id, 2, "done", "A dog."))
        assert feed.answered(look(jobs[0], "x").sha256, 2) is None


def test_a_retry_waits_for_its_time(run: Path) -> None:
    now = [1000.0]
    with begun(run, clock=lambda: now[0]) as (journal, feed):
        journal.add(pictures(2))
        first, second = feed.take(2)
        feed.settle(answer(first, "", state="retry", retry_at=1010.0, error_kind="timeout"))
        feed.settle(answer(second))
        journal.flush()
        assert feed.take(1) == []
        assert feed.wait() == 10.0
    with begun(run, clock=lambda: now[0]) as (_, feed):
        assert feed.take(1) == []
        assert feed.wait() == 10.0
        now[0] = 1010.0
        (again,) = feed.take(1)
        assert (again.item, again.questions[0].attempts) == (first.item, 1)
        feed.settle(answer(again, state="failed", error_kind="timeout", attempts=2))
        journal_end(feed)
    assert states(run) == {"done": 1, "failed": 1}
    with begun(run) as (journal, feed):
        assert feed.take(1) == []
        assert feed.wait() is None
        assert journal.retry_failed() == 1
        assert [job.questions[0].attempts for job in feed.take(9)] == [0]


def journal_end(feed: JournalFeed) -> None:
    """Wait until the feed says that nothing is left."""
    until(lambda: feed.take(1) == [] and feed.wait() is None)


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


def test_what_is_given_back_is_handed_out_again(run: Path) -> None:
    with begun(run) as (journal, feed):
        journal.add(pictures(3))
        first, second = feed.take(2)
        feed.sending(first.item.id, 1)
        feed.give_back(first.item.id)
        feed.give_back(first.item.id)
        assert [job.item.id for job in feed.take(9)] == [1, 3]
        assert feed.take(9) == []
        assert feed.wait() is not None
        feed.settle(answer(second))


def test_what_one_model_has_begun_with_is_asked_of_no_other(run: Path) -> None:
    other = Config("other", "b" * 64, (DESCRIBE,))
    with begun(run) as (journal, _):
        journal.add(pictures(3))
    for config, sample in ((other, None), (other, 9), (CONFIG, None)):
        with begun(run, config, add=True, sample=sample) as (journal, feed), journal.reading() as r:
            jobs = feed.take(9)
            asked = [r.asked(one.id).model_digest for job in jobs for one in job.questions]
            assert asked == [config.model_digest] * 3


def test_a_limit_and_a_sample(run: Path) -> None:
    with begun(run, limit=2) as (journal, feed):
        journal.add(pictures(50))
        jobs = feed.take(9)
        assert len(jobs) == 2
        feed.give_back(jobs[0].item.id)
        assert [job.item for job in feed.take(9)] == [jobs[0].item]
        for job in jobs:
            feed.settle(answer(job))
        assert feed.take(9) == []
        assert feed.wait() is None
    with begun(run, sample=40) as (_, feed):
        jobs = feed.take(99)
        drawn = [job.item.id for job in jobs]
        assert len(set(drawn)) == len(drawn) == 40
        assert drawn != list(range(3, 43))
        for job in jobs:
            feed.settle(answer(job))
        while feed.wait() is not None:  # until the disk has it
            assert feed.take(99) == []


def test_a_source_is_read_while_pictures_are_handed_out(run: Path) -> None:
    with begun(run) as (_, feed):
        feed.fill(pictures(2000))
        found: list[str] = []
        while (wait := feed.wait()) is not None:
            for job in feed.take(64):
                found.append(job.item.path)
                feed.settle(answer(job))
            time.sleep(min(wait, 0.01))
    assert found == [one.path for one in pictures(2000)]
    assert states(run) == {"done": 2000}


def test_a_changed_file_is_asked_again(run: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.png" for name in ("same", "touched", "changed")]
    for file in files:
        file.write_bytes(b"before")

    def found() -> list[Entry]:
        stats = [file.stat() for file in files]
        return [
            Entry(str(file), size=stat.st_size, mtime_ns=stat.st_mtime_ns)
            for file, stat in zip(files, stats, strict=True)
        ]

    from hashlib import sha256

    with begun(run) as (journal, feed):
        journal.add(found())
        for job, entry in zip(feed.take(9), found(), strict=True):
            assert entry.size is not None
            assert entry.mtime_ns is not None
            digest = sha256(b"before").hexdigest()
            feed.seen(Seen(job.item.id, digest, entry.size, entry.mtime_ns, 1, 1))
            feed.settle(answer(job))
    files[1].write_bytes(b"before")
    files[2].write_bytes(b"after!")
    with begun(run) as (journal, feed):
        assert feed.take(9) == []
        journal.add(found())
        until(lambda: feed.wait() == 0.0)
        assert [job.item.path for job in feed.take(9)] == [str(files[2])]
    assert states(run) == {"done": 2, "pending": 1}


def test_a_picture_that_changed_before_it_was_read(run: Path) -> None:
    with begun(run, replace(CONFIG, asks=(DESCRIBE, COUNT))) as (journal, feed):
        journal.add(pictures(1))
        (job,) = feed.take(1)
        feed.seen(look(job, "x"))
        feed.settle(Outcome(job.item.id, 1, "done", "A cat."))
        feed.give_back(job.item.id)
        journal.flush()
        (job,) = feed.take(1)
        assert [question.id for question in job.questions] == [2]
        feed.seen(look(job, "y"))
        feed.settle(Outcome(job.item.id, 2, "done", "2"))
        journal.flush()
        (job,) = feed.take(1)
        assert [question.id for question in job.questions] == [1]


def test_a_gone_file_that_is_back_is_asked(run: Path) -> None:
    with begun(run) as (journal, feed):
        journal.add(pictures(1))
        feed.settle(answer(feed.take(1)[0], "", state="gone"))
    with begun(run) as (journal, feed):
        assert feed.take(1) == []
        journal.add(pictures(1))
        assert len(feed.take(1)) == 1


def test_a_newer_journal_is_refused(run: Path) -> None:
    with begun(run):
        pass
    with closing(sqlite3.connect(run / "journal.sqlite3")) as db:
        db.execute("PRAGMA user_version = 99")
    for opening in (lambda: begun(run).__enter__(), lambda: Reading(run)):
        with pytest.raises(UsageProblem, match="version 99") as caught:
            opening()
        assert caught.value.exit_code == 2


def test_a_damaged_journal_is_told(run: Path) -> None:
    with begun(run) as (journal, _):
        journal.add(pictures(3))
    (run / "journal.sqlite3").write_bytes(b"no database " * 1000)
    with pytest.raises(LlavaOllamaError, match="is damaged") as caught, begun(run):
        pass
    assert "recover" in str(caught.value.hint)


def test_numbers_that_sqlite_cannot_hold(run: Path, tmp_path: Path) -> None:
    """A camera without a clock: its pictures are of the year 3000."""
    far = Entry("/far.png", size=1, mtime_ns=32_503_680_000 * 10**9)
    with Journal(run, CONFIG, state=tmp_path) as journal:
        journal.add([far])
        journal.add([far])
        feed = JournalFeed(journal, sample=10**30)
        (job,) = feed.take(10)
        feed.settle(Outcome(job.item.id, job.questions[0].id, "done", "text", tokens=10**30))
        feed.close()
    with Reading(run) as reading:
        assert [row.text for row in reading.rows()] == ["text"]


def test_a_source_that_breaks_is_told(run: Path, tmp_path: Path) -> None:
    def entries() -> Iterator[Entry]:
        yield Entry("/a.png")
        raise ValueError("no entry")

    with Journal(run, CONFIG, state=tmp_path) as journal:
        feed = JournalFeed(journal)
        feed.fill(entries())
        while feed.reading:
            time.sleep(0.001)
        with pytest.raises(LlavaOllamaError, match="the pictures cannot be listed: no entry"):
            feed.take(1)
        feed.close()


def test_a_write_that_breaks_is_told(run: Path, tmp_path: Path) -> None:
    broken = pytest.raises(LlavaOllamaError, match="cannot be used: Python int too large")
    with broken, Journal(run, CONFIG, state=tmp_path) as journal:
        journal.write(lambda db: db.execute("SELECT ?", (10**30,)))
        journal.flush()
