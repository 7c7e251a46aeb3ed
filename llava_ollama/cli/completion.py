"""`completion`: the script that makes a shell complete commands, models and quants."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from llava_ollama.cli.app import App
from llava_ollama.cli.frame import command, global_options


@command(epilog="JSON: {script}.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@global_options
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    For bash, add `eval "$(llava-ollama completion bash)"` to ~/.bashrc.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - the choices above are Click's own
    script = kind(ctx.find_root().command, {}, "llava-ollama", "_LLAVA_OLLAMA_COMPLETE").source()
    ctx.ensure_object(App).out.result({"script": script}, script)
