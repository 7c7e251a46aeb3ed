"""Where things stand in an XMP sidecar, in bytes: read by expat, which is given no entities.

Rewriting a sidecar through a tree loses what the tree does not keep: prefixes that only values
use, quotes, comments and instructions outside of the root. So it is read for places only, and
changed at these (`packet`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
XML = "http://www.w3.org/XML/1998/namespace"
_DEEPEST = 100
_START_TAG = re.compile(rb"""<(?:[^<>"']|"[^"]*"|'[^']*')*>""")


class Broken(Exception):
    """It is not a sidecar that can be changed, for this reason."""


@dataclass
class Element:
    """An element with the bytes that it spans."""

    name: tuple[str, str]
    """Namespace and local name."""
    tag: str
    """As it is written, with its prefix."""
    attributes: dict[tuple[str, str], str]
    start: int
    opened: int
    """The end of its start tag; for `<a/>` also the end of the element."""
    closing: int = 0
    """Where its end tag begins."""
    end: int = 0
    text: str = ""
    children: list[Element] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether it is written `<a/>`."""
        return self.closing == self.opened == self.end

    def find(self, *name: str) -> Element | None:
        """Return the first child of this name."""
        return next((child for child in self.children if child.name == name), None)


def read(data: bytes) -> Element:
    """Return the element `rdf:RDF` of a sidecar.

    Raises:
        Broken: it is not XML in UTF-8, has a DTD, or no XMP in it.
    """
    return _Reader(data).rdf()


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._open: list[Element] = []
        self._found: Element | None = None
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.namespace_prefixes = True
        parser.ordered_attributes = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.XmlDeclHandler = self._declaration
        # Without a DTD there are no entities: nothing expands, and nothing is fetched.
        parser.StartDoctypeDeclHandler = self._doctype
        self._parser = parser

    def rdf(self) -> Element:
        if self._data.startswith((b"\xfe\xff", b"\xff\xfe")):
            raise Broken("it is not in UTF-8")
        try:
            self._parser.Parse(self._data, True)
        except expat.ExpatError as exc:
            raise Broken(f"it is not XML: {exc}") from exc
        if self._found is None:
            raise Broken("it has no `rdf:RDF`")
        return self._found

    def _declaration(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding and encoding.upper() not in {"UTF-8", "US-ASCII"}:
            raise Broken("it is not in UTF-8")

    def _doctype(self, *_: Any) -> None:
        raise Broken("it has a document type, which may hide anything")

    def _start(self, name: str, attributes: list[str]) -> None:
        if len(self._open) == _DEEPEST:
            raise Broken("it is nested too deep")
        start = self._parser.CurrentByteIndex
        match = _START_TAG.match(self._data, start)
        assert match  # noqa: S101 - expat has found it to be one
        pairs = zip(attributes[::2], attributes[1::2], strict=True)
        element = Element(
            _split(name),
            re.split(rb"[\s/>]", match[0][1:], maxsplit=1)[0].decode(),
            {_split(key): value for key, value in pairs},
            start,
            match.end(),
        )
        if self._open:
            self._open[-1].children.append(element)
        if element.name == (RDF, "RDF") and self._found is None:
            self._found = element
        self._open.append(element)

    def _end(self, _name: str) -> None:
        element = self._open.pop()
        if self._data[element.opened - 2 : element.opened] == b"/>":
            element.closing = element.end = element.opened
            return
        element.closing = self._parser.CurrentByteIndex
        element.end = self._data.index(b">", element.closing) + 1

    def _characters(self, text: str) -> None:
        self._open[-1].text += text


def _split(name: str) -> tuple[str, str]:
    """Return the namespace and local name of expat's `namespace local prefix`."""
    parts = name.split(" ")
    return (parts[0], parts[1]) if len(parts) > 1 else ("", name)
