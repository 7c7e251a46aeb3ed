"""`look` writes down what a model sees, for a model or without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from llava_ollama.cli import main
from llava_ollama.images import prepare
from tests.daemons.running import RunningDaemon
from tests.installing import install, remove
from tests.photos import jpeg, photo


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    Path("photo.jpg").write_bytes(jpeg(photo(900, 600), orientation=6))


def look(*arguments: str, stdin: bytes = b"") -> str:
    done = CliRunner().invoke(main, ["look", *arguments], input=stdin)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_what_the_model_sees_is_written_and_told_without_a_daemon():
    assert look("photo.jpg") == (
        "turned by its EXIF orientation\n"
        "padded from 600 x 900 to 900 x 900 pixels\n"
        "resized to 336 x 336 pixels\n"
        "wrote photo.seen.png: 336 x 336 pixels\n"
    )
    assert Path("photo.seen.png").read_bytes() == prepare("photo.jpg", 336).data


def test_it_is_told_as_json():
    said = json.loads(look("photo.jpg", "-o", "x.png", "--size", "112", "--json"))
    assert said == {
        "picture": "photo.jpg",
        "path": "x.png",
        "width": 112,
        "height": 112,
        "notes": ["turned by its EXIF orientation"],
        "steps": [
            "turned by its EXIF orientation",
            "padded from 600 x 900 to 900 x 900 pixels",
            "resized to 112 x 112 pixels",
        ],
    }


def test_every_way_to_prepare_can_be_looked_at():
    ways: dict[tuple[str, ...], dict[str, Any]] = {
        ("--decode", "fast"): {"decode": "fast"},
        ("--decode", "native"): {"decode": "native"},
        ("--as-trained",): {"as_trained": True},
    }
    for options, keywords in ways.items():
        look("photo.jpg", "--size", "100", "--force", *options)
        seen = Path("photo.seen.png").read_bytes()
        assert seen == prepare("photo.jpg", 100, **keywords).data


def test_a_picture_may_come_through_standard_input():
    assert look("-", stdin=Path("photo.jpg").read_bytes()).endswith(
        "wrote picture.seen.png: 336 x 336 pixels\n"
    )


def test_what_is_right_already_is_taken_as_it_is():
    Image.new("RGB", (336, 336)).save("right.png")
    assert look("right.png").startswith("taken as it is\n")


@pytest.mark.ollama
def test_it_looks_through_the_eyes_of_a_model(ollama: RunningDaemon, tmp_path: Path):
    name = install(ollama.host, tmp_path, "eyes")
    look("photo.jpg", "--model", name, "--host", ollama.host)
    assert Path("photo.seen.png").read_bytes() == prepare("photo.jpg", 112).data
    remove(ollama.host, name)
