"""The recipe of the tiny model: the same bytes again, and the same arithmetic as llama.cpp's.

It needs PyTorch, which `make test` does not install: `make test-tiny` runs this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.tiny]

BREAK_AT = "whole 25"


class Broken(Exception):
    """Somebody pressed Ctrl-C."""


def plan(seed: int = 1) -> Any:
    from tests.tiny_llava.train import Plan, Stage

    return Plan(
        seed=seed,
        vision=Stage(steps=50, size=8, rate=2e-3, hold=0, fall=50),
        whole=Stage(steps=50, size=4, rate=1e-3, hold=30, fall=50),
    )


def files(folder: Path, *, seed: int = 1, break_at: str = "-") -> dict[str, bytes]:
    from tests.tiny_llava.__main__ import write_files
    from tests.tiny_llava.train import train

    folder.mkdir(exist_ok=True)

    def tell(line: str) -> None:
        if line.startswith(break_at):
            raise Broken

    write_files(train(plan(seed), folder / "checkpoint.pt", tell, every=20), folder)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.gguf"))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    files(folder)
    return folder


@pytest.mark.timeout(900)
def test_a_second_run_broken_off_and_gone_on_gives_the_same_bytes(trained: Path, tmp_path: Path):
    with pytest.raises(Broken):
        files(tmp_path / "again", break_at=BREAK_AT)
    again = files(tmp_path / "again")
    assert again == {path.name: path.read_bytes() for path in sorted(trained.glob("*.gguf"))}
    assert len(again) == 4


@pytest.mark.timeout(900)
def test_another_seed_gives_other_bytes(trained: Path, tmp_path: Path):
    other = files(tmp_path / "other", seed=2)
    assert all(data != (trained / name).read_bytes() for name, data in other.items())


@pytest.mark.embedded
@pytest.mark.parametrize("layout", ["identity", "key"])
def test_tokens_and_log_probabilities_are_those_of_llama_cpp(
    trained: Path, tmp_path: Path, layout: str
):
    import torch

    from tests.tiny_llava.asking import EMBEDDED, Embedded, opened
    from tests.tiny_llava.export import write_projector
    from tests.tiny_llava.files import NAMES
    from tests.tiny_llava.parity import as_stored, differing, log_probability_gaps
    from tests.tiny_llava.train import Model

    model = Model()
    kept = torch.load(trained / "checkpoint.pt", weights_only=True)
    model.load_state_dict(kept["model"])
    weights = {name: values.numpy() for name, values in kept["model"].items()}
    write_projector(weights, tmp_path / "mmproj.gguf", layout=layout)
    with opened(EMBEDDED, trained / NAMES.f16, tmp_path / "mmproj.gguf") as asker:
        assert isinstance(asker, Embedded)
        assert differing(1000, asker.client) == []
        gaps = log_probability_gaps(as_stored(model), asker, 10)
    assert sum(gaps) / len(gaps) <= 0.005


def test_questions_beside_each_other_do_not_see_each_other():
    """The answer to each is as if it had been asked alone."""
    import random

    import torch

    from tests.tiny_llava import scene, talk
    from tests.tiny_llava.batches import tokenizer
    from tests.tiny_llava.decoder import Decoder, allowed

    rng = random.Random(4)
    while max((said := talk.make(scene.make(rng), rng, tokenizer())).branch) < talk.BRANCHES:
        pass
    torch.manual_seed(0)
    decoder = Decoder(len(tokenizer().tokens)).double()

    def states(keep: list[int]) -> Any:
        def row(values: list[int]) -> Any:
            return torch.tensor([[values[index] for index in keep]])

        x = decoder.token_embd(row(said.tokens))
        found = decoder(x, row(said.position), allowed(row(said.branch)))
        return dict(zip(keep, found[0], strict=True))

    everything = states([*range(len(said.tokens))])
    for branch in range(1, talk.BRANCHES + 1):
        own = [index for index, one in enumerate(said.branch) if one in {0, branch}]
        alone = states(own)
        assert [said.position[index] for index in own] == [*range(len(own))]
        assert all(torch.allclose(everything[index], alone[index], atol=1e-5) for index in own)
