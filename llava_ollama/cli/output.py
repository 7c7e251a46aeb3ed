"""What is printed, and where: data to stdout, talk to stderr, in every mode."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from llava_ollama.errors import LlavaOllamaError
from llava_ollama.findings import Finding

if TYPE_CHECKING:
    from llava_ollama.cli.bars import ClosableReporter

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_IN_JSON = re.compile(r"[\x7f-\x9f]")
"""The control characters that JSON allows in a text."""


class Coloured(str):
    """A text whose control characters are our own colours; what is not ours in it is `visible`."""

    __slots__ = ()


def visible(text: str) -> str:
    """Return `text` with its control characters, but for newline and tab, written as escapes.

    Answers, names and errors come from elsewhere, and a terminal obeys what is written to it.
    """
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def one_line(text: str) -> str:
    """Return `text` as `visible` does, and on one line."""
    return visible(text.replace("\n", " "))


@dataclasses.dataclass(frozen=True)
class Output:
    """Prints results and remarks; the only thing in this package that does."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    colour: bool = True

    def result(self, data: Any, text: str | None = None) -> None:
        """Print a command's result: `data` with `--json`, else `text`."""
        if self.json:
            document = json.dumps(_plain(data), ensure_ascii=False, indent=2)
            self._out(_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", document))
        elif text:
            self._out(text if isinstance(text, Coloured) else visible(text))

    def line(self, data: Any) -> None:
        """Print one JSON document on one line, of several that a command prints."""
        document = json.dumps(_plain(data), ensure_ascii=False)
        self._out(_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", document))

    def piece(self, text: str) -> None:
        """Print a piece of an answer while it is made."""
        _write(visible(text))

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
        """Return rows as aligned columns, for `result`."""
        table = [[one_line(cell) for cell in row] for row in (header, *rows)]
        widths = [max(len(row[i]) for row in table) for i in range(len(header))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
        return "\n".join(line.rstrip() for line in lines)

    def findings(self, findings: Sequence[Finding]) -> Coloured:
        """Return findings as text, one or two lines each."""
        lines = []
        for finding in findings:
            mark = self._styled(f"{finding.status:<7}", sys.stdout, fg=_COLOURS[finding.status])
            lines.append(f"{mark}  {one_line(finding.check)}: {one_line(finding.detail)}")
            if finding.fix and finding.status != "ok":
                lines.append(f"{'':7}  Fix: {one_line(finding.fix)}")
        return Coloured("\n".join(lines))

    def note(self, message: str) -> None:
        """Say something in passing."""
        if not self.quiet:
            self._err(one_line(message))

    def detail(self, message: str) -> None:
        """Say something that only `--verbose` asks for."""
        if self.verbose:
            self.note(message)

    def error(self, message: str, hint: str | None) -> None:
        """Say what went wrong, and on a line of its own what to do."""
        self._err(f"{self._styled('Error:', sys.stderr, fg='red', bold=True)} {one_line(message)}")
        if hint:
            self._err(f"Hint: {one_line(hint)}")

    def reporter(self) -> ClosableReporter:
        """Return what the library reports progress to."""
        from llava_ollama.cli.bars import Bars, Notes

        if sys.stderr and sys.stderr.isatty() and not self.quiet:
            return Bars(colour=self.colour)
        return Notes(self.note)

    def _styled(self, text: str, stream: TextIO | None, **style: Any) -> str:
        return click.style(text, **style) if self.colour and stream and stream.isatty() else text

    def _out(self, text: str) -> None:
        _write(f"{text}\n")

    def _err(self, text: str) -> None:
        click.echo(_encodable(text, _encoding(sys.stderr)), err=True)


def _write(text: str) -> None:
    with writing():
        click.echo(_encodable(text, _encoding(sys.stdout)), nl=False)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Translate what goes wrong with stdout, but for a reader that has gone: Click ends for that.

    Raises:
        LlavaOllamaError: its disk is full, or the like.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        # What could not be written is tried again at exit, with a traceback: away with it.
        with contextlib.suppress(OSError), Path(os.devnull).open("wb") as away:
            os.dup2(away.fileno(), sys.stdout.fileno())
        raise LlavaOllamaError(
            f"standard output cannot be written: {exc.strerror}",
            hint="Send it to another file or disk",
        ) from exc


def _encoding(stream: TextIO | None) -> str | None:
    return None if stream is None else stream.encoding  # None: closed before the start, `>&-`


_MOST = 10**18


def size(count: int | None) -> str:
    """Return a number of bytes for people, in powers of ten as the Hub and Ollama print them."""
    if count is None:
        return "?"
    value = float(min(count, _MOST))  # a daemon may tell of more than a float can hold
    for unit in ("B", "kB", "MB"):
        if value < 1000:  # noqa: PLR2004 - SI prefixes
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _plain(value: Any) -> Any:
    """Return a result as JSON's own types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _encodable(text: str, encoding: str | None) -> str:
    """Return `text` with what the stream cannot encode written as escapes, not as a crash."""
    return text.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")
