"""Package, install and use LLaVA-Llama-3 vision models with Ollama.

>>> from llava_ollama import Llava
>>> print(Llava("llava-llama3-int4").ask("xx.png", "Describe this image"))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llava_ollama.async_client import AsyncLlava
    from llava_ollama.chat import AsyncChat, Chat
    from llava_ollama.client import Llava
    from llava_ollama.engine.interface import Answer, Chunk
    from llava_ollama.errors import LlavaOllamaError
    from llava_ollama.extract import Extracted

__all__ = [
    "Answer",
    "AsyncChat",
    "AsyncLlava",
    "Chat",
    "Chunk",
    "Extracted",
    "Llava",
    "LlavaOllamaError",
]

_HOMES = {
    "Answer": "engine.interface",
    "AsyncChat": "chat",
    "AsyncLlava": "async_client",
    "Chat": "chat",
    "Chunk": "engine.interface",
    "Extracted": "extract",
    "Llava": "client",
    "LlavaOllamaError": "errors",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import llava_ollama` alone loads nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
