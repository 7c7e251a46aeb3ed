"""Puts a description and keywords into an XMP sidecar, and leaves every other byte as it was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape

from llava_ollama.export.interface import Existing
from llava_ollama.export.outline import DC, RDF, XML, Broken, Element, read

__all__ = ["Broken", "merge"]

_NAMESPACES = f'xmlns:dc="{DC}" xmlns:rdf="{RDF}"'
"""Declared at each element of ours: a prefix may mean anything in a sidecar of somebody else."""
_LISTS = ("Alt", "Bag", "Seq")
Edit = tuple[int, int, str]
"""Bytes from, to, and what takes their place."""


def merge(old: bytes, description: str, subject: Sequence[str], existing: Existing) -> bytes:
    """Return a sidecar with both in it.

    A description that is there is kept, replaced or added to, as `existing` tells; keywords that
    are there are kept, and with "skip" no others are added. Other languages are never touched.

    Raises:
        Broken: it is no sidecar.
    """
    rdf = read(old)
    parts = [child for child in rdf.children if child.name == (RDF, "Description")]
    edits: list[Edit] = []
    fresh: list[str] = []
    if description:
        _describe(parts, description, existing, (old, edits, fresh))
    if subject:
        _add_subject(parts, subject, existing, (old, edits, fresh))
    if fresh:
        edits.append(_insertion(old, rdf, parts, "".join(f"   {text}\n" for text in fresh)))
    return _apply(old, edits)


_Work = tuple[bytes, list[Edit], list[str]]


def _describe(parts: list[Element], text: str, existing: Existing, work: _Work) -> None:
    old, edits, fresh = work
    holder, element, before = _property(parts, "description")
    if holder is not None and element is None:  # as an attribute, which knows no languages
        if wanted := _wanted(before, text, existing):
            edits.append(_without_attribute(old, holder, "description"))
            fresh.append(_alt(wanted))
        return
    if element is None:
        fresh.append(_alt(text))
        return
    alt = next((c for c in element.children if c.name == (RDF, "Alt")), None)
    if alt is None:
        if wanted := _wanted(element.text.strip(), text, existing):
            edits.append((element.start, element.end, _alt(wanted)))
        return
    items = [child for child in alt.children if child.name == (RDF, "li")]
    default = next((i for i in items if i.attributes.get((XML, "lang")) == "x-default"), None)
    if default is None:
        edits.append(_into(alt, _item(text, alt, ' xml:lang="x-default"'), first=True))
    elif wanted := _wanted(default.text, text, existing):
        item = _item(wanted, alt, ' xml:lang="x-default"')
        edits.append((default.start, default.end, item))


def _wanted(before: str, text: str, existing: Existing) -> str | None:
    """Return what the description shall be; None for as it is."""
    if not before.strip():
        return text
    if existing == "skip" or before == text:
        return None
    if existing == "overwrite":
        return text
    return None if f"\n{text}\n" in f"\n{before}\n" else f"{before}\n{text}"


def _add_subject(
    parts: list[Element], words: Sequence[str], existing: Existing, work: _Work
) -> None:
    old, edits, fresh = work
    holder, element, before = _property(parts, "subject")
    if holder is None:
        fresh.append(_bag(words))
        return
    bag = None
    known = [before] if before.strip() else []
    if element is not None:
        bag = next((c for c in element.children if c.name in {(RDF, n) for n in _LISTS}), None)
        items = bag.children if bag is not None else []
        known = [item.text.strip() for item in items] or [element.text.strip()]
    more = [word for word in words if word not in known]
    if not more or (existing == "skip" and any(known)):
        return
    if bag is not None:
        edits.append(_into(bag, "".join(_item(word, bag, "") for word in more), first=False))
        return
    everything = _bag([*filter(None, known), *more])
    if element is not None:
        edits.append((element.start, element.end, everything))
    else:
        edits.append(_without_attribute(old, holder, "subject"))
        fresh.append(everything)


def _property(parts: list[Element], name: str) -> tuple[Element | None, Element | None, str]:
    """Return the description that holds a property, its element, and the text of an attribute."""
    for part in parts:
        if (element := part.find(DC, name)) is not None:
            return part, element, ""
    for part in parts:
        if (text := part.attributes.get((DC, name))) is not None:
            return part, None, text
    return None, None, ""


def _alt(text: str) -> str:
    return (
        f"<dc:description {_NAMESPACES}><rdf:Alt>"
        f'<rdf:li xml:lang="x-default">{_text(text)}</rdf:li></rdf:Alt></dc:description>'
    )


def _bag(words: Sequence[str]) -> str:
    items = "".join(f"<rdf:li>{_text(word)}</rdf:li>" for word in words)
    return f"<dc:subject {_NAMESPACES}><rdf:Bag>{items}</rdf:Bag></dc:subject>"


def _item(text: str, parent: Element, language: str) -> str:
    """Return a list's item with the prefix that the list itself has."""
    tag = _beside(parent, "li")
    return f"<{tag}{language}>{_text(text)}</{tag}>"


def _beside(element: Element, name: str) -> str:
    prefix, colon, _ = element.tag.rpartition(":")
    return f"{prefix}{colon}{name}"


def _text(text: str) -> str:
    return escape(text)


def _into(parent: Element, text: str, *, first: bool) -> Edit:
    """Return the edit that puts something into an element, which may be written `<a/>`."""
    if parent.is_empty:
        return parent.opened - 2, parent.opened, f">{text}</{parent.tag}>"
    at = parent.opened if first else parent.closing
    return at, at, text


def _line_of(old: bytes, at: int) -> int:
    """Return where the line of an end tag begins, if nothing but space is before the tag."""
    start = old.rfind(b"\n", 0, at) + 1
    return start if start and not old[start:at].strip() else at


def _insertion(old: bytes, rdf: Element, parts: list[Element], text: str) -> Edit:
    """Return the edit that adds properties to the first description, or makes one."""
    if parts and not parts[0].is_empty:
        at = _line_of(old, parts[0].closing)
        return at, at, text
    if parts:
        return _into(parts[0], f"\n{text}", first=False)
    tag = _beside(rdf, "Description")
    about = _beside(rdf, "about")
    made = f'<{tag} {about}="">\n{text}</{tag}>\n'
    return _into(rdf, made, first=False)


def _without_attribute(old: bytes, holder: Element, name: str) -> Edit:
    """Return the edit that takes an attribute out of a start tag, whatever its prefix is."""
    tag = old[holder.start : holder.opened]
    pattern = rb"""\s+[^\s=<>"'/:]+:%b\s*=\s*(?:"[^"]*"|'[^']*')""" % name.encode()
    for match in re.finditer(rb"""\s+([^\s=<>"'/]+)\s*=\s*(?:"[^"]*"|'[^']*')""", tag):
        if re.fullmatch(pattern, match[0]) and _is_dublin_core(match[1], old, holder):
            return holder.start + match.start(), holder.start + match.end(), ""
    raise Broken(f"its `{name}` stands in a way that is not understood")


def _is_dublin_core(attribute: bytes, old: bytes, holder: Element) -> bool:
    """Whether a prefix was last declared, before the tag ends, as Dublin Core's."""
    prefix = attribute.partition(b":")[0]
    declared = re.findall(
        rb"""xmlns:%b\s*=\s*["']([^"']*)["']""" % re.escape(prefix), old[: holder.opened]
    )
    return bool(declared) and declared[-1].decode() == DC


def _apply(old: bytes, edits: list[Edit]) -> bytes:
    """Return `old` with the edits made; of two at one place the first given comes first."""
    pieces, at = [], 0
    for start, end, text in sorted(edits, key=lambda edit: edit[:2]):
        pieces += [old[at:start], text.encode()]
        at = max(at, end)
    return b"".join([*pieces, old[at:]])
