"""The catalog: what ships is pinned and true, and every mistake in a user's own is named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from llava_ollama import catalog, install, modelfile
from llava_ollama.errors import UnknownModel, UnknownQuant, UsageProblem

SHA = "0" * 64

GOOD = f"""
[models.mine]
title = "Mine"
repo = "me/mine"
revision = "abc"
default-quant = "q8"
template = "mine.gotmpl"
parameters = {{ num_ctx = 2048, stop = "</s>", temperature = 0 }}

[models.mine.projector]
file = "mmproj.gguf"
repo = "me/other"

[models.mine.quants.q4]
file = "sub/q4.gguf"
size = 5
sha256 = "{SHA}"

[models.mine.quants.q8]
file = "q8.gguf"
revision = "def"

[models.local]
template = "llama3-instruct"
projector = {{ file = "mmproj.gguf" }}
quants = {{ f16 = {{ file = "weights/f16.gguf" }} }}
"""


def test_the_published_model_is_pinned():
    entry = catalog.load().entry("llava-llama3")
    files = {"projector": entry.projector, **entry.quants}
    revision = "344f1bfe987bcbdc7e650b134d23670d5ffb5892"
    assert {(f.repo, f.revision) for f in files.values()} == {
        ("xtuner/llava-llama-3-8b-v1_1-gguf", revision)
    }
    assert {name: (f.name, f.size, f.sha256) for name, f in files.items()} == {
        "projector": (
            "llava-llama-3-8b-v1_1-mmproj-f16.gguf",
            624_434_368,
            "eb569aba7d65cf3da1d0369610eb6869f4a53ee369992a804d5810a80e9fa035",
        ),
        "int4": (
            "llava-llama-3-8b-v1_1-int4.gguf",
            4_921_246_944,
            "b6e1d703db0da8227fdb7127d8716bbc5049c9bf17ca2bb345be9470d217f3fc",
        ),
        "f16": (
            "llava-llama-3-8b-v1_1-f16.gguf",
            None,  # not published anywhere that was found; the Hub's answer fills it in
            "6658f7332be8a0e11a77bb62dfac69a3ba11daa296f5ceffd79d2fa799106f55",
        ),
    }
    assert entry.default_quant == "int4"


def test_the_bundled_files_are_what_the_catalog_says():
    entry = catalog.load().entry("tiny-llava")
    assert set(entry.quants) == {"int4", "f16"}
    for file in (entry.projector, *entry.quants.values()):
        assert file.path is not None
        data = file.path.read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
        assert file.repo is None


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "catalog.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_catalog_of_the_users_own_is_added(tmp_path):
    known = catalog.load(own(tmp_path, GOOD))
    assert set(known.entries) == {"llava-llama3", "tiny-llava", "mine", "local"}
    mine = known.entry("mine")
    assert mine.parameters == {"num_ctx": 2048, "stop": ("</s>",), "temperature": 0.0}
    assert mine.projector == catalog.WeightFile("mmproj.gguf", "me/other", "abc")
    assert mine.model("q4")[1] == catalog.WeightFile("sub/q4.gguf", "me/mine", "abc", 5, SHA)
    assert mine.model(None) == ("q8", catalog.WeightFile("q8.gguf", "me/mine", "def"))
    assert mine.template == str(tmp_path / "mine.gotmpl")
    local = known.entry("local")
    assert local.model(None)[1].path == tmp_path / "weights/f16.gguf"
    assert local.model(None)[1].name == "f16.gguf"
    assert local.template == modelfile.LLAMA3


def test_files_are_found_from_the_catalog_wherever_the_program_runs(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "elsewhere").mkdir()
    own(tmp_path / "conf", GOOD)
    (tmp_path / "conf" / "mine.gotmpl").write_text("{{ .Prompt }}")
    monkeypatch.chdir(tmp_path)
    known = catalog.load(Path("conf/catalog.toml"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    wanted = install.from_catalog(known, "mine", "q4")
    assert wanted.template == "{{ .Prompt }}"
    assert wanted.words().parameters == {"num_ctx": 2048, "stop": ("</s>",), "temperature": 0.0}
    path = known.entry("local").projector.path
    assert path is not None
    assert path.is_absolute()


def test_an_entry_of_the_same_name_takes_the_place_of_ours(tmp_path):
    text = GOOD.replace("models.local", "models.tiny-llava")
    assert catalog.load(own(tmp_path, text)).entry("tiny-llava").model(None)[0] == "f16"


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    assert "mine" in catalog.load(own(tmp_path, "\ufeff" + GOOD)).entries


def test_an_empty_catalog_adds_nothing(tmp_path):
    assert catalog.load(own(tmp_path, "")) == catalog.load()


MISTAKES = [
    # what is replaced, by what, and the key that the message must name
    ("[models.mine]\n", "[modells.mine]\n", "modells"),
    ("[models.mine]\n", "[model]\n[models.mine]\n", "Did you mean `models`"),
    ('title = "Mine"', "title = 1", "models.mine.title"),
    ('title = "Mine"', 'titel = "Mine"', "Did you mean `title`"),
    ('repo = "me/mine"', "repo = 1", "repo"),
    ('repo = "me/other"', "repo = []", "models.mine.projector.repo"),
    ('revision = "abc"', "revision = 344", "revision"),
    ('revision = "def"', "revision = 1.5", "models.mine.quants.q8.revision"),
    ('default-quant = "q8"', 'default-quant = "q9"', "models.mine.default-quant"),
    ('default-quant = "q8"', "default-quant = 8", "models.mine.default-quant"),
    ('default-quant = "q8"', 'default_quant = "q8"', "Did you mean `default-quant`"),
    ('template = "mine.gotmpl"', "template = true", "models.mine.template"),
    ("num_ctx = 2048", "num_ctxx = 2048", "num_ctxx"),
    ("num_ctx = 2048", "num_ctxx = 2048", "models.mine.parameters"),
    ("num_ctx = 2048", 'num_ctx = "many"', "num_ctx"),
    ("temperature = 0", "temperature = nan", "temperature"),
    ('stop = "</s>"', "stop = []", "stop"),
    ('stop = "</s>"', 'stop = ""', "stop"),
    ("parameters = {", "parameters = 1 #", "models.mine.parameters"),
    ('file = "mmproj.gguf"\nrepo', "repo", "models.mine.projector.file"),
    ('file = "sub/q4.gguf"', "", "models.mine.quants.q4.file"),
    ('file = "sub/q4.gguf"', 'file = ""', "models.mine.quants.q4.file"),
    ('file = "sub/q4.gguf"', "file = 4", "models.mine.quants.q4.file"),
    ("size = 5", 'size = "5"', "models.mine.quants.q4.size"),
    ("size = 5", "size = -5", "models.mine.quants.q4.size"),
    ("size = 5", "size = 0", "models.mine.quants.q4.size"),
    ("size = 5", "size = true", "models.mine.quants.q4.size"),
    ("size = 5", "syze = 5", "Did you mean `size`"),
    ("size = 5", "syze = 5", "models.mine.quants.q4"),
    (SHA, "F" * 64, "models.mine.quants.q4.sha256"),
    (SHA, "0" * 63, "models.mine.quants.q4.sha256"),
    (SHA, "0" * 64 + "\\n", "models.mine.quants.q4.sha256"),
    ('projector = { file = "mmproj.gguf" }', "", "models.local.projector"),
    ('projector = { file = "mmproj.gguf" }', "projector = 'm.gguf'", "models.local.projector"),
    ('quants = { f16 = { file = "weights/f16.gguf" } }', "", "models.local.quants"),
    ('quants = { f16 = { file = "weights/f16.gguf" } }', "quants = {}", "models.local.quants"),
    ('{ f16 = { file = "weights/f16.gguf" } }', '{ f16 = "f" }', "models.local.quants.f16"),
    ("[models.local]", "[models.local]\nbundled = 'yes'", "bundled"),
    ("[models.local]", "[models.local", "line"),
]


@pytest.mark.parametrize(("good", "bad", "named"), MISTAKES)
def test_a_mistake_is_named(tmp_path, good, bad, named):
    assert good in GOOD
    path = own(tmp_path, GOOD.replace(good, bad, 1))
    with pytest.raises(UsageProblem) as caught:
        catalog.load(path)
    assert named in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_models_that_are_no_table_are_told(tmp_path):
    for text, named in (("models = 1", "`models` must"), ("models.x = 1", "`models.x` must")):
        with pytest.raises(UsageProblem, match=named):
            catalog.load(own(tmp_path, text))


def test_a_catalog_that_cannot_be_read_is_told(tmp_path):
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(UsageProblem, match=str(path)):
            catalog.load(path)
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe9"')
    with pytest.raises(UsageProblem, match="utf-8"):
        catalog.load(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("text", "why"),
    [("x = " + "[" * 100_000, "deeply"), ("x = " + "9" * 5_000, "digits")],
    ids=["deep", "long"],
)
def test_a_catalog_that_is_too_much_has_a_mistake(tmp_path, text, why):
    with pytest.raises(UsageProblem, match=f"has a mistake: .*{why}"):
        catalog.load(own(tmp_path, text))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are Unix's")
def test_a_catalog_is_a_regular_file_of_a_megabyte_at_most(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageProblem, match="not a regular file"):
            catalog.load(path)
    with pytest.raises(UsageProblem, match="larger than 1 MB"):
        catalog.load(own(tmp_path, "#" * 1_000_001))


def test_unknown_names_get_the_nearest():
    known = catalog.load()
    with pytest.raises(UnknownModel) as model:
        known.entry("lava-llama3")
    assert model.value.hint == "Did you mean `llava-llama3`?"
    with pytest.raises(UnknownModel) as model:
        known.entry("zzz")
    assert model.value.hint == "Known models are `llava-llama3`, `tiny-llava`"
    with pytest.raises(UnknownQuant) as quant:
        known.entry("tiny-llava").model("int-4")
    assert quant.value.hint == "Did you mean `int4`?"
    with pytest.raises(UnknownQuant) as quant:
        known.entry("tiny-llava").model("q8")
    assert quant.value.hint == "Its quants are `f16`, `int4`"


def test_a_quant_may_name_a_tag_of_the_public_library():
    quants = catalog.load().entry("llava-llama3").quants
    assert quants["int4"].library == "llava-llama3:8b"
    assert quants["f16"].library is None
