"""Ask a pair of files all that the bars want to know, in every place, and keep the figures."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tests.tiny_llava.asking import EMBEDDED, opened
from tests.tiny_llava.bars import BARS, MORE, Bar
from tests.tiny_llava.files import NAMES
from tests.tiny_llava.words import WRONG_TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.tiny_llava.asking import Asker

OLD, NEW = "0.24.0", "0.34.4"
SHORT = "tiny-llava-mmproj-short.gguf"
"""The projector of which llama.cpp runs one block too few, for the bar about that."""
FALSE_ALARMS = "right template called wrong"


@dataclass(frozen=True)
class Figure:
    """How many of the cases of one set were right, in one place and quantization."""

    place: str
    quant: str
    name: str
    right: int
    asked: int
    met: bool


@dataclass(frozen=True)
class Size:
    """Cases of each bar (and in the old Ollama), and of each of the other sets."""

    bars: int = 300
    old: int = 60
    more: int = 100


def evaluate(folder: Path, size: Size, tell: Callable[[str], None]) -> list[Figure]:
    """Return the figures of the files in `folder`: both quants, in every place."""
    figures: list[Figure] = []
    for place, number in ((EMBEDDED, size.bars), (NEW, size.bars), (OLD, size.old)):
        for quant in ("f16", "int4"):
            more = size.more if place == EMBEDDED else 0
            for figure in _in_one_place(folder, place, quant, (number, more)):
                share = 100 * figure.right / figure.asked
                word = "" if figure.met else " MISSED"
                tell(f"{place} {quant} {figure.name}: {share:.1f} % of {figure.asked}{word}")
                figures.append(figure)
    return figures


def _in_one_place(folder: Path, place: str, quant: str, numbers: tuple[int, int]) -> list[Figure]:
    figures = []
    alarms, told = 0, 0
    with ExitStack() as stack:
        askers: dict[str, Asker] = {}
        sets = [(bar, numbers[0]) for bar in BARS] + [(bar, numbers[1]) for bar in MORE]
        for bar, number in sets:
            if not number:
                continue
            if bar.projector not in askers:
                projector = SHORT if bar.projector == "short" else NAMES.projector
                paths = folder / getattr(NAMES, quant), folder / projector
                askers[bar.projector] = stack.enter_context(opened(place, *paths))
            right, false = asked_all(bar, number, askers[bar.projector])
            figures.append(Figure(place, quant, bar.name, right, number, bar.is_met(right, number)))
            alarms, told = alarms + false[0], told + false[1]
    return [*figures, Figure(place, quant, FALSE_ALARMS, alarms, told, alarms == 0)]


def asked_all(bar: Bar, number: int, asker: Asker) -> tuple[int, tuple[int, int]]:
    """Return the right answers to `number` cases, and (false alarms, of how many).

    A false alarm is the right template, and the answer that it is the wrong one.
    """
    right = alarms = told = 0
    for case in bar.cases(number):
        answer = case.answer(asker)
        right += case.is_right(answer)
        if not case.template and bar.projector == "identity":
            told += 1
            alarms += answer.strip() == WRONG_TEMPLATE
    return right, (alarms, told)


def save(figures: list[Figure], path: Path) -> None:
    """Write the figures as JSON."""
    path.write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n")
