"""Compare: the same pictures through two models, answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any

from llava_ollama import inventory
from llava_ollama.catalog import Catalog
from llava_ollama.client import DESCRIBE, Llava
from llava_ollama.daemon import Daemon
from llava_ollama.errors import UsageProblem
from llava_ollama.images import prepare
from llava_ollama.planning import MENDED
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.records import Records


@dataclass(frozen=True)
class Compared:
    """What each model said of one picture."""

    picture: str
    answers: tuple[str, ...]
    same: bool

    @classmethod
    def of(cls, picture: str, *answers: str) -> Compared:
        """Compare the answers, word for word."""
        return cls(picture, answers, same=len({*answers}) == 1)


def compare(
    models: Mapping[str, Llava],
    pictures: Sequence[str],
    prompt: str = DESCRIBE,
    *,
    options: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> list[Compared]:
    """Ask every model about every picture, one model after the other, at temperature 0.

    A daemon may have room for one of them only, and to load 5 GB takes longer than an answer. So
    what is wrong with a model's name or a picture is found out before the first is asked.
    """
    eyes = {name: llava.vision() for name, llava in models.items()}
    seen = {vision: [prepare(each, vision) for each in pictures] for vision in {*eyes.values()}}
    answers = []
    for name, llava in models.items():
        count = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
        reporter.note(f"asking {name} about {count}")
        greedy = {"temperature": 0, **(options or {})}
        said = [llava.ask(picture, prompt, options=greedy) for picture in seen[eyes[name]]]
        answers.append([answer.text.strip() for answer in said])
    return list(starmap(Compared.of, zip(pictures, *answers, strict=True)))


def both_forms(daemon: Daemon, catalog: Catalog, records: Records) -> tuple[str, str]:
    """Return the names of the one model that is installed as published and mended.

    Raises:
        UsageProblem: there is none, or more than one.
    """
    found = inventory.installed(daemon, catalog, records)
    names = {model.name.removesuffix(":latest") for model in found if model.ours and model.vision}
    pairs = sorted((name, name + MENDED) for name in names if name + MENDED in names)
    if len(pairs) != 1:
        shown = "no model is" if not pairs else f"{len(pairs)} models are"
        raise UsageProblem(
            f"{shown} installed both as published and mended at {daemon.host}",
            hint="`llava-ollama install` and `llava-ollama install --mend` make such a pair, or"
            " name any two with `--model`",
        )
    return pairs[0]
