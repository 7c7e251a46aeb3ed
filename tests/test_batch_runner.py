"""A run on real daemons: every picture gets its own answer, once."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_ollama.batch.work import Ask
from llava_ollama.tiny import shapes
from tests.batches import DESCRIBE, asked, drawn, host, jobs
from tests.chunks import ChunkFeed
from tests.conftest import start
from tests.daemons.running import RunningDaemon
from tests.installing import install
from tests.proxy import Fault, Proxy

pytestmark = pytest.mark.ollama
COUNT = {"0.24.0": 3, "0.34.4": 60}
"""Pictures; 0.24.0 takes seconds for each."""


@pytest.fixture(scope="module")
def model(ollama: RunningDaemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    return install(ollama.host, tmp_path_factory.mktemp("batch"), "batch-tiny")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a daemon of the version that users have, with the model `tiny`."""
    folder = tmp_path_factory.mktemp("quick")
    daemon = start("0.34.4", folder)
    install(daemon.host, folder, "tiny")
    yield daemon.host
    daemon.stop()


def test_every_picture_gets_its_own_answer(ollama: RunningDaemon, model: str, tmp_path: Path):
    pictures = drawn(tmp_path / "pictures", COUNT.get(ollama.version, 20), seed=5)
    feed = ChunkFeed(jobs(list(pictures)))
    summary = asked([host(ollama.host, model, level=4)], feed)
    assert summary.counts.done == len(pictures)
    wrong = 0
    for number, shape in enumerate(pictures.values()):
        outcome = feed.outcomes[number, 0]
        assert outcome.state == "done"
        assert (outcome.host, outcome.attempts) == (ollama.host, 1)
        wrong += not shapes.names(shape, outcome.text)
    assert wrong == 0


@pytest.mark.parametrize("seed", [11])
def test_some_of_a_hundred_go_wrong_and_no_error_is_an_answer(
    quick: str, tmp_path: Path, seed: int
):
    pictures = drawn(tmp_path / "pictures", 60, seed=5)
    faults = [
        Fault(status=500, body=b'{"error": "injected"}'),
        Fault(status=503, body=b'{"error": "server busy"}'),
        Fault(status=500, body=b"<html>injected</html>"),
        Fault(refuse=True),
        Fault(cut=20),
        Fault(garbage=True),
        Fault(withhold=True),
    ]
    # The first few requests are the look at the host and the canary.
    places = random.Random(seed).sample(range(8, 8 + len(pictures)), len(faults))
    feed = ChunkFeed(jobs(list(pictures)))
    with Proxy(quick, dict(zip(places, faults, strict=True))) as proxy:
        summary = asked([host(proxy.url, level=4, timeout=5)], feed)
    assert summary.counts.done == len(pictures)
    assert len(feed.outcomes) == len(pictures)
    for number, shape in enumerate(pictures.values()):
        assert shapes.names(shape, feed.outcomes[number, 0].text), feed.outcomes[number, 0]


def test_all_questions_about_a_picture_go_to_one_host_in_their_order(quick: str, tmp_path: Path):
    pictures = drawn(tmp_path / "pictures", 4, seed=5)
    schema = {"type": "object", "properties": {"seen": {"type": "boolean"}}, "required": ["seen"]}
    asks = [
        DESCRIBE,
        Ask("Describe this image", options={"num_predict": 3}),
        Ask("x", None, {}, schema),
    ]
    feed = ChunkFeed(jobs(list(pictures), *asks))
    asked([host(quick)], feed)
    for number, shape in enumerate(pictures.values()):
        whole, short, document = (feed.outcomes[number, ask] for ask in range(3))
        assert shapes.names(shape, whole.text)
        assert (whole.finish, short.finish, short.state) == ("stop", "length", "done")
        assert whole.text.startswith(short.text)
        assert json.loads(document.text)["seen"] in {True, False}
