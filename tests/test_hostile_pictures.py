"""Twenty thousand broken pictures: each is a picture or our error, and no engine dies of one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llava_ollama import Llava
from llava_ollama.images import PreparedPicture
from tests import mutated
from tests.daemons.running import RunningDaemon
from tests.installing import install, remove
from tests.mutated import FORMATS, SIDE

EACH = 2500
ASKED = {"0.24.0": 5, "0.34.4": 60}
"""0.24.0 takes up to four seconds for each new picture."""


def outcomes(kind: str, count: int, seed: int) -> dict[str, int]:
    """Prepare mutated files in a process with limited memory, which must end, and well."""
    command = [sys.executable, "-m", "tests.mutated", kind, str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@pytest.mark.parametrize("kind", FORMATS)
def test_a_broken_file_is_a_picture_or_our_error(kind):
    counts = outcomes(kind, EACH, seed=1)
    assert sum(counts.values()) == EACH
    assert min(counts.values()) > EACH / 20, counts


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize("kind", FORMATS)
def test_more_broken_files_are_pictures_or_our_error(kind, seed):
    assert sum(outcomes(kind, 10 * EACH, seed).values()) == 10 * EACH


def answers(llava: Llava, count: int) -> int:
    """Ask about broken files that are sent as they are; return how many answers came."""
    pictures = [PreparedPicture(data, SIDE, SIDE) for data in mutated.passed_on(count)]
    return sum(bool(llava.ask(p, options={"num_predict": 4}).text) for p in pictures)


@pytest.mark.embedded
def test_what_is_passed_on_as_it_is_hurts_no_llama_cpp():
    with Llava.embedded("tiny-llava", threads=1) as llava:
        assert answers(llava, 100) == 100


@pytest.mark.ollama
def test_what_is_passed_on_as_it_is_hurts_no_daemon(ollama: RunningDaemon, tmp_path):
    count = ASKED.get(ollama.version, 5)
    name = install(ollama.host, tmp_path, "hostile")
    with Llava(name, host=ollama.host) as llava:
        assert answers(llava, count) == count
    remove(ollama.host, name)
