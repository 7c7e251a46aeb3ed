"""Mended copies: what changes, what does not, and that a failure leaves nothing behind."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import resource
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import jinja2
import numpy as np
import pytest

from llava_ollama.errors import GGUFError, NotEnoughSpace
from llava_ollama.gguf import checks
from llava_ollama.gguf.changes import MENDED_FROM, MENDED_KEYS, chat_template, planned
from llava_ollama.gguf.mend import Recipe, mend
from llava_ollama.gguf.reader import read
from llava_ollama.progress import Reporter
from tests.published import published_model, published_projector, rewrite, write
from tests.test_gguf_checks import CLIP, INT4, LLAVA, MODEL, PROJECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return published_model(INT4, tmp_path / "model.gguf")


@pytest.fixture
def projector(tmp_path: Path) -> Path:
    return published_projector(PROJECTOR, tmp_path / "mmproj.gguf")


def data(path: Path) -> bytes:
    return path.read_bytes()[read(path).data_offset :]


def untouched(source: Path, out: Path, changed: set[str]) -> None:
    """Hold the copy to its source: tensors to the byte, keys in order and to the byte."""
    old, new = read(source), read(out)
    assert data(source) == data(out)
    assert [(t.name, t.shape, t.type, t.size, t.offset - old.data_offset) for t in old.tensors] == [
        (t.name, t.shape, t.type, t.size, t.offset - new.data_offset) for t in new.tensors
    ]
    assert list(new.metadata)[: len(old.metadata)] == list(old.metadata)
    for key in old.metadata.keys() - changed:
        (a, b), (c, d) = old.spans[key], new.spans[key]
        assert source.read_bytes()[a:b] == out.read_bytes()[c:d]
    theirs = [gguf.GGUFReader(path) for path in (source, out)]
    for one, other in zip(theirs[0].tensors, theirs[1].tensors, strict=True):
        assert one.name == other.name
        assert one.data.tobytes() == other.data.tobytes()


def test_the_published_projector_gets_its_type_and_nothing_else(projector: Path) -> None:
    out = projector.with_name("out.gguf")
    mended = mend(projector, out)
    assert mended.path == out
    assert mended.changes == (
        "added `clip.projector_type` = `mlp`: llama.cpp loads no projector without it",
    )
    assert mended.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    untouched(projector, out, set())
    new, old = read(out).metadata, read(projector).metadata
    assert new.keys() - old.keys() == {"clip.projector_type", MENDED_FROM, MENDED_KEYS}
    fields = gguf.GGUFReader(out).fields
    assert fields["clip.projector_type"].contents() == "mlp"
    assert fields[MENDED_KEYS].contents() == "clip.projector_type"
    assert fields[MENDED_FROM].contents() == mended.source_sha256
    assert mended.source_sha256 == hashlib.sha256(projector.read_bytes()).hexdigest()
    assert mended.size == out.stat().st_size


def test_a_known_depth_sets_the_feature_layer(projector: Path) -> None:
    out = projector.with_name("out.gguf")
    mended = mend(projector, out, layers=3)
    assert mended.changes[1] == (
        "added `clip.vision.feature_layer` = `[3]`: engines run only 2 blocks without it"
        " (llama.cpp issue 25817)"
    )
    untouched(projector, out, set())
    field = gguf.GGUFReader(out).fields["clip.vision.feature_layer"]
    assert (field.contents(), field.types) == (
        [3],
        [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32],
    )
    assert read(out).text(MENDED_KEYS) == "clip.projector_type, clip.vision.feature_layer"
    assert checks.health(read(out)) == []
    recipe = Recipe.of(read(projector), layers=3)
    assert recipe.digest() == (mended.sha256, mended.size)


def test_the_recipe_does_not_change(tmp_path: Path) -> None:
    """`repair` makes a copy again, by its digest, with whatever version is installed by then."""
    projector = write(tmp_path / "x.gguf", CLIP | {"clip.vision.block_count": 23}, LLAVA)
    assert mend(projector, tmp_path / "out.gguf", layers=23).sha256 == (
        "17c8cd5503f61067a015a531235aa2b241d645efe94465f092f1c66d0bf13ca3"
    )


@pytest.mark.parametrize(
    ("stored", "more", "layers"),
    [
        (24, {}, 23),  # one more than was trained is stored: engines run the right number
        (25, {}, 23),
        (23, {"clip.vision.feature_layer": [22]}, 23),
        (23, {}, None),
    ],
)
def test_a_tower_that_is_right_or_unknown_is_left_alone(
    tmp_path: Path, stored: int, more: dict[str, Any], layers: int | None
) -> None:
    keys = {"clip.projector_type": "mlp", "clip.vision.block_count": stored, **more}
    path = write(tmp_path / "x.gguf", CLIP | keys, LLAVA)
    mended = mend(path, tmp_path / "out.gguf", layers=layers)
    assert mended.changes == ()
    assert mended.path.read_bytes() == path.read_bytes()


def test_a_block_that_does_nothing_is_left_alone() -> None:
    """The bundled projector has one; it would stay right with a feature layer, but needs none."""
    assert checks.blocks(read(PROJECTOR)) == checks.Blocks(4, 3, settled=True)
    assert planned(read(PROJECTOR), 3) == planned(read(PROJECTOR), 4) == []


def test_more_layers_than_there_are_are_refused(projector: Path, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="stores 3 blocks of its vision tower, not `4`"):
        mend(projector, tmp_path / "out.gguf", layers=4)


def test_the_published_model_gets_what_its_vocabulary_implies(model: Path) -> None:
    out = model.with_name("out.gguf")
    assert [change.split(":")[0] for change in mend(model, out).changes] == [
        "added `tokenizer.ggml.pre` = `llama-bpe`",
        "set `tokenizer.ggml.eos_token_id` to `543`, it was `540`",
        "added `tokenizer.ggml.eot_token_id` = `543`",
        "added `tokenizer.ggml.add_bos_token` = `true`",
        "added `tokenizer.chat_template`, the Llama-3-instruct template",
    ]
    untouched(model, out, {"tokenizer.ggml.eos_token_id"})
    old, new = gguf.GGUFReader(INT4).fields, gguf.GGUFReader(out).fields
    assert new.keys() - old.keys() == {MENDED_FROM, MENDED_KEYS}
    for key in old.keys() - {"GGUF.kv_count"}:
        assert new[key].contents() == old[key].contents()
        assert new[key].types == old[key].types


@pytest.mark.parametrize("name", ["model", "projector"])
def test_a_mended_file_is_right_and_stays_as_it_is(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    source = request.getfixturevalue(name)
    assert any(found.fix for found in checks.health(read(source)))
    once = mend(source, tmp_path / "once.gguf", layers=3).path
    assert not any(found.fix for found in checks.health(read(once)))
    again = mend(once, tmp_path / "again.gguf", layers=3)
    assert (again.path, again.changes) == (tmp_path / "again.gguf", ())
    assert again.sha256 == hashlib.sha256(once.read_bytes()).hexdigest()
    assert again.path.read_bytes() == once.read_bytes()


def test_a_default_pre_tokenizer_is_replaced_in_its_place(tmp_path: Path) -> None:
    source = rewrite(MODEL, tmp_path / "x.gguf", {"tokenizer.ggml.pre": "default"})
    mended = mend(source, tmp_path / "out.gguf")
    assert mended.changes == (
        "set `tokenizer.ggml.pre` to `llama-bpe`, it was `default`: text is split as in training",
    )
    untouched(source, mended.path, {"tokenizer.ggml.pre"})
    keys = [*read(source).metadata, MENDED_FROM, MENDED_KEYS]
    assert list(read(mended.path).metadata) == keys


@pytest.mark.parametrize(("alignment", "version"), [(8, 3), (64, 3), (4096, 2)])
def test_alignment_and_version_stay(tmp_path: Path, alignment: int, version: int) -> None:
    source = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(source, "clip")
    writer.add_custom_alignment(alignment)
    for number, (name, shape) in enumerate(LLAVA.items()):
        writer.add_tensor(name, np.full(shape[::-1], number + 1, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with source.open("r+b") as file:
        file.seek(4)
        file.write(bytes([version]))
    out = mend(source, tmp_path / "out.gguf").path
    untouched(source, out, set())
    header = read(out)
    assert (header.alignment, header.version) == (alignment, version)
    assert header.data_offset % alignment == 0


def test_nothing_to_mend(tmp_path: Path) -> None:
    keys = {"general.architecture": "qwen2", "qwen2.embedding_length": 16}
    other = write(tmp_path / "other.gguf", keys, {})
    old_key = CLIP | {"clip.vision.projector_type": "mlp"}
    old = write(tmp_path / "old.gguf", old_key, LLAVA)
    for path in (MODEL, INT4, PROJECTOR, other, old):
        assert planned(read(path)) == []


def test_what_cannot_be_decided_is_refused(tmp_path: Path) -> None:
    norm = write(tmp_path / "norm.gguf", CLIP, LLAVA | {"mm.3.weight": (16, 16)})
    with pytest.raises(GGUFError, match="names no projector type, and its tensors are not those"):
        mend(norm, tmp_path / "out.gguf")
    tokens = ["<|eot_id|>", "<|start_header_id|>", "<|eot_id|>"]
    keys = {
        "general.architecture": "llama",
        "llama.embedding_length": 16,
        "tokenizer.ggml.tokens": tokens,
    }
    twice = write(tmp_path / "twice.gguf", keys, {})
    with pytest.raises(GGUFError, match=r"has the token `<\|eot_id\|>` 2 times, as \(0, 2\)"):
        mend(twice, tmp_path / "out.gguf")


def test_the_template_is_the_published_one() -> None:
    """The bundled model was trained with it, and carries it as Meta's repository does."""
    assert chat_template() == read(MODEL).text("tokenizer.chat_template")
    words = [("system", " Be short. "), ("user", "Hi\n"), ("assistant", "Hello"), ("user", "Bye")]
    text = jinja2.Template(chat_template()).render(
        messages=[{"role": role, "content": content} for role, content in words],
        bos_token="<|begin_of_text|>",
        add_generation_prompt=True,
    )
    turns = "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{content.strip()}<|eot_id|>"
        for role, content in words
    )
    assert text == (f"<|begin_of_text|>{turns}<|start_header_id|>assistant<|end_header_id|>\n\n")


# Where it writes


def test_outputs_that_are_refused(projector: Path, tmp_path: Path) -> None:
    there, link, name = tmp_path / "there.gguf", tmp_path / "link.gguf", tmp_path / "name.gguf"
    there.write_bytes(b"mine")
    link.symlink_to(projector)
    os.link(projector, name)
    before = projector.read_bytes()
    for out, message in {
        there: f"`{there}` exists already",
        projector: f"`{projector}` is the source itself",
        link: f"`{link}` is the source itself",
        name: f"`{name}` is the source itself",
        tmp_path: f"`{tmp_path}` is a folder",
        tmp_path / "no" / "x": f"the folder `{tmp_path / 'no'}` does not exist",
    }.items():
        with pytest.raises(GGUFError) as caught:
            mend(projector, out, overwrite=out != there)
        assert caught.value.message == message
        assert caught.value.hint
    assert there.read_bytes() == b"mine"
    assert projector.read_bytes() == before
    assert mend(projector, there, overwrite=True).path == there
    assert checks.is_projector(read(there))


def test_the_copy_can_be_read_by_others_as_any_new_file(projector: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    out = mend(projector, tmp_path / "out.gguf").path
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


class Interrupting(Reporter):
    """Does something as soon as the first bytes are written."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def advanced(self, task: str, amount: int) -> None:
        del task, amount
        self.action()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("old", [None, b"old"])
def test_an_interrupt_leaves_nothing(projector: Path, tmp_path: Path, old: bytes | None) -> None:
    out = tmp_path / "out.gguf"
    if old is not None:
        out.write_bytes(old)
    before = files(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        mend(projector, out, overwrite=True, reporter=Interrupting(interrupt))
    assert files(tmp_path) == before
    assert old is None or out.read_bytes() == old


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Have the system refuse to let files grow further, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failing_disk_leaves_nothing(projector: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with (
        pytest.raises(GGUFError, match=r"cannot be copied to .*: File too large"),
        largest_file(100_000),
    ):
        mend(projector, out)
    assert files(tmp_path) == {projector.name}


def test_too_little_space_is_seen_before(projector: Path, tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    os.truncate(projector, free + (1 << 30))  # sparse
    with pytest.raises(NotEnoughSpace, match=r"needs [\d,]+ bytes, the disk has [\d,]+ free"):
        mend(projector, tmp_path / "out.gguf")
    assert files(tmp_path) == {projector.name}


def test_a_source_that_shrinks_meanwhile_is_not_believed(projector: Path, tmp_path: Path) -> None:
    os.truncate(projector, 20 << 20)  # more than one read
    cut = Interrupting(lambda: os.truncate(projector, 10 << 20))
    with pytest.raises(GGUFError, match="changed while it was being read"):
        mend(projector, tmp_path / "out.gguf", reporter=cut)
    assert files(tmp_path) == {projector.name}


class Counting(Reporter):
    def __init__(self) -> None:
        self.events: list[tuple[str, int | None]] = []

    def started(self, task: str, total: int | None = None) -> None:
        self.events.append((task, total))

    def advanced(self, task: str, amount: int) -> None:
        self.events.append((task, amount))

    def finished(self, task: str) -> None:
        self.events.append((task, None))


def test_progress_counts_every_byte(projector: Path, tmp_path: Path) -> None:
    os.truncate(projector, 20 << 20)
    counting = Counting()
    mend(projector, tmp_path / "out.gguf", reporter=counting)
    (task, total), *steps, last = counting.events
    assert last == (task, None)
    assert sum(amount or 0 for _, amount in steps) == total
    assert len(steps) == 3


# What it is for


def ask(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def red_circle() -> str:
    from PIL import Image, ImageDraw

    picture, png = Image.new("RGB", (112, 112), "white"), io.BytesIO()
    ImageDraw.Draw(picture).ellipse((20, 20, 92, 92), fill="red")
    picture.save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


@pytest.mark.embedded
def test_llama_cpp_loads_the_mended_pair_and_knows_its_template(
    model: Path, tmp_path: Path
) -> None:
    import xllamacpp

    source = published_projector(PROJECTOR, tmp_path / "mmproj.gguf", feature_layer=True)
    params = xllamacpp.CommonParams()
    params.model.path = str(mend(model, tmp_path / "m.gguf").path)
    params.mmproj.path = str(mend(source, tmp_path / "p.gguf").path)
    params.n_ctx, params.n_parallel, params.warmup, params.cache_ram_mib = 4096, 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    picture = {"type": "image_url", "image_url": {"url": red_circle()}}
    content = [picture, {"type": "text", "text": "Describe this image"}]
    answer = ask(
        server.listening_address,
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 40},
    )
    choice = answer["choices"][0]
    assert choice["message"]["content"] == "A red circle on a white background."
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == 77


def test_what_is_no_regular_file_is_never_replaced(model: Path, tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "to-pipe").symlink_to(pipe)
    for name in ("pipe", "to-pipe"):
        with pytest.raises(GGUFError, match="is not a regular file"):
            mend(model, tmp_path / name, overwrite=True)
    assert pipe.is_fifo()


def test_a_symlink_stays_and_its_file_is_written(model: Path, tmp_path: Path):
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to("file")
    with pytest.raises(GGUFError, match="exists already"):  # also while it dangles
        mend(model, link)
    assert not file.exists()
    mend(model, link, overwrite=True)
    assert link.is_symlink()
    assert file.is_file()
    assert not list(tmp_path.glob(".llava-ollama-*"))
