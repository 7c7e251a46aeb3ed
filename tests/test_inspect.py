"""`inspect`: what a weight file is, on the bundled pair and on files that are not well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
from click.testing import CliRunner, Result

from llava_ollama.cli import main
from llava_ollama.gguf import reader, summary
from llava_ollama.resources import bundled
from tests.published import published_model, published_projector, rewrite, write

MODEL = bundled("tiny-llava-int4.gguf")
F16 = bundled("tiny-llava-f16.gguf")
PROJECTOR = bundled("tiny-llava-mmproj-f16.gguf")


def call(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["inspect", *map(str, arguments)], prog_name="llava-ollama")
    assert done.exit_code == code, done.output
    return done


def data(*arguments: str | Path, code: int = 0):
    return json.loads(call(*arguments, "--json", code=code).stdout)


def test_a_model():
    (file,) = data(MODEL)["files"]
    told = file["summary"]
    fields = gguf.GGUFReader(MODEL).fields
    tensors = gguf.GGUFReader(MODEL).tensors
    assert (told["kind"], told["architecture"], told["file_type"]) == ("model", "llama", "Q4_K_S")
    assert told["tensors"] == len(tensors)
    assert told["elements"] == sum(int(tensor.n_elements) for tensor in tensors)
    assert told["size"] == MODEL.stat().st_size
    assert told["context_length"] == fields["llama.context_length"].contents()
    assert told["embedding_length"] == fields["llama.embedding_length"].contents()
    assert told["tokens"] == len(fields["tokenizer.ggml.tokens"].contents())
    assert "Llama-3" in told["vocabulary"]
    assert (told["image_size"], told["projector_type"]) == (None, None)
    assert told["blocks"] == told["blocks_run"] == fields["llama.block_count"].contents()
    assert file["findings"] == []


def test_a_projector_in_both_forms(tmp_path: Path):
    (file,) = data(PROJECTOR)["files"]
    told = file["summary"]
    assert (told["kind"], told["projector_type"], told["file_type"]) == ("projector", "mlp", "F16")
    assert (told["image_size"], told["blocks"], told["vocabulary"]) == (112, 4, None)
    assert told["blocks_run"] == 3

    old = published_projector(PROJECTOR, tmp_path / "old.gguf")
    found = data(old)["files"][0]
    assert (found["summary"]["blocks"], found["summary"]["blocks_run"]) == (3, 2)
    assert {f["check"] for f in found["findings"]} == {"projector type", "feature layer"}
    assert "of which engines run 2" in call(old).stdout

    mended = published_projector(
        PROJECTOR, tmp_path / "m.gguf", projector_type=True, feature_layer=True
    )
    told = data(mended)["files"][0]["summary"]
    assert (told["blocks"], told["blocks_run"]) == (3, 3)


def test_warnings_are_no_errors(tmp_path: Path):
    old = published_model(MODEL, tmp_path / "old.gguf")
    found = data(old)["files"][0]["findings"]
    assert {f["check"] for f in found} == {"pre-tokenizer", "end of turn", "chat template"}
    assert {f["status"] for f in found} == {"warning"}
    assert all("llava-ollama mend" in f["fix"] for f in found)
    assert "Fix: llava-ollama mend" in call(old).stdout


@pytest.mark.parametrize("files", [(MODEL, PROJECTOR), (PROJECTOR, MODEL)])
def test_a_pair_in_either_order(files: tuple[Path, Path]):
    pairing = data(*files)["pairing"]
    assert (pairing["check"], pairing["status"]) == ("pairing", "ok")
    assert "256" in pairing["detail"]


def test_two_files_that_are_none(tmp_path: Path):
    assert data(MODEL, F16, code=1)["pairing"]["status"] == "error"
    assert data(PROJECTOR, PROJECTOR, code=1)["pairing"]["status"] == "error"
    wide = rewrite(MODEL, tmp_path / "wide.gguf", {"llama.embedding_length": 512})
    found = data(wide, PROJECTOR, code=1)["pairing"]
    assert "another model" in found["detail"]
    assert data(MODEL)["pairing"] is None
    assert data(MODEL, F16, PROJECTOR)["pairing"] is None


def test_a_damaged_file_does_not_hide_the_others(tmp_path: Path):
    cut = Path(shutil.copy(MODEL, tmp_path / "cut.gguf"))
    with cut.open("r+b") as file:
        file.truncate(100_000)
    found = data(cut, tmp_path / "none.gguf", MODEL, code=1)
    states = [(f["summary"] is None, [x["check"] for x in f["findings"]]) for f in found["files"]]
    assert states == [(True, ["file"]), (True, ["file"]), (False, [])]
    text = call(cut, MODEL, code=1).stdout
    assert "truncated" in text
    assert "Q4_K_S" in text
    call(code=2)


def test_what_a_header_does_not_say(tmp_path: Path):
    bare = write(tmp_path / "bare.gguf", {"general.architecture": "x"}, {"one": (32, 2)})
    told = summary.summarize(reader.read(bare))
    assert (told.kind, told.file_type, told.elements) == ("other", "mostly F32", 64)
    assert (told.context_length, told.vocabulary, told.blocks_run) == (None, None, None)
    empty = write(tmp_path / "empty.gguf", {"general.architecture": "x"}, {})
    assert summary.summarize(reader.read(empty)).file_type == "no tensors"
    assert "not named" not in call(empty).stdout


def test_file_types_are_the_reference_s():
    for number, name in summary._FILE_TYPES.items():
        assert gguf.LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_") == name
