"""A real small vision model for other people's tests; `plugin.py` has the pytest fixtures.

    from llava_ollama.testing import assert_sees, shape_picture

Neither needs pytest. `tiny_llava`, `ollama_daemon` and `llama_server` are fixtures, which pytest
finds by itself where this package is installed: `pytest --fixtures` describes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava_ollama.testing.daemons import OllamaDaemon
    from llava_ollama.testing.pictures import ShapePicture, shape_picture
    from llava_ollama.testing.servers import LlamaServer
    from llava_ollama.testing.sight import assert_sees

__all__ = ["LlamaServer", "OllamaDaemon", "ShapePicture", "assert_sees", "shape_picture"]

_HOMES = {
    "LlamaServer": "servers",
    "OllamaDaemon": "daemons",
    "ShapePicture": "pictures",
    "assert_sees": "sight",
    "shape_picture": "pictures",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: pytest loads the plugin at every start."""
    if name not in _HOMES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
