"""What every command stands in: lazy loading, global options, and the one place for errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import click

from llava_ollama.cli.app import App
from llava_ollama.errors import LlavaOllamaError

INTERRUPTED = 130
_GLOBAL = "global_"


def global_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that may stand before or after a command's name."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)

    @functools.wraps(command)
    def stripped(*args: Any, **kwargs: Any) -> Any:
        app = click.get_current_context().ensure_object(App)
        for name in [name for name in kwargs if name.startswith(_GLOBAL)]:
            if (value := kwargs.pop(name)) not in {None, False}:
                setattr(app, name.removeprefix(_GLOBAL), value)
        return command(*args, **kwargs)

    return stripped


_OPTIONS = (
    click.option(
        "--host",
        _GLOBAL + "host",
        metavar="ADDRESS",
        help="The Ollama daemon's address.  [env: OLLAMA_HOST]",
    ),
    click.option("--json", _GLOBAL + "json", is_flag=True, help="Print one JSON document."),
    click.option("-v", "--verbose", _GLOBAL + "verbose", is_flag=True, help="Say more."),
    click.option("-q", "--quiet", _GLOBAL + "quiet", is_flag=True, help="Say only what failed."),
    click.option("--no-color", _GLOBAL + "no_color", is_flag=True, help="Print without colour."),
)


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, and not before."""

    def __init__(self, *args: Any, commands_at: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._commands_at = commands_at

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - Click's signature
        """Return the commands in the order of a user's day."""
        return list(self._commands_at)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - likewise
        """Import and return a command."""
        if cmd_name not in self._commands_at:
            return None
        module, _, name = self._commands_at[cmd_name].partition(":")
        command = getattr(import_module(f"llava_ollama.cli.{module}"), name)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from `SUMMARIES`, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one gets "did you mean"."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            from llava_ollama.catalog import suggestion

            hint = suggestion(args[0], self._commands_at, "Commands are")
            raise click.UsageError(f"no command `{args[0]}`. {hint}", ctx) from exc

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what we raise on purpose becomes two lines and an exit code."""
        app = ctx.ensure_object(App)
        try:
            return super().invoke(ctx)
        except LlavaOllamaError as exc:
            app.out.error(exc.message, exc.hint)
            if app.verbose and exc.__cause__ is not None:
                app.out.detail(f"caused by {type(exc.__cause__).__name__}: {exc.__cause__}")
            ctx.exit(exc.exit_code)
        except KeyboardInterrupt:
            app.out.error("interrupted", None)
            ctx.exit(INTERRUPTED)
        finally:
            app.close()


SUMMARIES = {
    "install": "Bring a model into Ollama.",
    "ask": "Ask a question about pictures.",
    "run": "Ask with the picture's name in the prompt.",
    "list": "List the catalog and what is installed.",
    "show": "Say which bytes and which words a model is made of.",
    "remove": "Remove an installed model.",
    "download": "Fetch a model's files without installing it.",
    "render": "Print a model's Modelfile.",
    "mend": "Complete a GGUF file's metadata; its tensors stay as they are.",
    "doctor": "Look for what is wrong with this machine.",
    "demo": "Draw some pictures and have them described.",
    "completion": "Print the completion script for a shell.",
}
"""One line for each command; a test holds it equal to the first line of the command's help."""
