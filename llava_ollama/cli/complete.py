"""What the shell offers while a command is typed."""

from __future__ import annotations

import click


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - Click's signature
    """Offer the catalog's names."""
    from llava_ollama import catalog

    return [name for name in catalog.load().entries if name.startswith(incomplete)]


def quants(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - likewise
    """Offer the quants of the model that stands before."""
    from llava_ollama import catalog

    entries = catalog.load().entries
    entry = entries.get(str(ctx.params.get("model") or "llava-llama3"))
    return [quant for quant in (entry.quants if entry else ()) if quant.startswith(incomplete)]


def installed(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - likewise
    """Offer the names that the daemon has."""
    from llava_ollama.daemon import Daemon
    from llava_ollama.errors import LlavaOllamaError
    from llava_ollama.settings import Settings

    try:
        found = Daemon(Settings.read().host, timeout=2).models()
    except LlavaOllamaError:
        return []
    names = [model.name.removesuffix(":latest") for model in found]
    return [name for name in names if name.startswith(incomplete)]
