"""The tiny model in this process: an engine, and the OpenAI-compatible server that it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava_ollama.engine.llamacpp import LlamaCppEngine

TINY = "tiny-llava"
"""Its name in the catalog."""
MODEL = f"{TINY}-int4"
"""Its name where it is served: that of the file, and what `llava-ollama install` calls it."""


@dataclass(frozen=True)
class LlamaServer:
    """A llama-server in this process, on a port of the loopback address."""

    url: str
    """Its root, for what speaks llama-server's own API."""
    api_key: str = field(repr=False)
    """Without it nothing is answered: anybody on this machine can reach the port."""
    model: str
    """The one model, by the name that `/v1/models` gives it."""

    @property
    def base_url(self) -> str:
        """What OpenAI's clients call `base_url`."""
        return f"{self.url}/v1"


def start(folder: Path) -> LlamaCppEngine:
    """Load the tiny model; nothing of the user's settings, cache or catalog is looked at.

    `folder` is for a mended copy, which the bundled files do not need.

    Raises:
        EngineUnavailable: the extra `embedded` is not installed.
    """
    from llava_ollama import catalog
    from llava_ollama.engine.embedded import start_embedded
    from llava_ollama.resources import bundled

    entry = catalog.load().entry(TINY)
    model, projector = entry.model(None)[1], entry.projector
    return start_embedded(
        bundled(model.name),
        bundled(projector.name),
        cache=folder,
        parameters={**catalog.LLAMA3_PARAMETERS, **entry.parameters},
        digests=(model.sha256 or "", projector.sha256 or ""),
    )


@contextmanager
def serving(folder: Path) -> Iterator[LlamaServer]:
    """Yield a server of the tiny model; see `start`."""
    with closing(start(folder)) as engine:
        yield LlamaServer(engine.url, engine.api_key or "", MODEL)
