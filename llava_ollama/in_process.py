"""llama.cpp in this process: from a catalog name, or two files, to an engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_ollama import catalog
from llava_ollama.catalog import LLAMA3_PARAMETERS, WeightFile
from llava_ollama.errors import UsageProblem
from llava_ollama.ledger import LEDGER, Ledger
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.settings import Settings
from llava_ollama.weights import Weights

if TYPE_CHECKING:
    from llava_ollama.engine.llamacpp import AsyncLlamaCppEngine, LlamaCppEngine

FilePath = str | os.PathLike[str]


def start(
    name: str | None,
    quant: str | None,
    files: tuple[FilePath | None, FilePath | None],
    *,
    threads: int | None = None,
    reporter: Reporter = SILENT,
) -> LlamaCppEngine:
    """Return an engine for the catalog model `name`, or for the `files` model and projector."""
    from llava_ollama.engine.embedded import start_embedded

    return start_embedded(**_arguments(name, quant, files, threads=threads, reporter=reporter))


def start_async(
    name: str | None,
    quant: str | None,
    files: tuple[FilePath | None, FilePath | None],
    *,
    threads: int | None = None,
    reporter: Reporter = SILENT,
) -> AsyncLlamaCppEngine:
    """See `start`."""
    from llava_ollama.engine.embedded import start_embedded_async

    return start_embedded_async(
        **_arguments(name, quant, files, threads=threads, reporter=reporter)
    )


def _arguments(
    name: str | None,
    quant: str | None,
    files: tuple[FilePath | None, FilePath | None],
    *,
    threads: int | None,
    reporter: Reporter,
) -> dict[str, Any]:
    settings = Settings.read()
    common = {"cache": settings.cache / "mended", "threads": threads, "reporter": reporter}
    model, projector = files
    if name is None and model is not None and projector is not None:
        return {"model": Path(model), "projector": Path(projector), **common}
    if name is None or model is not None or projector is not None:
        raise UsageProblem(
            "an embedded model is a catalog name, or two files",
            hint='Write `embedded("tiny-llava")` or `embedded(model="A.gguf", mmproj="B.gguf")`',
        )
    entry = catalog.load(settings.catalog).entry(name)
    _, wanted = entry.model(quant)
    ledger = Ledger(settings.cache / LEDGER)
    weights = Weights(downloads=settings.cache / "downloads", ledger=ledger, reporter=reporter)
    paths, digests = zip(
        *(_at_hand(weights, file) for file in (wanted, entry.projector)), strict=True
    )
    return {
        "model": paths[0],
        "projector": paths[1],
        "digests": digests if all(digests) else None,
        "parameters": {**LLAMA3_PARAMETERS, **entry.parameters},
        **common,
    }


def _at_hand(weights: Weights, file: WeightFile) -> tuple[Path, str | None]:
    """Return a file's path and sha256; what was proven when it came is not hashed again."""
    place = weights.locate(file)
    if place.path is not None and place.origin in {"bundled", "downloaded"}:
        return place.path, place.sha256
    local = weights.fetch(place.file)
    return local.path, local.sha256
