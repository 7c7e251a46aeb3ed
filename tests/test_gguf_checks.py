"""What files are, which fit together, and what is said about those that lack something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llava_ollama import resources
from llava_ollama.errors import GGUFError
from llava_ollama.gguf import checks
from llava_ollama.gguf.reader import Header, read
from tests.published import published_model, published_projector, rewrite, write

if TYPE_CHECKING:
    from pathlib import Path

MODEL = resources.bundled("tiny-llava-f16.gguf")
INT4 = resources.bundled("tiny-llava-int4.gguf")
PROJECTOR = resources.bundled("tiny-llava-mmproj-f16.gguf")

LLAVA = {"mm.0.weight": (8, 16), "mm.0.bias": (16,), "mm.2.weight": (16, 16), "mm.2.bias": (16,)}
CLIP: dict[str, Any] = {"general.architecture": "clip", "clip.vision.image_size": 336}


def model(path: Path, **more: Any) -> Header:
    keys = {"general.architecture": "llama", "llama.embedding_length": 16}
    return read(write(path, keys | {k.replace("__", "."): v for k, v in more.items()}, {}))


def test_the_bundled_pair_fits() -> None:
    for name in (MODEL, INT4):
        checks.pair(read(name), read(PROJECTOR))
        assert checks.kind(read(name)) == "model"
        assert checks.has_llama3_vocabulary(read(name))
        assert not checks.is_projector(read(name))
    assert checks.is_projector(read(PROJECTOR))
    assert not checks.has_llama3_vocabulary(read(PROJECTOR))
    assert checks.image_size(read(PROJECTOR)) == 112


def test_the_published_pair_fits(tmp_path: Path) -> None:
    one = read(published_model(MODEL, tmp_path / "model.gguf"))
    other = read(published_projector(PROJECTOR, tmp_path / "mmproj.gguf"))
    checks.pair(one, other)


def refused(one: Header, other: Header) -> tuple[str, str]:
    with pytest.raises(GGUFError) as caught:
        checks.pair(one, other)
    return caught.value.message, caught.value.hint or ""


def test_pairs_that_cannot_work_are_named() -> None:
    one, other = read(MODEL), read(PROJECTOR)
    assert refused(other, one) == (
        f"`{PROJECTOR}` is a projector and `{MODEL}` is a model: they are swapped",
        f"Use --model-file {MODEL} --mmproj-file {PROJECTOR}",
    )
    assert refused(one, read(INT4))[0] == (
        f"`{MODEL}` and `{INT4}` are both models: no projector is named"
    )
    assert refused(other, other)[0] == (
        f"`{PROJECTOR}` and `{PROJECTOR}` are both projectors: no model is named"
    )


def test_a_projector_of_another_size(tmp_path: Path) -> None:
    wide = write(tmp_path / "wide.gguf", CLIP, LLAVA)
    assert refused(read(MODEL), read(wide)) == (
        f"`{wide}` is the projector of another model: its output is 16 wide, `{MODEL}` takes 256",
        "Use the projector that was published with the model",
    )


@pytest.mark.parametrize("number", ["9" * 5_000, "٢"])
def test_layers_that_have_no_number_are_not_counted(tmp_path: Path, number: str) -> None:
    path = write(tmp_path / "x.gguf", CLIP, LLAVA | {f"mm.{number}.weight": (4, 4)})
    try:
        header = read(path)
    except GGUFError:
        return
    assert checks.output_width(header) == 16


def test_the_last_layer_s_width_counts_not_clip_s_own(tmp_path: Path) -> None:
    """Files converted before 2025, xtuner's among them, name CLIP's own dimension in the key."""
    keys = CLIP | {"clip.vision.projection_dim": 768}
    old = read(write(tmp_path / "old.gguf", keys, LLAVA))
    assert checks.output_width(old) == 16
    checks.pair(model(tmp_path / "model.gguf"), old)
    none = read(write(tmp_path / "none.gguf", keys, {}))
    assert checks.output_width(none) == 768
    other = read(write(tmp_path / "other.gguf", keys, {"mm.model.fc.weight": (8, 8)}))
    assert checks.output_width(other) is None
    checks.pair(model(tmp_path / "model.gguf"), other)


def test_files_that_are_neither_or_not_whole(tmp_path: Path) -> None:
    adapter = model(tmp_path / "adapter.gguf", general__type="adapter")
    assert refused(adapter, read(PROJECTOR))[0] == (
        f"`{adapter.path}` is neither a model nor a projector (its kind is `adapter`)"
    )
    bare = read(write(tmp_path / "bare.gguf", {"general.architecture": "llama"}, {}))
    assert "(its kind is `llama`)" in refused(read(MODEL), bare)[0]
    part = model(tmp_path / "part.gguf", split__count=3, split__no=1)
    message, hint = refused(part, read(PROJECTOR))
    assert message == f"`{part.path}` is part 2 of 3"
    assert hint.startswith("Join the parts with `llama-gguf-split --merge")


@pytest.mark.parametrize("size", [None, 0, -1, 10**9, "336", True])
def test_image_sizes_that_cannot_be(tmp_path: Path, size: Any) -> None:
    path = rewrite(PROJECTOR, tmp_path / "x.gguf", {"clip.vision.image_size": None})
    if size is not None:
        path = write(path, CLIP | {"clip.vision.image_size": size}, LLAVA)
    with pytest.raises(GGUFError, match=r"has (no|an impossible \(-?\d+\)) `clip.vision.image_si"):
        checks.image_size(read(path))


def test_healthy_files_have_no_findings(tmp_path: Path) -> None:
    named = published_projector(
        PROJECTOR, tmp_path / "x.gguf", projector_type=True, feature_layer=True
    )
    for path in (MODEL, INT4, PROJECTOR, named):
        assert checks.health(read(path)) == []


def findings(path: Path) -> dict[str, tuple[str, str]]:
    return {found.check: (found.status, found.fix) for found in checks.health(read(path))}


def test_the_published_model_lacks_what_a_mended_copy_has(tmp_path: Path) -> None:
    path = published_model(MODEL, tmp_path / "my model.gguf")
    fix = f"llava-ollama mend '{path}' -o '{tmp_path / 'my model-mended.gguf'}'"
    assert findings(path) == {
        "pre-tokenizer": ("warning", fix),
        "end of turn": ("warning", fix),
        "chat template": ("warning", fix),
    }
    details = [found.detail for found in checks.health(read(path))]
    assert "says that text ends with token 540; a turn ends with 543, `<|eot_id|>`" in details


def test_the_published_projector_does_not_load_and_leaves_a_block_out(tmp_path: Path) -> None:
    path = published_projector(PROJECTOR, tmp_path / "mmproj.gguf")
    command = f"llava-ollama mend {path} -o {tmp_path / 'mmproj-mended.gguf'}"
    assert findings(path) == {
        "projector type": ("warning", command),
        "feature layer": (
            "warning",
            (
                f"{command}, or `llava-ollama install` with `--mend`; add `--layers N` for a file"
                " that the catalog does not know"
            ),
        ),
    }
    detail = checks.health(read(path))[1].detail
    assert "engines run 2 of its 3 blocks (llama.cpp issue 25817)" in detail


@pytest.mark.parametrize(
    ("width", "stored", "run", "short"),
    [
        (1024, 23, 22, True),  # xtuner's, and most others
        (1024, 24, 23, False),  # all of CLIP-L, of which LLaVA takes what the last but one gives
        (768, 24, 23, True),
    ],
)
def test_how_many_blocks_engines_run(
    tmp_path: Path, width: int, stored: int, run: int, *, short: bool
) -> None:
    keys = CLIP | {"clip.vision.embedding_length": width, "clip.vision.block_count": stored}
    header = read(write(tmp_path / "x.gguf", keys, LLAVA))
    assert checks.blocks(header) == checks.Blocks(stored, run, settled=False)
    assert ("feature layer" in findings(header.path)) is short
    named = keys | {checks.FEATURE_LAYER: [22]}
    header = read(write(tmp_path / "y.gguf", named, LLAVA))
    assert checks.blocks(header) == checks.Blocks(stored, 22, settled=True)
    assert "feature layer" not in findings(header.path)
    assert checks.blocks(read(write(tmp_path / "z.gguf", CLIP, LLAVA))) is None


def test_other_projectors_are_not_judged_by_llava_s_layers(tmp_path: Path) -> None:
    keys = CLIP | {"clip.projector_type": "mlp_norm", "clip.vision.block_count": 3}
    assert findings(write(tmp_path / "norm.gguf", keys, LLAVA | {"mm.3.weight": (16, 16)})) == {}


def test_a_model_of_another_family_is_told_only_what_is_certain(tmp_path: Path) -> None:
    other = model(tmp_path / "other.gguf", tokenizer__ggml__model="gpt2")
    assert findings(other.path) == {
        "pre-tokenizer": ("warning", ""),
        "chat template": ("warning", ""),
    }
    words = {"tokenizer__ggml__model": "llama", "tokenizer__chat_template": "{{ messages }}"}
    assert findings(model(tmp_path / "words.gguf", **words).path) == {}


def test_a_vocabulary_of_numbers_is_none(tmp_path: Path) -> None:
    odd = model(tmp_path / "odd.gguf", tokenizer__ggml__tokens=[1, 2])
    assert not checks.has_llama3_vocabulary(odd)
    half = model(tmp_path / "half.gguf", tokenizer__ggml__tokens=["<|eot_id|>", "b"])
    assert not checks.has_llama3_vocabulary(half)
