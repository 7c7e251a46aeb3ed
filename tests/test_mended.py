"""Mended projectors on real daemons: planned, installed, verified, repaired; asked for, or not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_ollama import Llava
from llava_ollama.catalog import WeightFile, load
from llava_ollama.daemon import Daemon
from llava_ollama.errors import UsageProblem
from llava_ollama.gguf import checks, reader
from llava_ollama.tiny import shapes
from llava_ollama.weights import Weights
from llava_ollama.weights.mended import mended_copy
from tests.daemons.running import RunningDaemon
from tests.drawn import one_shape_pictures
from tests.holding import flip, sha256
from tests.installing import remove
from tests.old_pair import Desk

PAGE = Path(__file__).parent.parent / "docs" / "vision-tower.md"
NAMES = ("old-int4", "old-int4-mended")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk.set_up(tmp_path)


@pytest.fixture
def busy(desk: Desk, ollama: RunningDaemon) -> Iterator[Desk]:
    """A desk before the daemon; what was installed under the usual names goes again."""
    yield desk
    listed = json.loads(desk.call("list", "--json", host=ollama.host).stdout)["installed"]
    for name in {model["name"].removesuffix(":latest") for model in listed} & {*NAMES}:
        remove(ollama.host, name)


def tensors(path: Path) -> dict[str, str]:
    header, data = reader.read(path), path.read_bytes()
    return {
        tensor.name: hashlib.sha256(data[tensor.offset : tensor.offset + tensor.size]).hexdigest()
        for tensor in header.tensors
    }


def test_mend_knows_the_depth_of_what_the_catalog_pins(desk: Desk):
    out = desk.folder / "out.gguf"
    done = json.loads(desk.call("mend", str(desk.projector), "-o", str(out), "--json").stdout)
    assert [change.split("`")[1] for change in done["changes"]] == [
        "clip.projector_type",
        "clip.vision.feature_layer",
    ]
    assert (done["source_sha256"], done["sha256"]) == (sha256(desk.projector), sha256(out))
    assert tensors(out) == tensors(desk.projector)
    said = desk.call("inspect", str(out)).stdout
    assert f"mended from   sha256 {done['source_sha256']}" in said
    assert "findings      none" in said


def test_an_unknown_depth_is_told_not_guessed(desk: Desk):
    desk.write_catalog("")
    out, again = desk.folder / "out.gguf", desk.folder / "again.gguf"
    done = desk.call("mend", str(desk.projector), "-o", str(out))
    assert "how many blocks `mmproj.gguf` was trained with is not known" in done.stderr
    assert "feature_layer" not in done.stdout
    assert checks.blocks(reader.read(out)) == checks.Blocks(3, 2, settled=False)
    done = desk.call("mend", str(desk.projector), "-o", str(again), "--layers", "3")
    assert done.stderr == ""
    assert checks.blocks(reader.read(again)) == checks.Blocks(3, 3, settled=True)


def test_the_plan_of_a_mended_copy_needs_the_depth(desk: Desk):
    desk.write_catalog("")
    weights = Weights(downloads=desk.folder / "cache", catalog=load(desk.catalog))
    file = WeightFile(name=desk.projector.name, path=desk.projector)
    with pytest.raises(UsageProblem, match=f"`{desk.projector.name}`.* is not known") as refused:
        weights.locate(mended_copy(file))
    assert "--layers N" in str(refused.value.hint)
    assert weights.locate(mended_copy(file, 3)).mending


@pytest.mark.ollama
def test_the_plan_tells_both_digests(busy: Desk, ollama: RunningDaemon):
    plan = ("install", "old", "--mend", "--dry-run")
    projector = json.loads(busy.call(*plan, "--json", host=ollama.host).stdout)["parts"][1]
    assert projector["mending"]["source_digest"] == sha256(busy.projector)
    assert len(projector["mending"]["changes"]) == 2
    text = busy.call(*plan, host=ollama.host).stdout
    assert f"a mended copy of sha256:{sha256(busy.projector)}" in text
    assert f"is sent, sha256:{projector['digest']}" in text
    assert not (busy.folder / "cache" / "downloads").exists()

    args = ("install", "old", "--mend", "--transfer", "upload", "--json")
    done = json.loads(busy.call(*args, host=ollama.host).stdout)
    assert (done["name"], done["changed"]) == ("old-int4-mended", True)
    part = done["parts"][1]
    assert part["mended_digest"] == part["stored_digest"] == projector["digest"]
    assert part["source_digest"] == sha256(busy.projector)
    assert part["bytes_written"] > 2 * busy.projector.stat().st_size  # the copy, and the blob
    assert not list((busy.folder / "cache" / "downloads").rglob("*.gguf"))
    # It knows the copy also where the original is gone.
    busy.projector.rename(busy.folder / "away.gguf")
    again = json.loads(busy.call(*args, host=ollama.host).stdout)
    assert again == {**done, "changed": False, "seconds": again["seconds"], "parts": again["parts"]}
    assert again["parts"][1] == {**part, "transfer": "there", "bytes_written": 0}


def install_both(desk: Desk, host: str) -> dict[str, Any]:
    for more in ((), ("--mend",)):
        desk.call("install", "old", "--transfer", "upload", *more, host=host)
    shown = desk.call("verify", *NAMES, "--json", host=host).stdout
    return {
        model["name"]: {layer["kind"]: layer for layer in model["layers"]}
        for model in json.loads(shown)["models"]
    }


@pytest.mark.ollama
def test_only_the_mended_one_differs_from_what_was_published(busy: Desk, ollama: RunningDaemon):
    found = install_both(busy, ollama.host)
    plain, mended = (found[name]["projector"] for name in NAMES)
    assert (plain["sha256"], plain["catalog"]) == (sha256(busy.projector), "old projector")
    assert (mended["state"], mended["catalog"]) == ("present", "old projector, mended")
    blob = ollama.models / "blobs" / f"sha256-{mended['sha256']}"
    assert tensors(blob) == tensors(busy.projector)

    towers = [
        finding
        for finding in json.loads(busy.call("doctor", "--json", host=ollama.host).stdout)[
            "findings"
        ]
        if finding["check"] == "vision tower"
    ]
    assert [finding["detail"].split("`")[1] for finding in towers] == ["old-int4"]
    assert "2 of the 3 blocks" in towers[0]["detail"]
    assert "install old --quant int4 --mend" in towers[0]["fix"]


@pytest.mark.ollama
def test_the_doctor_guesses_no_depth(busy: Desk, ollama: RunningDaemon):
    busy.write_catalog("")
    busy.call("install", "old", "--transfer", "upload", host=ollama.host)
    found = json.loads(busy.call("doctor", "--json", host=ollama.host).stdout)["findings"]
    (tower,) = [finding for finding in found if finding["check"] == "vision tower"]
    assert tower["status"] == "ok"
    assert "2 of the 3 blocks that its projector stores" in tower["detail"]
    assert "is not known" in tower["detail"]


@pytest.mark.ollama
def test_repair_makes_the_mended_copy_again(busy: Desk, ollama: RunningDaemon):
    found = install_both(busy, ollama.host)["old-int4-mended"]["projector"]
    blob = ollama.models / "blobs" / f"sha256-{found['sha256']}"
    whole = blob.read_bytes()
    flip(blob)
    busy.call("verify", "old-int4-mended", host=ollama.host, code=4)
    (outcome,) = json.loads(
        busy.call("repair", "old-int4-mended", "--json", host=ollama.host).stdout
    )["blobs"]
    assert (outcome["was"], outcome["problem"]) == ("corrupt", "")
    assert blob.read_bytes() == whole
    assert not list((busy.folder / "cache" / "downloads").rglob("*.gguf"))
    busy.call("verify", "old-int4-mended", host=ollama.host)


@pytest.mark.ollama
def test_what_is_right_gets_no_second_name(busy: Desk, ollama: RunningDaemon):
    done = busy.call("install", "tiny-llava", "--mend", host=ollama.host, code=2)
    assert "`tiny-llava-mmproj-f16.gguf` is right as it is: there is nothing to mend" in done.stderr
    assert "Hint: Install it without `--mend`" in done.stderr


@pytest.mark.ollama
def test_the_page_s_commands_show_the_difference(busy: Desk, ollama: RunningDaemon):
    """Here `llava-llama3` means the tiny pair in its published form."""
    busy.write_catalog(", vision-layers = 3", name="llava-llama3")
    drawn = list(one_shape_pictures(3, seed=7))
    with contextlib.chdir(busy.folder):
        for name, (picture, _) in zip(("xx.png", "before.jpg", "after.jpg"), drawn, strict=True):
            picture.save(name, quality=95)
        page = PAGE.read_text(encoding="utf-8")
        block = "".join(re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))
        said = [
            busy.call(*shlex.split(line)[1:], host=ollama.host).stdout
            for line in block.splitlines()
        ]
        *words, last = said[-1].splitlines()
        assert f"  llava-llama3-int4-mended  {shapes.caption(drawn[0][1])}" in words
        assert re.fullmatch("[1-3] of 3 answers differ", last)
        told = json.loads(busy.call("compare", "xx.png", "--json", host=ollama.host).stdout)
        names = ["llava-llama3-int4", "llava-llama3-int4-mended"]
        assert told["models"] == names
        daemon = Daemon(ollama.host)
        daemon.copy(names[1], "copy")
        daemon.close()
        same = ("compare", "xx.png", "--model", names[1], "--model", "copy")
        assert "0 of 1 answers differ" in busy.call(*same, host=ollama.host).stdout
        # What is wrong is heard of before a model is asked about the pictures before it.
        for wrong in ((same[0], "xx.png", "none.png", *same[2:]), (*same[:-1], "none")):
            refused = busy.call(*wrong, host=ollama.host, code=1)
            assert "asking" not in refused.stderr
    for name in (*names, "copy"):
        remove(ollama.host, name)


@pytest.mark.embedded
def test_embedded_mends_only_what_it_is_asked_to(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLAVA_OLLAMA_CATALOG", str(desk.folder / "own.toml"))
    picture = shapes.draw(shapes.Shape("red", "circle", "white"))
    digests = []
    for mend in (False, True):
        with Llava.embedded("old", mend=mend) as llava:
            digests.append(llava.ask(picture).model_digest)
    assert len({*digests}) == 2
    cache = Path.home() / ".cache" / "llava-ollama"
    made = {checks.blocks(reader.read(path)) for path in cache.rglob("*.gguf")}
    assert made == {checks.Blocks(3, 2, settled=False), checks.Blocks(3, 3, settled=True)}
    with Llava.embedded(model=desk.model, mmproj=desk.projector, mend=True) as llava:
        assert llava.ask(picture).text == shapes.caption(shapes.Shape("red", "circle", "white"))
