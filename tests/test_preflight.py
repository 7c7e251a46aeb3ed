"""Pre-flight of `install`: refused is what cannot work, and the rest is said in two lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llava_ollama.cli import main
from llava_ollama.errors import GGUFError, TemplateError
from llava_ollama.preflight import preflight, remarks
from llava_ollama.resources import bundled
from tests.published import published_model, published_projector, rewrite
from tests.stand_ins import stand_in

MODEL = bundled("tiny-llava-int4.gguf")
PROJECTOR = bundled("tiny-llava-mmproj-f16.gguf")
COSTLY = "`mmproj.gguf` names no `clip.vision.feature_layer`: engines run 2 of its 3 blocks"
OTHERS = (
    "these files lack what today's engines look for (pre-tokenizer, end of turn, chat template, "
    "projector type); Ollama runs them, and `llava-ollama inspect FILE` says what it means for "
    "others"
)


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, Path]:
    """The pair in the published form."""
    model = published_model(MODEL, tmp_path / "model.gguf")
    return model, published_projector(PROJECTOR, tmp_path / "mmproj.gguf")


def test_a_healthy_pair_is_passed_in_silence():
    assert preflight(MODEL, PROJECTOR, llama3=True) == ()
    assert remarks(()) == []


def test_what_is_not_on_this_machine_is_not_judged():
    assert preflight(None, None, llama3=True) == ()


def test_the_published_pair_gets_two_lines(old: tuple[Path, Path]):
    findings = preflight(*old, llama3=True)
    assert {finding.status for finding in findings} == {"warning"}
    costly, others = remarks(findings)
    assert costly.startswith(COSTLY)
    assert others == OTHERS
    assert len(preflight(old[0], None, llama3=True)) == 3
    assert len(preflight(None, old[1], llama3=True)) == 2


def test_what_cannot_work_is_refused(tmp_path: Path):
    with pytest.raises(GGUFError, match="swapped"):
        preflight(PROJECTOR, MODEL, llama3=True)
    tokens = ["a", "b"]
    other = rewrite(MODEL, tmp_path / "other.gguf", {"tokenizer.ggml.tokens": tokens})
    with pytest.raises(TemplateError, match=r"`other\.gguf` is not a Llama-3 model"):
        preflight(other, PROJECTOR, llama3=True)
    preflight(other, PROJECTOR, llama3=False)


def test_a_dry_run_tells_it_too(old: tuple[Path, Path]):
    call = ["install", "--name", "x", "--model-file", str(old[0]), "--mmproj-file", str(old[1])]
    with stand_in("bare") as host:
        call += ["--host", host, "--dry-run"]
        text = CliRunner().invoke(main, call, prog_name="llava-ollama").stdout
        data = CliRunner().invoke(main, [*call, "--json"], prog_name="llava-ollama").stdout
    assert f"\n{COSTLY}" in text
    assert f"\n{OTHERS}\n" in text
    assert [finding["check"] for finding in json.loads(data)["findings"]] == [
        "pre-tokenizer",
        "end of turn",
        "chat template",
        "projector type",
        "feature layer",
    ]
