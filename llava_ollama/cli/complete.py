"""What the shell offers while a command is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from llava_ollama.catalog import Catalog


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - Click's signature
    """Offer the catalog's names."""
    return [name for name in _catalog().entries if name.startswith(incomplete)]


def quants(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - likewise
    """Offer the quants of the model that stands before."""
    from llava_ollama.catalog import DEFAULT_MODEL

    entries = _catalog().entries
    # With an option that waits for its value, Click has not told the arguments from the rest.
    words = [str(ctx.params.get("model")), *ctx.args, DEFAULT_MODEL]
    entry = next(entries[word] for word in words if word in entries)
    return [quant for quant in entry.quants if quant.startswith(incomplete)]


def installed(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - likewise
    """Offer the names that the daemon has."""
    from llava_ollama.daemon import Daemon
    from llava_ollama.errors import LlavaOllamaError
    from llava_ollama.settings import Settings

    try:
        given = ctx.params.get("global_host") or ctx.find_root().params.get("global_host")
        found = Daemon(Settings.read(host=given).host, timeout=2).models()
    except LlavaOllamaError:
        return []
    names = [model.name.removesuffix(":latest") for model in found]
    return [name for name in names if name.startswith(incomplete) and name.isprintable()]


def _catalog() -> Catalog:
    """Return the catalog with the user's own, or without it where that has a mistake."""
    from llava_ollama import catalog
    from llava_ollama.errors import LlavaOllamaError
    from llava_ollama.settings import Settings

    try:
        return catalog.load(Settings.read().catalog)
    except LlavaOllamaError:
        return catalog.load()
