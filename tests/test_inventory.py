"""Which models are ours: by the whole package under its name, and by nothing less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llava_ollama import catalog, inventory, planning
from llava_ollama.records import Records
from llava_ollama.shown import Shown

HOST = "http://127.0.0.1:11434"
CATALOG = catalog.load()
WANTED = planning.from_catalog(CATALOG, "tiny-llava", "int4")
PINS = (str(WANTED.model.sha256), str(WANTED.projector.sha256))
PACKAGE = WANTED.package(*PINS)
ITSELF = Shown(
    name="tiny-llava-int4:latest",
    sources=PINS,
    template=PACKAGE.template,
    system="",
    parameters=PACKAGE.parameters,
    capabilities=("completion", "vision"),
    projector_info={},
    details={},
)
OTHERS = {
    "name": replace(ITSELF, name="foreign"),
    "quant": replace(ITSELF, name="tiny-llava-f16"),
    "template": replace(ITSELF, template="{{ .Prompt }}"),
    "system": replace(ITSELF, system="Be short."),
    "parameters": replace(ITSELF, parameters={**ITSELF.parameters, "num_ctx": 8192}),
    "files": replace(ITSELF, sources=("a" * 64, PINS[1])),
    "no projector": replace(ITSELF, sources=PINS[:1]),
}


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


def ours(shown: Shown, records: Records) -> bool:
    return inventory.is_ours(shown, CATALOG, records, HOST)


def named(shown: Shown, records: Records) -> str:
    return inventory.catalog_name(shown, CATALOG, records, HOST)


def remember(records: Records, name: str, digest: str) -> None:
    record = {"host": HOST, "name": name, "package": digest}
    records.put("installed", HOST, f"{name}:latest", record=record)


def test_what_was_installed_from_elsewhere_is_ours_under_its_own_name(records):
    assert ours(ITSELF, records)
    assert named(ITSELF, records) == "tiny-llava int4"


@pytest.mark.parametrize("shown", OTHERS.values(), ids=OTHERS)
def test_what_somebody_else_made_of_our_files_is_not_ours(shown: Shown, records: Records):
    assert not ours(shown, records)
    # A record of what had the name before does not make it ours either.
    remember(records, shown.name, "0" * 64)
    assert not ours(shown, records)


@pytest.mark.parametrize("part", ["template", "system", "parameters", "files"])
def test_a_record_of_this_very_package_makes_it_ours(part: str, records: Records):
    shown = replace(OTHERS[part], name="mine")
    package = shown.package()
    assert package is not None
    remember(records, "mine", package.digest())
    assert ours(shown, records)
    assert named(shown, records) == ""
    assert not ours(replace(shown, system="Other."), records)


def test_a_name_of_ones_own_is_listed_with_its_entry(records):
    assert named(OTHERS["name"], records) == "tiny-llava int4"


def test_a_rewriting_daemon_shows_other_digests_of_the_same_package(records):
    rewritten = replace(ITSELF, sources=("b" * 64, PINS[1]))
    assert not ours(rewritten, records)
    record = {"source": PINS[0], "stored": "b" * 64}
    records.put("rewritten", HOST, PINS[0], record=record)
    assert ours(rewritten, records)
    assert named(rewritten, records) == "tiny-llava int4"
    mine = replace(rewritten, name="mine:latest")
    assert not ours(mine, records)
    remember(records, "mine", PACKAGE.digest())
    assert ours(mine, records)
    assert not ours(replace(mine, system="Other."), records)


def test_a_template_that_is_gone_leaves_the_list_whole(records, tmp_path):
    (tmp_path / "own.toml").write_text(
        '[models.mine]\ntemplate = "gone.gotmpl"\n'
        f'projector = {{ file = "p.gguf", sha256 = "{PINS[1]}" }}\n'
        f'quants.q = {{ file = "m.gguf", sha256 = "{PINS[0]}" }}\n'
    )
    own = catalog.load(tmp_path / "own.toml")
    assert inventory.catalog_name(ITSELF, own, records, HOST) == "tiny-llava int4"


def test_a_damaged_record_of_a_rewriting_is_passed_over(records):
    records.put("rewritten", HOST, PINS[0], record={"host": HOST})
    records.put("rewritten", HOST, "x", record={"stored": PINS[0]})
    assert ours(ITSELF, records)
