"""What is printed, and where: data to stdout, talk to stderr, in every mode."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from llava_ollama.findings import Finding

if TYPE_CHECKING:
    from llava_ollama.cli.bars import ClosableReporter

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


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
            self._out(json.dumps(_plain(data), ensure_ascii=False, indent=2))
        elif text:
            self._out(text)

    def piece(self, text: str) -> None:
        """Print a piece of an answer while it is made."""
        click.echo(_encodable(text, sys.stdout.encoding), nl=False)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
        """Return rows as aligned columns, for `result`."""
        table = [header, *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(header))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
        return "\n".join(line.rstrip() for line in lines)

    def findings(self, findings: Sequence[Finding]) -> str:
        """Return findings as text, one or two lines each."""
        lines = []
        for finding in findings:
            mark = self._styled(f"{finding.status:<7}", sys.stdout, fg=_COLOURS[finding.status])
            lines.append(f"{mark}  {finding.check}: {finding.detail}")
            if finding.fix and finding.status != "ok":
                lines.append(f"{'':7}  Fix: {finding.fix}")
        return "\n".join(lines)

    def note(self, message: str) -> None:
        """Say something in passing."""
        if not self.quiet:
            click.echo(_encodable(message, sys.stderr.encoding), err=True)

    def detail(self, message: str) -> None:
        """Say something that only `--verbose` asks for."""
        if self.verbose:
            self.note(message)

    def error(self, message: str, hint: str | None) -> None:
        """Say what went wrong, and on a line of its own what to do."""
        self._err(f"{self._styled('Error:', sys.stderr, fg='red', bold=True)} {message}")
        if hint:
            self._err(f"Hint: {hint}")

    def reporter(self) -> ClosableReporter:
        """Return what the library reports progress to."""
        from llava_ollama.cli.bars import Bars, Notes

        if sys.stderr.isatty() and not self.quiet:
            return Bars(colour=self.colour)
        return Notes(self.note)

    def _styled(self, text: str, stream: TextIO, **style: Any) -> str:
        return click.style(text, **style) if self.colour and stream.isatty() else text

    def _out(self, text: str) -> None:
        click.echo(_encodable(text, sys.stdout.encoding))

    def _err(self, text: str) -> None:
        click.echo(_encodable(text, sys.stderr.encoding), err=True)


def size(count: int | None) -> str:
    """Return a number of bytes for people, in powers of ten as the Hub and Ollama print them."""
    if count is None:
        return "?"
    value = float(count)
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
