"""Who answers on a node: the local runner, with the one host that is there.

The driver of a run has one of these on each node (`batch/cluster.py`), and a Ray Data pipeline has
them as the workers of `map_batches`:

    how = {"prompt": "Describe this image", "model": "llava-llama3-int4"}
    dataset.map_batches(Captioner, fn_constructor_kwargs=how, batch_size=64, concurrency=2)

Nothing here imports Ray: it is a class like others, whose threads Ray calls from outside.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from llava_ollama import __version__
from llava_ollama.batch import hosts, run
from llava_ollama.batch.events import Event, HostChanged, Progress, Warned
from llava_ollama.batch.hosts import Host, Site
from llava_ollama.batch.outcomes import Patience
from llava_ollama.batch.pace import Fixed, Pace
from llava_ollama.batch.pictures import Thumbnail
from llava_ollama.batch.relay import Note, Relay
from llava_ollama.batch.run import Agreed, Manner
from llava_ollama.batch.work import Ask, Item, Job, Outcome, Question
from llava_ollama.client import DEFAULT_MODEL, DESCRIBE, patience
from llava_ollama.errors import UsageProblem
from llava_ollama.progress import SILENT
from llava_ollama.settings import Settings

T = TypeVar("T")

WAIT = 60.0
"""Seconds without an answer after which a node gives its work back to others."""


@dataclass(frozen=True)
class Seat:
    """What is opened on a node: an installed model, or one from the catalog in the process."""

    model: str = DEFAULT_MODEL
    host: str | None = None
    """As the node sees it; by default the node's own `OLLAMA_HOST`, or port 11434 there."""
    embedded: str | None = None
    """`MODEL[:QUANT]`, instead of Ollama."""
    threads: int | None = None
    timeout: float | None = None
    concurrency: int | None = None
    """Questions at a time; by default found by trying."""

    def site(self) -> Site:
        """Open it, here.

        Raises:
            LlavaOllamaError: the model cannot be loaded, or a setting cannot be meant.
        """
        settings = Settings.read(host=self.host)
        if self.embedded is None:
            seconds = patience(self.timeout, settings)
            return hosts.OllamaSite(self.model, settings.host, timeout=seconds)
        from llava_ollama.in_process import Which

        name, _, quant = self.embedded.partition(":")
        which = Which(name, quant or None)
        return hosts.embedded(which, threads=self.threads, reporter=SILENT)


@dataclass(frozen=True)
class Greeting:
    """What a node says of itself."""

    host: str
    digest: str | None
    version: str


class Captioner:
    """Answers about pictures with the model of the machine it is on."""

    def __init__(  # noqa: PLR0913 - keywords, each of them something a pipeline may set
        self,
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
        model: str = DEFAULT_MODEL,
        host: str | None = None,
        embedded: str | None = None,
        threads: int | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        wait: float = WAIT,
        thumbnail: Thumbnail | None = None,
    ) -> None:
        """Nothing is opened before the first work.

        `prompt`, `system`, `options` and `schema` are for `map_batches`; a driver's jobs bring
        their own. `model`, `host` and `embedded` (`MODEL[:QUANT]`) say who answers, as for
        `llava-ollama ask`; `host` is an address as this machine sees it. `wait` is in seconds.
        """
        self._ask = Ask(prompt, system, dict(options or {}), schema)
        self._seat = Seat(model, host, embedded, threads, timeout, concurrency)
        self._manner = Manner(patience=Patience(hosts=wait), thumbnail=thumbnail)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._host: Host | None = None
        self._agreed: Agreed | None = None
        self._relay = Relay()
        self._running: asyncio.Task[None] | None = None

    def open(self) -> Greeting:
        """See who is there, and which model it has.

        Raises:
            LlavaOllamaError: nobody, or not this model.
        """
        host = self._host or Host(self._seat.site(), self._pace())
        self._agreed = self._do(run.agree([host], wait=0.0))
        self._host = host
        return Greeting(host.name, self._agreed.digest, __version__)

    def give(self, jobs: Sequence[Job]) -> None:
        """Add work; a cluster's messages may come before the one that begins it."""
        self._relay.give(jobs)

    def notes(self) -> Iterator[list[Note]]:
        """Begin to work off what `give` brings, and yield what becomes of it, until `stop`.

        Raises:
            LlavaOllamaError: what ended it.
        """
        self._begin()
        yield from self._relay.notes()

    def stop(self) -> None:
        """Answer what is under way, and give the rest back."""
        if self._loop is not None and self._running is not None:
            self._loop.call_soon_threadsafe(self._running.cancel)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return `batch` with its answers: `map_batches` of Ray Data calls this.

        Of its columns `path` is read, or else `bytes`, the picture files themselves. Added are
        `text`, `finish`, `error` (empty where there is an answer), `tokens`, `seconds`, `host`
        and `model_digest`.

        Raises:
            LlavaOllamaError: nobody answers, or the model does not see.
        """
        question = Question(0, self._ask)
        with _items(batch) as items:
            jobs = [Job(item, (question,)) for item in items]
            answers = self._answers(jobs)
        rows = [answers[job.item.id] for job in jobs]
        digest = (self._agreed.digest if self._agreed else None) or ""
        return {
            **batch,
            "text": [row.text for row in rows],
            "finish": [row.finish or "" for row in rows],
            "error": [row.error for row in rows],
            "tokens": [row.tokens for row in rows],
            "seconds": [row.seconds for row in rows],
            "host": [row.host for row in rows],
            "model_digest": [digest] * len(rows),
        }

    def _answers(self, jobs: Sequence[Job]) -> dict[int, Outcome]:
        """Have all of `jobs` answered; a question that is put off is put again here."""
        if not jobs:
            return {}
        if self._running is None or self._running.done():
            self._begin()
        relay, answers, again = self._relay, dict[int, Outcome](), list[Outcome]()
        relay.give(jobs)
        for notes in relay.notes():
            for outcome in (note for note in notes if isinstance(note, Outcome)):
                if outcome.state == "retry":
                    again.append(outcome)
                else:
                    answers[outcome.item] = outcome
            if len(answers) + len(again) == len(jobs):
                if not again:
                    break
                time.sleep(max(0.0, max(o.retry_at or 0.0 for o in again) - time.time()))
                relay.give([_again(jobs[outcome.item], outcome) for outcome in again])
                again.clear()
        return answers

    def close(self) -> None:
        """Stop, and release the model where it lives in this process."""
        if self._loop is None:
            return
        if self._running is not None:
            self.stop()
            self._do(asyncio.wait({self._running}))
        elif self._host is not None:
            self._do(self._host.site.engine.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._host = self._running = None

    def _begin(self) -> None:
        if self._host is None:
            self.open()
        if self._running is not None:
            self._relay = Relay()  # the last one has ended
        host, agreed = self._host, self._agreed
        assert host is not None  # noqa: S101 - `open` made them
        assert agreed is not None  # noqa: S101

        async def begin() -> None:
            self._running = asyncio.create_task(_run(host, self._relay, agreed, self._manner))

        self._do(begin())
        self._host = None  # its engine is closed when the run ends

    def _pace(self) -> Pace | Fixed:
        return Fixed(self._seat.concurrency) if self._seat.concurrency else Pace()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in this captioner's own event loop, to which its engine belongs."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _run(host: Host, relay: Relay, agreed: Agreed, manner: Manner) -> None:
    """Work off `relay`, and tell it how that ended.

    No method, since Ray runs all methods of a class that has a coroutine in one event loop.
    """
    error: BaseException | None = None

    def tell(event: Event) -> None:
        match event:
            case HostChanged() | Warned():
                relay.tell(event)
            case Progress():
                relay.tell(event.hosts[0])
            case _:  # the feed hears of outcomes
                pass

    try:
        await run.run([host], relay, agreed, manner, tell=tell)
    except asyncio.CancelledError:
        pass
    except BaseException as exc:  # noqa: BLE001 - handed to whoever listens, whatever it is
        error = exc
    finally:
        relay.end(error)


def _again(job: Job, outcome: Outcome) -> Job:
    question = replace(job.questions[0], attempts=outcome.attempts)
    return replace(job, questions=(question,))


@contextmanager
def _items(batch: Mapping[str, Any]) -> Iterator[list[Item]]:
    """Yield the pictures of a batch; bytes are put into files for that time."""
    if "path" in batch:
        yield [Item(number, str(path)) for number, path in enumerate(batch["path"])]
        return
    if "bytes" not in batch:
        raise UsageProblem(
            f"a batch with the columns {', '.join(f'`{name}`' for name in batch)} has no pictures",
            hint="Name the column of paths `path`, or that of file contents `bytes`",
        )
    with tempfile.TemporaryDirectory(prefix="llava-ollama-") as folder:
        yield [_stored(Path(folder), *pair) for pair in enumerate(batch["bytes"])]


def _stored(folder: Path, number: int, data: bytes) -> Item:
    path = folder / str(number)
    path.write_bytes(data)
    return Item(number, str(path), custom_id=f"picture {number} of the batch")
