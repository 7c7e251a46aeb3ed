"""What every command stands in: lazy loading, global options, and the one place for errors."""

from __future__ import annotations

import functools
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any

import click

from llava_ollama.cli.app import App
from llava_ollama.cli.output import Output, writing
from llava_ollama.errors import DownloadError, LlavaOllamaError, UsageProblem

INTERRUPTED = 130
_GLOBAL = "global_"
_NARROW = 60
"""Columns below which a help text is broken up more."""


def global_options(command: Callable[..., Any], *, first: int = 0) -> Callable[..., Any]:
    """Add the options that may stand before or after a command's name, from the `first` on."""
    for decorate in reversed(_OPTIONS[first:]):
        command = decorate(command)

    @functools.wraps(command)
    def stripped(*args: Any, **kwargs: Any) -> Any:
        app = click.get_current_context().ensure_object(App)
        for name in [name for name in kwargs if name.startswith(_GLOBAL)]:
            if (value := kwargs.pop(name)) not in {None, False}:
                setattr(app, name.removeprefix(_GLOBAL), value)
        return command(*args, **kwargs)

    return stripped


def options_but_host(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the global options to a command that has a `--host` of its own."""
    return global_options(command, first=1)


_OPTIONS = (
    click.option(
        "--host",
        _GLOBAL + "host",
        metavar="ADDRESS",
        help="The Ollama daemon's address.  [env: OLLAMA_HOST]",
    ),
    click.option("--json", _GLOBAL + "json", is_flag=True, help="Print one JSON document."),
    click.option("-v", "--verbose", _GLOBAL + "verbose", is_flag=True, help="Say more."),
    click.option(
        "-q",
        "--quiet",
        _GLOBAL + "quiet",
        is_flag=True,
        help="No remarks, only results and errors.",
    ),
    click.option("--no-color", _GLOBAL + "no_color", is_flag=True, help="Print without colour."),
)


class Command(click.Command):
    """A command whose help shows its own options first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then those that every command has."""
        _write_options(self, ctx, formatter)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the options, or print the help."""
        with writing():
            return super().make_context(*args, **kwargs)


def command(
    name: str | None = None, *, epilog: str | None = None
) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command, as `click.command` does."""
    return click.command(name, cls=Command, epilog=epilog)


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, and not before."""

    def __init__(self, *args: Any, commands_at: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._commands_at = commands_at

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; where it is asked to end, it clears up as for Ctrl-C."""
        with _ending():
            return super().main(*args, **kwargs)

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

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the options."""
        self.format_commands(ctx, formatter)
        _write_options(self, ctx, formatter)

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
            raise UsageProblem(f"no command `{args[0]}`", hint=hint) from exc

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the options that stand before the command."""
        # Click itself never writes less than 50 columns wide.
        columns = min(shutil.get_terminal_size().columns, 80)
        extra.setdefault("terminal_width", max(columns - 2, 30))
        try:
            with _worded(), writing():
                return super().make_context(info_name, args, parent, **extra)
        except LlavaOllamaError as exc:
            Output().error(exc.message, exc.hint)
            raise click.exceptions.Exit(exc.exit_code) from exc
        except KeyboardInterrupt as exc:
            raise click.exceptions.Exit(_code(exc)) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what we raise on purpose becomes two lines and an exit code."""
        app = ctx.ensure_object(App)
        try:
            with _worded():
                return super().invoke(ctx)
        except LlavaOllamaError as exc:
            app.out.error(exc.message, exc.hint)
            if app.verbose and exc.__cause__ is not None:
                app.out.detail(f"caused by {_cause(exc, exc.__cause__)}")
            ctx.exit(exc.exit_code)
        except KeyboardInterrupt as exc:
            with suppress(OSError):  # after SIGHUP there is no terminal
                resumed = ctx.invoked_subcommand in {"install", "download", "batch"}
                app.out.error("interrupted", _AGAIN if resumed else None)
            ctx.exit(_code(exc))
        finally:
            app.close()


_AGAIN = "Run the same command again: it goes on where it stopped"


class _Ended(KeyboardInterrupt):
    """A signal has asked the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _ending() -> Iterator[None]:
    """Make SIGTERM and SIGHUP interrupts, but where they are ignored or handled, as by nohup."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    raise _Ended(number)


def _code(exc: KeyboardInterrupt) -> int:
    return 128 + exc.number if isinstance(exc, _Ended) else INTERRUPTED


def _cause(exc: LlavaOllamaError, cause: BaseException) -> str:
    """Return what is said of a cause; the text of a failed download has its signed address."""
    kind = type(cause).__name__
    secret = isinstance(exc, DownloadError) or isinstance(cause, DownloadError)
    return kind if secret else f"{kind}: {cause}"


class _BadCall(click.ClickException):
    """A call that Click refuses, told in our two lines."""

    exit_code = UsageProblem.exit_code

    def __init__(self, exc: click.UsageError) -> None:
        super().__init__(_message(exc))
        path = exc.ctx.command_path if exc.ctx else "llava-ollama"
        self._hint = f"`{path} --help` shows how it is called"
        if isinstance(exc, click.NoSuchOption) and exc.possibilities:
            self._hint = f"Did you mean `{exc.possibilities[0]}`?"

    def show(self, file: Any = None) -> None:  # noqa: ARG002 - Click's signature
        """Print it to stderr."""
        Output().error(self.message, self._hint)


@contextmanager
def _worded() -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as exc:
        raise _BadCall(exc) from exc


def _message(exc: click.UsageError) -> str:
    """Return Click's sentence as we write ours."""
    if isinstance(exc, click.NoSuchOption):
        return f"no option `{exc.option_name}`"
    param = exc.param if isinstance(exc, click.BadParameter) else None
    name = "" if param is None else param.opts[-1] if param.param_type_name == "option" else (
        param.human_readable_name
    )  # fmt: skip
    if isinstance(exc, click.MissingParameter):
        return f"`{name}` is missing"
    said = exc.message.rstrip(".").replace("'", "`")
    said = said[:1].lower() + said[1:]
    return f"`{name}`: {said}" if name else said


def _write_options(
    command: click.Command, ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    sections: dict[str, list[tuple[str, str]]] = {"Options": [], "Global options": []}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
        if record is not None:
            shared = (param.name or "").startswith(_GLOBAL)
            sections["Global options" if shared else "Options"].append(record)
    for title, records in sections.items():
        with formatter.section(title):
            formatter.write_dl(records, col_max=30 if formatter.width >= _NARROW else 16)


SUMMARIES = {
    "install": "Bring a model into Ollama.",
    "ask": "Ask a question about pictures.",
    "run": "Ask with the picture's name in the prompt.",
    "look": "Write down what a model sees of a picture.",
    "compare": "Show what two models say of the same pictures.",
    "batch": "Ask about many pictures, and go on where it stopped.",
    "status": "Say how far a batch run is.",
    "export": "Write a run's answers as sidecars or tables.",
    "gallery": "Write a page on which a run's pictures and answers are looked at.",
    "list": "List the catalog and what is installed.",
    "show": "Say which bytes and which words a model is made of.",
    "remove": "Remove an installed model.",
    "verify": "Check that the daemon has the right bytes.",
    "repair": "Bring back the right bytes of a model.",
    "download": "Fetch a model's files without installing it.",
    "inspect": "Say what GGUF files are, and whether they are sound.",
    "render": "Print a model's Modelfile.",
    "mend": "Complete a GGUF file's metadata; its tensors stay as they are.",
    "doctor": "Look for what is wrong with this machine.",
    "demo": "Draw some pictures and have them described.",
    "completion": "Print the completion script for a shell.",
}
"""One line for each command; a test holds it equal to the first line of the command's help."""
