"""A run on real daemons: every picture gets its own answer, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_ollama.batch.chunks import ChunkFeed
from llava_ollama.tiny import shapes
from tests.batches import asked, drawn, host, jobs
from tests.daemons.running import RunningDaemon
from tests.installing import install

pytestmark = pytest.mark.ollama
COUNT = {"0.24.0": 6, "0.34.4": 60}
"""Pictures; 0.24.0 takes seconds for each."""


@pytest.fixture(scope="module")
def model(ollama: RunningDaemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    return install(ollama.host, tmp_path_factory.mktemp("batch"), "batch-tiny")


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
