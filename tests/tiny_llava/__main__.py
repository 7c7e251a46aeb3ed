"""`python -m tests.tiny_llava`: train, export, evaluate, and write the card (`make tiny-llava`).

What was trained stays in a folder outside the checkout; a run that was broken off goes on there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from tests.tiny_llava import card, evaluate
from tests.tiny_llava.asking import EMBEDDED, Embedded, opened
from tests.tiny_llava.batches import tokenizer
from tests.tiny_llava.export import export, write_projector
from tests.tiny_llava.files import FILES, NAMES
from tests.tiny_llava.parity import as_stored, differing, log_probability_gaps, sentences_right
from tests.tiny_llava.train import Model, Plan, minutes, train

_CACHE = Path.home() / ".cache" / "llava-ollama-tiny"
_PACKAGE = Path(__file__).parents[2] / "llava_ollama"
_STRINGS, _COMPARED, _LAYOUTS = 1000, 60, 300


def main() -> None:
    """Run the recipe; with `--into-package` its files replace those of the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=_CACHE, help="where the run is kept")
    parser.add_argument("--into-package", action="store_true", help="replace the package's files")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    plan, start = Plan(), time.monotonic()

    def tell(line: str) -> None:
        sys.stdout.write(f"{(time.monotonic() - start) / 60:6.1f} min  {line}\n")
        sys.stdout.flush()

    model = train(plan, given.folder / "checkpoint.pt", tell)
    write_files(model, given.folder)
    parity = _parity(model, given.folder)
    tell(parity)
    figures = evaluate.evaluate(given.folder, evaluate.Size(), tell)
    evaluate.save(figures, given.folder / "figures.json")
    card.write(
        given.folder / "CARD.md",
        given.folder,
        plan=plan,
        figures=figures,
        parity=parity,
        minutes=minutes(given.folder / "checkpoint.pt"),
        parameters=sum(one.numel() for one in model.parameters()),
    )
    if given.into_package:
        _take(given.folder)
    missed = [one for one in figures if not one.met]
    tell(f"{len(missed)} bars were missed: {missed}" if missed else "all bars were met")


def write_files(model: Model, folder: Path) -> None:
    """Write the three files of the package, and the projector of the bar that needs it broken."""
    weights = {name: values.numpy() for name, values in model.state_dict().items()}
    export(weights, tokenizer(), folder)
    write_projector(weights, folder / evaluate.SHORT, layout="short")


def _parity(model: Model, folder: Path) -> str:
    with opened(EMBEDDED, folder / NAMES.f16, folder / NAMES.projector) as asker:
        assert isinstance(asker, Embedded)
        tokens = len(differing(_STRINGS, asker.client))
        gaps = log_probability_gaps(as_stored(model), asker, _COMPARED)
    shares = {
        layout: 100 * sentences_right(model, layout, _LAYOUTS) / _LAYOUTS
        for layout in ("last", "first")
    }
    return (
        f"Tokenizer: {tokens} of {_STRINGS:,} strings are split otherwise than by llama.cpp. "
        f"Log-probabilities of PyTorch and llama.cpp differ by {sum(gaps) / len(gaps):.4f} on "
        f"average and {max(gaps):.4f} at most, over {len(gaps):,}. With the class token last "
        f"PyTorch gives {shares['last']:.1f} % of {_LAYOUTS} pictures of one shape their whole "
        f"sentence, with it first {shares['first']:.1f} %."
    )


def _take(folder: Path) -> None:
    for name in (*FILES, "CARD.md"):
        shutil.copyfile(folder / name, _PACKAGE / "tiny" / name)
    card.pin(_PACKAGE / "catalog.toml", folder)


if __name__ == "__main__":
    main()
