"""XMP sidecars: read by Exiv2, merged into those of other programs, and no way to harm a reader."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pyexiv2
import pytest

from llava_ollama.export import Options, export
from llava_ollama.export.interface import Existing, Result
from llava_ollama.export.packet import Broken, merge
from llava_ollama.export.xmp import said
from tests.rows import given, row
from tests.test_export import HOSTILE

DARKTABLE = b"""\
<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
   xmp:Rating="4"
   darktable:history_end='7'>
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="rawprepare"
      darktable:params="gz02eJxjYGBgYAFiDgYkAAADIAAR&gt;&quot;"/>
    </rdf:Seq>
   </darktable:history>
   <!-- between -->
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<!-- after the root -->
"""
DIGIKAM = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 <rdf:Description rdf:about="" xmlns:digiKam="http://www.digikam.org/ns/1.0/"
   xmlns:purl="http://purl.org/dc/elements/1.1/">
  <purl:description><rdf:Alt>
    <rdf:li xml:lang="de">Eine Katze</rdf:li>
    <rdf:li xml:lang="x-default">A cat &amp; its mat</rdf:li>
  </rdf:Alt></purl:description>
  <purl:subject><rdf:Bag><rdf:li>cat</rdf:li><rdf:li>Haustier</rdf:li></rdf:Bag></purl:subject>
  <digiKam:TagsList><rdf:Seq><rdf:li>Animals/Cat</rdf:li></rdf:Seq></digiKam:TagsList>
 </rdf:Description>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>
""".encode()
LIGHTROOM = b"""\
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
   xmlns:dc="http://purl.org/dc/elements/1.1/" crs:Exposure2012="+0.50" dc:format="image/jpeg"
   dc:description='an old "note"' crs:HasCrop="False"/>
 </rdf:RDF>
</x:xmpmeta>
"""
NONE = b"""\
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>
</x:xmpmeta>
"""
OTHERS = {"darktable": DARKTABLE, "digiKam": DIGIKAM, "Lightroom": LIGHTROOM, "none": NONE}
DEFAULT = 'lang="x-default"'


def seen(path: Path) -> dict[str, Any]:
    """Return what Exiv2 reads: the oracle."""
    with pyexiv2.Image(str(path)) as image:
        return dict(image.read_xmp())


def exported(folder: Path, text: str, *, old: bytes | None = None, **more) -> tuple[Path, Result]:
    sidecar = folder / "a.jpg.xmp"
    if old is not None:
        sidecar.write_bytes(old)
    structured = more.pop("structured", False)
    rows = [row(1, folder / "a.jpg", text, structured=structured)]
    (result,) = export(given(rows), ["xmp"], Options(folder, **more))
    return sidecar, result


TAGS = json.dumps({"description": "A cat <on> a mat", "tags": ["cat", "mat & co", "cat", " "]})


def test_exiv2_reads_a_fresh_sidecar(tmp_path: Path):
    sidecar, result = exported(tmp_path, TAGS, structured=True)
    assert result.written == 1
    assert seen(sidecar) == {
        "Xmp.dc.description": {DEFAULT: "A cat <on> a mat"},
        "Xmp.dc.subject": ["cat", "mat & co"],
    }


def test_a_stem_names_it_for_adobe(tmp_path: Path):
    rows = [row(1, tmp_path / "a.jpg")]
    export(given(rows), ["xmp"], Options(tmp_path, xmp_full_name=False))
    assert seen(tmp_path / "a.xmp") == {"Xmp.dc.description": {DEFAULT: "A cat."}}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_answers_are_text(tmp_path: Path, text: str):
    sidecar, _ = exported(tmp_path, text)
    found = ET.fromstring(sidecar.read_bytes())
    (item,) = found.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")
    legal = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe]", "", text.replace("\r\n", "\n"))
    assert item.text == legal.strip()
    assert seen(sidecar)["Xmp.dc.description"] == {DEFAULT: legal.strip()}


@pytest.mark.parametrize("old", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_nothing_foreign_is_lost(tmp_path: Path, old: bytes, existing: Existing):
    (tmp_path / "before.xmp").write_bytes(old)
    before = seen(tmp_path / "before.xmp")
    sidecar, _ = exported(tmp_path, TAGS, old=old, structured=True, existing=existing)
    after = seen(sidecar)
    ours = {"Xmp.dc.description", "Xmp.dc.subject"}
    assert {k: v for k, v in after.items() if k not in ours} == {
        k: v for k, v in before.items() if k not in ours
    }
    assert set(before.get("Xmp.dc.subject", [])) <= set(after["Xmp.dc.subject"])
    assert after.keys() == before.keys() | ours
    once = sidecar.read_bytes()
    again = exported(tmp_path, TAGS, structured=True, existing=existing)[1]
    assert sidecar.read_bytes() == once
    assert (again.written, again.appended) == (0, 0)


def test_all_but_the_new_lines_stays_byte_for_byte():
    found = merge(DARKTABLE, "A cat", ["cat"], "skip").decode().splitlines()
    kept = [line for line in found if not line.startswith(("   <dc:description", "   <dc:subject"))]
    assert len(found) - len(kept) == 2
    assert kept == DARKTABLE.decode().splitlines()


@pytest.mark.parametrize(
    ("existing", "description", "subject"),
    [
        ("skip", "A cat & its mat", ["cat", "Haustier"]),
        ("overwrite", "A dog", ["cat", "Haustier", "dog"]),
        ("append", "A cat & its mat\nA dog", ["cat", "Haustier", "dog"]),
    ],
)
def test_a_description_that_is_there(tmp_path: Path, existing: Existing, description, subject):
    text = json.dumps({"caption": "A dog", "keywords": ["dog", "cat"]})
    sidecar, result = exported(tmp_path, text, old=DIGIKAM, structured=True, existing=existing)
    after = seen(sidecar)
    assert after["Xmp.dc.description"] == {DEFAULT: description, 'lang="de"': "Eine Katze"}
    assert after["Xmp.dc.subject"] == subject
    assert after["Xmp.digiKam.TagsList"] == ["Animals/Cat"]
    assert sidecar.read_bytes().startswith(b"<?xpacket begin=")
    assert sidecar.read_bytes().endswith(b'<?xpacket end="w"?>\n')
    counts = (result.written, result.skipped, result.appended)
    assert counts == {"skip": (0, 1, 0), "overwrite": (1, 0, 0), "append": (0, 0, 1)}[existing]


def test_a_description_that_is_an_attribute_becomes_an_element(tmp_path: Path):
    sidecar, _ = exported(tmp_path, "A dog", old=LIGHTROOM, existing="append")
    after = seen(sidecar)
    assert after["Xmp.dc.description"] == {DEFAULT: 'an old "note"\nA dog'}
    assert after["Xmp.crs.Exposure2012"] == "+0.50"
    assert after["Xmp.dc.format"] == "image/jpeg"
    assert sidecar.read_bytes().count(b"dc:description") == 2


def test_other_languages_stay_where_there_is_no_default():
    old = DIGIKAM.replace(b'xml:lang="x-default"', b'xml:lang="fr"')
    new = merge(old, "A dog", [], "skip").decode()
    assert '<rdf:Alt><rdf:li xml:lang="x-default">A dog</rdf:li>' in new
    assert "Eine Katze" in new
    assert "A cat &amp; its mat" in new


BROKEN = {
    "bomb": (
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>',
        "it has a document type, which may hide anything",
    ),
    "outside": (
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
        "it has a document type, which may hide anything",
    ),
    "half": (b"<x>\n<y>", "it is not XML: no element found: line 2, column 3"),
    "empty": (b"", "it is not XML: no element found: line 1, column 0"),
    "no XMP": (b"<svg/>", "it has no `rdf:RDF`"),
    "UTF-16": (DARKTABLE.decode().encode("utf-16"), "it is not in UTF-8"),
    "Latin-1": (DARKTABLE.replace(b"UTF-8", b"ISO-8859-1"), "it is not in UTF-8"),
    "deep": (b"<a>" * 500 + b"</a>" * 500, "it is nested too deep"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sidecar_is_left_and_told(tmp_path: Path, name: str):
    old, why = BROKEN[name]
    sidecar, result = exported(tmp_path, "A cat", old=old, existing="overwrite")
    assert sidecar.read_bytes() == old
    assert [problem.what for problem in result.problems] == [why]


def test_a_sidecar_without_end_is_left(tmp_path: Path):
    with (tmp_path / "a.jpg.xmp").open("wb") as file:
        file.truncate(1 << 30)
    _, result = exported(tmp_path, "A cat")
    assert [problem.what for problem in result.problems] == ["it is larger than 16 MiB"]


@pytest.mark.parametrize(
    ("text", "description", "subject"),
    [
        ("no JSON", "", ()),
        ("[1]", "", ()),
        ('{"tags": "cat"}', "", ()),
        ('{"tags": ["a", 1], "keywords": ["b"]}', "", ("b",)),
        ('{"subject": [" two\\nlines "]}', "", ("two lines",)),
        ('{"description": "A\\u0000 cat", "caption": "not this"}', "A cat", ()),
        ("[" * 100_000, "", ()),
    ],
)
def test_what_is_taken_from_a_structured_answer(text: str, description: str, subject):
    found = said([row(1, "/p/a.jpg", text, structured=True)])
    assert (found.description, found.subject) == (description, subject)


def test_several_answers_are_lines_of_one_description(tmp_path: Path):
    rows = [row(1, tmp_path / "a.jpg", "A cat."), row(1, tmp_path / "a.jpg", "One.", ask=2)]
    export(given(rows), ["xmp"], Options(tmp_path))
    assert seen(tmp_path / "a.jpg.xmp") == {"Xmp.dc.description": {DEFAULT: "A cat.\nOne."}}


def test_a_byte_order_mark_moves_nothing():
    assert merge(b"\xef\xbb\xbf" + DIGIKAM, "A dog", ["dog"], "overwrite") == (
        b"\xef\xbb\xbf" + merge(DIGIKAM, "A dog", ["dog"], "overwrite")
    )


def test_a_prefix_of_another_meaning_is_not_taken_for_dublin_core():
    old = LIGHTROOM.replace(b"dc/elements/1.1/", b"dc/terms/")
    new = merge(old, "A dog", [], "overwrite")
    assert b"dc:description='an old \"note\"'" in new
    with pytest.raises(Broken):
        merge(b"<x/>", "A dog", [], "overwrite")
