"""Modelfiles: from a package to text, and from text back to instructions.

The grammar is Ollama's own (parser/parser.go), including its limits: there are no escapes, so what
cannot be quoted is refused. Values never become part of the Go template; that text is fixed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llava_ollama import resources
from llava_ollama.errors import TemplateError, UsageProblem
from llava_ollama.package import ParameterValue, parameters
from llava_ollama.untrusted import picture_mark

_COMMANDS = {
    *("FROM", "LICENSE", "TEMPLATE", "SYSTEM", "ADAPTER", "DRAFT", "RENDERER", "PARSER"),
    *("PARAMETER", "MESSAGE", "REQUIRES"),
}
_QUOTES = '"""'
_KEY = re.compile(r"[A-Za-z0-9_]+")
_LINE = re.compile(r"[^\r\n]*[\r\n]|[^\r\n]+")
_BLANKS = " \t"
"""What separates words: Ollama's parser knows no other white space."""
LLAMA3 = "llama3-instruct"
"""The name that stands for the shipped Llama-3-instruct chat template."""


@dataclass(frozen=True)
class Modelfile:
    """A model and a projector (paths, as they stand after FROM), and the words around them."""

    model: str
    projector: str
    template: str
    system: str = ""
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Instruction:
    """One command of a Modelfile: its name in capitals, and its value unquoted.

    A PARAMETER's own name stands in `key`.
    """

    command: str
    value: str
    key: str = ""


def chat_template() -> str:
    """Return the Llama-3-instruct chat template as a Go template, as Ollama takes it."""
    return resources.find(f"templates/{LLAMA3}.gotmpl").read_text(encoding="utf-8")


def read_template(path: Path) -> str:
    """Return the text of a Go template file.

    Raises:
        TemplateError: it cannot be read, or says nothing.
    """
    hint = "Name a file with a Go template, as in a Modelfile's TEMPLATE"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise TemplateError(
            f"the template `{path}` cannot be read: {getattr(exc, 'strerror', 'not UTF-8 text')}",
            hint=hint,
        ) from exc
    if not text.strip():
        raise TemplateError(f"the template `{path}` is empty", hint=hint)
    return text


def check_system(text: str) -> None:
    """Refuse a system prompt in which Ollama would find a picture; the rest is the user's own.

    Raises:
        UsageProblem: every picture would be moved there, or doubled.
    """
    if mark := picture_mark(text):
        raise UsageProblem(
            f"the system prompt has `{mark}`, which Ollama takes for a picture",
            hint="Leave it out, or put a space into it",
        )


def render(modelfile: Modelfile) -> str:
    """Return the Modelfile's text.

    Raises:
        TemplateError: a value cannot be written in a Modelfile.
    """
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - plain text; `quote` below is the escaping
    )
    source = resources.find("templates/Modelfile.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        model=quote_path(modelfile.model),
        projector=quote_path(modelfile.projector),
        template=_triple(modelfile.template, "template"),
        system=_triple(modelfile.system, "system prompt") if modelfile.system else "",
        parameters=list(_parameter_lines(modelfile.parameters)),
    )


def parse(text: str) -> Modelfile:
    """Return what a Modelfile with two FROM lines says.

    Raises:
        TemplateError: it is not a Modelfile, or has not exactly a model and a projector.
    """
    found: dict[str, str] = {}
    sources: list[str] = []
    given: dict[str, list[str]] = {}
    for instruction in instructions(text):
        if instruction.command == "FROM":
            sources.append(instruction.value)
        elif instruction.command == "PARAMETER":
            given.setdefault(instruction.key, []).append(instruction.value)
        else:
            found[instruction.command] = instruction.value
    if len(sources) != 2:  # noqa: PLR2004 - a model and a projector
        raise TemplateError(
            f"a Modelfile of a vision model has two FROM lines, this one has {len(sources)}",
            hint="Name the model first and the projector (mmproj) second",
        )
    model, projector = sources
    return Modelfile(
        model=model,
        projector=projector,
        template=found.get("TEMPLATE", ""),
        system=found.get("SYSTEM", ""),
        parameters=parameters(
            {name: values if name == "stop" else values[-1] for name, values in given.items()}
        ),
    )


def instructions(text: str) -> Iterator[Instruction]:
    """Yield the instructions of a Modelfile, read as Ollama's parser reads them.

    Raises:
        TemplateError: an unknown command, or a quote that never ends.
    """
    lines = _lines(text)
    for line in lines:
        stripped = line.strip("\r\n").lstrip(_BLANKS)
        if not stripped or stripped.startswith("#"):
            continue
        command, value = _split(stripped)
        if command.upper() not in _COMMANDS:
            raise TemplateError(
                f"`{command}` is not a Modelfile command",
                hint=f"Commands are {', '.join(sorted(_COMMANDS))}",
            )
        key = ""
        if command.upper() == "PARAMETER":
            key, value = _split(value.lstrip(_BLANKS))
            if _KEY.fullmatch(key) is None:
                raise TemplateError(
                    f"`{key}` is not the name of a parameter",
                    hint="Write `PARAMETER name value`",
                )
        end = line[len(line.rstrip("\r\n")) :]
        yield Instruction(command.upper(), _value(value + end, lines), key)


def sources(text: str) -> list[str]:
    """Return what follows the FROMs at the head of a Modelfile that a daemon wrote.

    A daemon writes other people's words after them, and does not quote all that needs it, so the
    rest is not read.
    """
    found: list[str] = []
    for line in _lines(text):
        command, value = _split(line.strip("\r\n").lstrip(_BLANKS))
        if command.upper() == "FROM":
            found.append(_unquote(value.strip()) or "")
        elif command and not command.startswith("#"):
            break
    return found


def _lines(text: str) -> Iterator[str]:
    """Yield the lines with their ends; Ollama also ends one at every carriage return.

    It drops what is unprintable, everywhere.
    """
    yield from _LINE.findall("".join(c for c in text if _is_kept(c)))


def _is_kept(character: str) -> bool:
    return character.isprintable() or character in "\r\n\t"


def _split(text: str) -> tuple[str, str]:
    end = min((at for c in _BLANKS if (at := text.find(c)) >= 0), default=len(text))
    return text[:end], text[end:]


def _value(first: str, lines: Iterator[str]) -> str:
    """Read a value that begins with `first` and may go on over the following lines."""
    buffer = first
    while (value := _unquote(buffer.strip())) is None:
        following = next(lines, None)
        if following is None:
            raise TemplateError(
                f"a quote that begins with `{first.strip()[:40]}` never ends",
                hint=f"Close it with {_QUOTES}",
            )
        buffer += following
    return value


def _unquote(text: str) -> str | None:
    """Return `text` without its quotes, or None while the closing ones are missing."""
    for quotes in (_QUOTES, '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if closed else None
    return text


def quote_path(path: str) -> str:
    """Return a path as it may stand after FROM: bare where it can, else in quotes."""
    if not path:
        raise TemplateError("a Modelfile needs a file after FROM", hint="Name both files")
    _printable(path, "file name", allowed="")
    if path.startswith('"'):
        return _triple(path, "file name")
    return f'"{path}"' if path != path.strip() else path


def _parameter_lines(given: Mapping[str, ParameterValue]) -> Iterator[tuple[str, str]]:
    for name, value in parameters(given).items():
        for item in value if isinstance(value, tuple) else (value,):
            yield name, _quote(item) if isinstance(item, str) else str(item).lower()


def _quote(value: str) -> str:
    if '"' in value or "\n" in value:
        return _triple(value, "parameter")
    _printable(value, "parameter")
    return f'"{value}"'


def _triple(value: str, what: str) -> str:
    if _QUOTES in value:
        raise TemplateError(
            f"the {what} holds {_QUOTES}, which a Modelfile cannot carry",
            hint="Use other quotation marks",
        )
    _printable(value, what)
    return f"{_QUOTES}{value}{_QUOTES}"


def _printable(value: str, what: str, allowed: str = "\n\t") -> None:
    """Refuse what Ollama's parser drops without a word: all that Go calls not printable."""
    for character in value:
        if not (character.isprintable() or character in allowed):
            raise TemplateError(
                f"the {what} holds the character U+{ord(character):04X}, "
                "which a Modelfile cannot carry",
                hint="Remove it, or write it in another way",
            )
