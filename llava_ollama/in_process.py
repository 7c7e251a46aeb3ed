"""llama.cpp in this process: from a catalog name, or two files, to an engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_ollama import catalog
from llava_ollama.catalog import LLAMA3_PARAMETERS, WeightFile
from llava_ollama.errors import UsageProblem
from llava_ollama.ledger import LEDGER, Ledger
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.settings import Settings
from llava_ollama.weights import Weights
from llava_ollama.weights.mended import mended_copy

if TYPE_CHECKING:
    from llava_ollama.engine.llamacpp import AsyncLlamaCppEngine, LlamaCppEngine

FilePath = str | os.PathLike[str]


@dataclass(frozen=True)
class Which:
    """What is to run: a catalog model by `name`, or two files of the user's."""

    name: str | None = None
    quant: str | None = None
    model: FilePath | None = None
    projector: FilePath | None = None
    mend: bool = False
    """Whether all of the projector's vision tower is to be run, where its depth is known."""


def start(
    which: Which, *, threads: int | None = None, reporter: Reporter = SILENT
) -> LlamaCppEngine:
    """Return an engine for a pair, which is fetched and mended as far as it is needed."""
    from llava_ollama.engine.embedded import start_embedded

    return start_embedded(**_arguments(which, threads=threads, reporter=reporter))


def start_async(
    which: Which, *, threads: int | None = None, reporter: Reporter = SILENT
) -> AsyncLlamaCppEngine:
    """See `start`."""
    from llava_ollama.engine.embedded import start_embedded_async

    return start_embedded_async(**_arguments(which, threads=threads, reporter=reporter))


def _arguments(which: Which, *, threads: int | None, reporter: Reporter) -> dict[str, Any]:
    settings = Settings.read()
    common = {"cache": settings.cache / "mended", "threads": threads, "reporter": reporter}
    known = catalog.load(settings.catalog)
    ledger = Ledger(settings.cache / LEDGER)
    weights = Weights(
        downloads=settings.cache / "downloads", ledger=ledger, catalog=known, reporter=reporter
    )
    name, model, projector = which.name, which.model, which.projector
    if name is None and model is not None and projector is not None:
        path = Path(projector)
        if which.mend:
            path = weights.fetch(mended_copy(WeightFile(name=path.name, path=path))).path
        return {"model": Path(model), "projector": path, **common}
    if name is None or model is not None or projector is not None:
        raise UsageProblem(
            "an embedded model is a catalog name, or two files",
            hint='Write `embedded("tiny-llava")` or `embedded(model="A.gguf", mmproj="B.gguf")`',
        )
    entry = known.entry(name)
    seen = mended_copy(entry.projector) if which.mend else entry.projector
    pair = entry.model(which.quant)[1], seen
    paths, digests = zip(*(_at_hand(weights, file) for file in pair), strict=True)
    return {
        "model": paths[0],
        "projector": paths[1],
        "digests": digests if all(digests) else None,
        "parameters": {**LLAMA3_PARAMETERS, **entry.parameters},
        **common,
    }


def _at_hand(weights: Weights, file: WeightFile) -> tuple[Path, str | None]:
    """Return a file's path and sha256; what was proven when it came is not hashed again."""
    if file.source is None:
        place = weights.locate(file)
        if place.path is not None and place.origin in {"bundled", "downloaded"}:
            return place.path, place.sha256
        file = place.file
    local = weights.fetch(file)
    return local.path, local.sha256
