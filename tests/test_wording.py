"""Bad input: one sentence, one hint, the right exit code, no traceback, nothing changed.

The table holds every wording that a user may meet on an ordinary day.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from llava_ollama import resources
from llava_ollama.cli import main
from tests.hub import Fault, LoopbackHub
from tests.published import published_projector, rewrite
from tests.stand_ins import stand_in

MODEL = resources.bundled("tiny-llava-int4.gguf")
PROJECTOR = resources.bundled("tiny-llava-mmproj-f16.gguf")
NOBODY = "http://127.0.0.1:1"
"""Where nothing answers: port 1 is not for programs."""
TALK = "tiny-llava through llama.cpp in this process:\n"
"""What the demo says before it draws."""


@dataclass(frozen=True)
class Case:
    """A call and what is said of it: `{host}` is the stand-in's address, `{folder}` where we are.

    `{key}` is what the state folder calls a name.
    """

    name: str
    call: tuple[str, ...]
    message: str
    hint: str
    code: int
    daemon: str = "bare"
    environment: Mapping[str, str] = field(default_factory=dict)


def _bomb() -> bytes:
    """Return a PNG of 30,000 x 30,000 pixels, 2.7 GB when decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fill the working folder with all that can be wrong with a file."""
    monkeypatch.chdir(tmp_path)
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    picture.save("good.png")
    picture.save("whole.jpg")
    Path("cut.jpg").write_bytes(Path("whole.jpg").read_bytes()[:1200])
    Path("empty.png").touch()
    os.mkfifo("pipe.png")
    Path("text.ppm").write_bytes(b"P3 1200 1200 255\n" + b"0 " * (3 << 20))
    jpeg = Path("whole.jpg").read_bytes()
    Path("long.jpg").write_bytes(jpeg[:2] + b"\xff\xe1\0\x0aExif\0\0II" * 1001 + jpeg[2:])
    Path("text.png").write_text("This is not a picture.\n")
    Path("bomb.png").write_bytes(_bomb())
    Image.new("1", (1, 40_000)).save("tall.png")
    Path("a folder").mkdir()
    Path("shut").mkdir()
    Path("shut.png").write_bytes(Path("good.png").read_bytes())
    Path("shut.gguf").write_bytes(MODEL.read_bytes())
    Path("model.gguf").write_bytes(MODEL.read_bytes())
    Path("projector.gguf").write_bytes(PROJECTOR.read_bytes())
    Path("cut.gguf").write_bytes(MODEL.read_bytes()[:-1000])
    Path("start.gguf").write_bytes(MODEL.read_bytes()[:1000])
    rewrite(MODEL, Path("wide.gguf"), {"llama.embedding_length": 512})
    rewrite(MODEL, Path("foreign.gguf"), {"tokenizer.ggml.tokens": ["a", "b"]})
    rewrite(PROJECTOR, Path("bare.gguf"), {"clip.projector_type": None})
    published_projector(PROJECTOR, Path("shallow.gguf"))
    Path("odd.json").write_text('{"properties": {"a": {"type": "colour"}}}')
    Path("wrong.json").write_text('{"anyOf": []}')
    Path("half.json").write_text('{"type": ')
    Path("round.json").write_text('{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}')
    Path("own.toml").write_text('[models.mine]\nrepro = "a/b"\n')
    return tmp_path


@pytest.fixture(scope="module")
def hosts() -> Iterator[Callable[[str], str]]:
    """Start stand-ins as they are asked for."""
    with ExitStack() as stack:
        known = {"nobody": NOBODY}

        def host(kind: str) -> str:
            if kind not in known:
                known[kind] = stack.enter_context(stand_in(kind))
            return known[kind]

        yield host


CASES = (
    Case(
        "a name that another model has",
        ("install", "tiny-llava", "--name", "x"),
        "another model is installed as `x`",
        "Replace it with `--force`, or choose a name of your own with `--name`",
        1,
        daemon="seeing",
    ),
    Case(
        "a model that cannot be read",
        ("show", "x"),
        "the model `x` is damaged; the daemon at {host} says: unexpected EOF",
        "Install it again with `--force`, or `llava-ollama remove x`",
        1,
        daemon="damaged",
    ),
    Case(
        "a full queue",
        ("ask", "-m", "x", "good.png", "Hi", "--no-retry"),
        "the daemon at {host} has too many requests waiting",
        "Try again in a moment, or ask less at once",
        1,
        daemon="busy",
    ),
    Case(
        "a schema that is not there",
        ("ask", "-m", "x", "good.png", "Hi", "--schema", "none.json"),
        "the schema `none.json` cannot be read: No such file or directory",
        "Give the path of a JSON file",
        2,
    ),
    Case(
        "a schema that is half a file",
        ("ask", "-m", "x", "good.png", "Hi", "--schema", "half.json"),
        "`half.json` is not JSON: Expecting value: line 1 column 10 (char 9)",
        'A schema looks like `{"type": "object", "properties": {…}}`',
        2,
    ),
    Case(
        "a picture for a schema",
        ("ask", "-m", "x", "good.png", "Hi", "--schema", "good.png"),
        "`good.png` is not JSON: it is not UTF-8 text",
        'A schema looks like `{"type": "object", "properties": {…}}`',
        2,
    ),
    Case(
        "a schema with a type that is none",
        ("ask", "-m", "x", "good.png", "Hi", "--schema", "odd.json"),
        "the schema is wrong at `#/properties/a/type`: 'colour' is not valid under any of the "
        "given schemas",
        "See https://json-schema.org/understanding-json-schema",
        2,
    ),
    Case(
        "a schema that allows nothing",
        ("ask", "-m", "x", "good.png", "Hi", "--schema", "wrong.json"),
        "the schema is wrong at `#/anyOf`: [] should be non-empty",
        "See https://json-schema.org/understanding-json-schema",
        2,
    ),
    Case(
        "a schema without end",
        ("ask", "-m", "x", "good.png", "Hi", "--schema", "round.json"),
        "the schema at `#` refers to itself",
        "Let it refer to a part of itself",
        2,
    ),
    Case(
        "no daemon",
        ("ask", "-m", "x", "good.png", "Hi"),
        "no Ollama daemon answers at {host}",
        "Start it with `ollama serve`, or name another with `--host` or `OLLAMA_HOST`",
        3,
        daemon="nobody",
    ),
    Case(
        "no daemon to install into",
        ("install", "tiny-llava"),
        "no Ollama daemon answers at {host}",
        "Start it with `ollama serve`, or name another with `--host` or `OLLAMA_HOST`",
        3,
        daemon="nobody",
    ),
    Case(
        "no daemon to list",
        ("list",),
        "no Ollama daemon answers at {host}",
        "Start it with `ollama serve`, or name another with `--host` or `OLLAMA_HOST`",
        3,
        daemon="nobody",
    ),
    Case(
        "no daemon to remove from",
        ("remove", "x"),
        "no Ollama daemon answers at {host}",
        "Start it with `ollama serve`, or name another with `--host` or `OLLAMA_HOST`",
        3,
        daemon="nobody",
    ),
    Case(
        "wrong host",
        ("show", "x", "--host", "no-such-host.invalid"),
        "the host name in http://no-such-host.invalid:11434 cannot be resolved",
        "Check the address in `--host` or `OLLAMA_HOST`",
        3,
    ),
    Case(
        "a web server",
        ("show", "x"),
        "what answers at {host} is not an Ollama daemon",
        "Check the address and port in `--host` or `OLLAMA_HOST`",
        3,
        daemon="stranger",
    ),
    Case(
        "another API",
        ("install", "tiny-llava"),
        "the daemon at {host} does not say what its models can do",
        "It is older than 0.6.4: update Ollama",
        1,
        daemon="other JSON",
    ),
    Case(
        "an old daemon",
        ("ask", "-m", "x", "good.png", "Hi"),
        "the daemon at {host} does not say what its models can do",
        "It is older than 0.6.4: update Ollama",
        1,
        daemon="old",
    ),
    Case(
        "a silent daemon",
        ("show", "x"),
        "the daemon at {host} did not answer within 0.2 seconds",
        "It may be loading a large model: set `LLAVA_OLLAMA_TIMEOUT` to more seconds",
        3,
        daemon="silent",
        environment={"LLAVA_OLLAMA_TIMEOUT": "0.2"},
    ),
    Case(
        "bad OLLAMA_HOST",
        ("list",),
        "`localhost:port` in OLLAMA_HOST is not the address of a daemon: `port` is not a port",
        "Write it as `host`, `host:port` or `http://host:port`",
        2,
        environment={"OLLAMA_HOST": "localhost:port"},
    ),
    Case(
        "bad scheme",
        ("list", "--host", "ftp://here"),
        ("`ftp://here` in --host is not the address of a daemon: `ftp` is neither http nor https"),
        "Write it as `host`, `host:port` or `http://host:port`",
        2,
    ),
    Case(
        "bad timeout",
        ("list",),
        "`soon` in LLAVA_OLLAMA_TIMEOUT is not a number of seconds",
        "Try `LLAVA_OLLAMA_TIMEOUT=600`",
        2,
        environment={"LLAVA_OLLAMA_TIMEOUT": "soon"},
    ),
    Case(
        "bad registry",
        ("list",),
        "`registry.ollama.ai` in LLAVA_OLLAMA_REGISTRY is not the address of a registry",
        "Write it as `https://registry.ollama.ai`",
        2,
        environment={"LLAVA_OLLAMA_REGISTRY": "registry.ollama.ai"},
    ),
    Case(
        "catalog missing",
        ("list",),
        "the catalog `{folder}/none.toml` cannot be read: No such file or directory",
        "Check the path in `LLAVA_OLLAMA_CATALOG`",
        2,
        environment={"LLAVA_OLLAMA_CATALOG": "none.toml"},
    ),
    Case(
        "catalog with a mistake",
        ("list",),
        (
            "the catalog `{folder}/own.toml` has a mistake: `models.mine` has an unknown key "
            "`repro`. Did you mean `repo`?"
        ),
        "Compare it with the example in the README under `Your own models`",
        2,
        environment={"LLAVA_OLLAMA_CATALOG": "own.toml"},
    ),
    Case(
        "catalog that is a folder",
        ("list",),
        "the catalog `{folder}/a folder` cannot be read: Is a directory",
        "Check the path in `LLAVA_OLLAMA_CATALOG`",
        2,
        environment={"LLAVA_OLLAMA_CATALOG": "a folder"},
    ),
    Case(
        "state that is a file",
        ("install", "tiny-llava"),
        ("the lock file `{folder}/good.png/x/pending/{key}.lock` cannot be made: Not a directory"),
        "Mend its permissions or free space, or set `LLAVA_OLLAMA_STATE` to another",
        1,
        environment={"LLAVA_OLLAMA_STATE": "good.png/x"},
    ),
    Case(
        "model missing",
        ("ask", "-m", "x", "good.png", "Hi"),
        "the daemon at {host} has no model `x`",
        "`llava-ollama list` shows what is installed, `llava-ollama install` adds to it",
        1,
    ),
    Case(
        "model missing to show",
        ("show", "x"),
        "the daemon at {host} has no model `x`",
        "`llava-ollama list` shows what is installed, `llava-ollama install` adds to it",
        1,
    ),
    Case(
        "model missing to remove",
        ("remove", "x"),
        "the daemon at {host} has no model `x`",
        "`llava-ollama list` shows what is installed, `llava-ollama install` adds to it",
        1,
    ),
    Case(
        "no model of ours",
        ("ask", "good.png", "Hi"),
        "no model of ours is installed at {host}",
        "Install one with `llava-ollama install`, or name another with `--model`",
        2,
    ),
    Case(
        "no vision",
        ("ask", "-m", "x", "good.png", "Hi"),
        "`x` does not see pictures",
        "`llava-ollama list` shows the vision models that are installed",
        2,
        daemon="blind",
    ),
    Case(
        "not a name",
        ("show", "two words"),
        "`two words` is not a model name",
        "Use letters, digits, `-`, `_` and `.`, and a tag after `:` if you like",
        2,
    ),
    Case(
        "not ours",
        ("remove", "x"),
        "`x` was not installed by this tool",
        "Remove it with `--force`, or with `ollama rm x`",
        2,
        daemon="seeing",
    ),
    Case(
        "picture missing",
        ("ask", "-m", "x", "none.png", "Hi"),
        "`none.png` does not exist",
        "Check the path",
        1,
        daemon="seeing",
    ),
    Case(
        "a folder",
        ("ask", "-m", "x", "a folder", "Hi"),
        "`a folder` is a folder",
        "Name a picture in it",
        1,
        daemon="seeing",
    ),
    Case(
        "empty",
        ("ask", "-m", "x", "empty.png", "Hi"),
        "`empty.png` is empty: 0 bytes",
        "Copy or download it again",
        1,
        daemon="seeing",
    ),
    Case(
        "truncated JPEG",
        ("ask", "-m", "x", "cut.jpg", "Hi"),
        "`cut.jpg` is cut off: it ends too early",
        "Copy or download it again",
        1,
        daemon="seeing",
    ),
    Case(
        "text",
        ("ask", "-m", "x", "text.png", "Hi"),
        "`text.png` is not a picture that can be read: it looks like text",
        "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file",
        1,
        daemon="seeing",
    ),
    Case(
        "bomb",
        ("ask", "-m", "x", "bomb.png", "Hi"),
        "`bomb.png` has 30000 x 30000 pixels, more than the 200 million that are decoded",
        "Make it smaller first",
        1,
        daemon="seeing",
    ),
    Case(
        "weights",
        ("ask", "-m", "x", "model.gguf", "Hi"),
        "`model.gguf` is not a picture that can be read: it looks like a GGUF weight file",
        "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file",
        1,
        daemon="seeing",
    ),
    Case(
        "address",
        ("ask", "-m", "x", "https://example.org/a.png", "Hi"),
        "`https://example.org/a.png` is an address, not a file",
        "Fetch it first and pass the bytes",
        1,
        daemon="seeing",
    ),
    Case(
        "too long for a square",
        ("look", "tall.png", "-o", "seen.png"),
        "`tall.png` is too long to be padded to a square: 1 x 40000 pixels",
        "Cut it into parts",
        1,
    ),
    Case(
        "data URI of text",
        ("look", "data:image/png,AA", "-o", "seen.png"),
        "the picture in the data URI is not written in base64",
        "Write it as `data:image/png;base64,...`",
        1,
    ),
    Case(
        "data URI cut off",
        ("ask", "-m", "x", "data:image/png;base64,A", "Hi"),
        "the picture in the data URI is damaged: its base64 cannot be decoded",
        "Copy it again, to its last character",
        1,
        daemon="seeing",
    ),
    Case(
        "look into another format",
        ("look", "good.png", "-o", "new.jpg"),
        "`new.jpg` is not a PNG file's name",
        "Name it `….png`",
        2,
    ),
    Case(
        "look onto a file",
        ("look", "good.png", "-o", "good.png"),
        "`good.png` is there already",
        "Overwrite it with `--force`",
        2,
    ),
    Case(
        "look for eyes of no model",
        ("look", "good.png", "--model", "x"),
        "no Ollama daemon answers at {host}",
        "Start it with `ollama serve`, or name another with `--host` or `OLLAMA_HOST`",
        3,
        daemon="nobody",
    ),
    Case(
        "nothing on standard input",
        ("ask", "-m", "x", "-", "Hi"),
        "the picture from standard input is empty: 0 bytes",
        "Send a picture to standard input: `... - < xx.png`",
        1,
        daemon="seeing",
    ),
    Case(
        "a picture that is a pipe",
        ("ask", "-m", "x", "pipe.png", "Hi"),
        "`pipe.png` is not a regular file",
        "Send it to standard input: `... - < 'pipe.png'`",
        1,
        daemon="seeing",
    ),
    Case(
        "pixels as text",
        ("ask", "-m", "x", "text.ppm", "Hi"),
        "`text.ppm` has its pixels as text, and more than the 4 MB of it that are read",
        "Convert it to PNG or JPEG first",
        1,
        daemon="seeing",
    ),
    Case(
        "a picture that is metadata",
        ("ask", "-m", "x", "long.jpg", "Hi"),
        "`long.jpg` has more metadata before its pixels than is read",
        "Save it without metadata, or convert it to PNG",
        1,
        daemon="seeing",
    ),
    Case(
        "prompt is a picture",
        ("ask", "-m", "x", "good.png", "whole.jpg"),
        "the prompt is missing: `whole.jpg` is a picture",
        'Write it as `llava-ollama ask photo.jpg "Describe this image"`',
        2,
    ),
    Case(
        "no picture",
        ("ask", "-m", "x", "Hi"),
        "there is no picture before the prompt",
        'Write it as `llava-ollama ask photo.jpg "Describe this image"`',
        2,
    ),
    Case(
        "picture in the prompt missing",
        ("run", "x", "none.png What is this?"),
        "there is no picture `none.png`",
        "Check its path; one that is not absolute counts from the current folder",
        2,
    ),
    Case(
        "prompt without quotes",
        ("ask", "-m", "x", "good.png", "Describe", "this", "image"),
        "there is no picture `Describe`",
        'Put the prompt in quotes: `llava-ollama ask photo.jpg "Describe this image"`',
        2,
    ),
    Case(
        "the name that Ollama has, embedded",
        ("ask", "--embedded", "tiny-llava-f16", "good.png", "Hi"),
        "no model `tiny-llava-f16` in the catalog",
        "Did you mean `tiny-llava:f16`?",
        2,
    ),
    Case(
        "two ways to answer",
        ("ask", "-m", "x", "--server", "localhost", "good.png", "Hi"),
        "`--model`, `--embedded` and `--server` exclude each other",
        "Give one of them",
        2,
    ),
    Case(
        "names and all of them",
        ("verify", "x", "--all"),
        "names and `--all` exclude each other",
        "Give one of them",
        2,
    ),
    Case(
        "model missing to verify",
        ("verify", "x"),
        "the daemon at {host} has no model `x`",
        "`llava-ollama list` shows what is installed, `llava-ollama install` adds to it",
        1,
    ),
    Case(
        "model missing to repair",
        ("repair", "x"),
        "the daemon at {host} has no model `x`",
        "`llava-ollama list` shows what is installed, `llava-ollama install` adds to it",
        1,
    ),
    Case(
        "no daemon to verify",
        ("verify",),
        "no Ollama daemon answers at {host}",
        "Start it with `ollama serve`, or name another with `--host` or `OLLAMA_HOST`",
        3,
        daemon="nobody",
    ),
    Case(
        "no daemon to repair",
        ("repair", "x"),
        "no Ollama daemon answers at {host}",
        "Start it with `ollama serve`, or name another with `--host` or `OLLAMA_HOST`",
        3,
        daemon="nobody",
    ),
    Case(
        "GGUF missing",
        ("install", "--name", "x", "--model-file", "none.gguf", "--mmproj-file", "projector.gguf"),
        "`none.gguf` does not exist",
        "Name a GGUF file",
        1,
    ),
    Case(
        "GGUF truncated",
        ("install", "--name", "x", "--model-file", "cut.gguf", "--mmproj-file", "projector.gguf"),
        "`cut.gguf` is truncated: its tensors need 1,313,920 bytes, the file has 1,312,920",
        "Download the file again",
        1,
    ),
    Case(
        "GGUF cut in its header",
        ("install", "--name", "x", "--model-file", "start.gguf", "--mmproj-file", "projector.gguf"),
        "`start.gguf` is damaged: the key `tokenizer.ggml.tokens` claims 544 strings",
        "Download the file again",
        1,
    ),
    Case(
        "not GGUF",
        ("install", "--name", "x", "--model-file", "good.png", "--mmproj-file", "projector.gguf"),
        "`good.png` is not a GGUF file",
        "It is a picture: name the .gguf file",
        1,
    ),
    Case(
        "GGUF is a folder",
        ("install", "--name", "x", "--model-file", "a folder", "--mmproj-file", "projector.gguf"),
        "`a folder` is not a file",
        "Name a GGUF file",
        1,
    ),
    Case(
        "swapped",
        ("install", "--name", "x", "--model-file", "projector.gguf", "--mmproj-file", "model.gguf"),
        "`projector.gguf` is a projector and `model.gguf` is a model: they are swapped",
        "Use --model-file model.gguf --mmproj-file projector.gguf",
        1,
    ),
    Case(
        "twice the model",
        ("install", "--name", "x", "--model-file", "model.gguf", "--mmproj-file", "model.gguf"),
        "`model.gguf` and `model.gguf` are both models: no projector is named",
        "The projector's file name has `mmproj` in it, mostly",
        1,
    ),
    Case(
        "projector of another size",
        ("install", "--name", "x", "--model-file", "wide.gguf", "--mmproj-file", "projector.gguf"),
        (
            "`projector.gguf` is the projector of another model: its output is 256 wide, "
            "`wide.gguf` takes 512"
        ),
        "Use the projector that was published with the model",
        1,
    ),
    Case(
        "not a Llama-3 model",
        (
            *("install", "--name", "x"),
            *("--model-file", "foreign.gguf", "--mmproj-file", "projector.gguf"),
        ),
        (
            "`foreign.gguf` is not a Llama-3 model: its vocabulary lacks `<|start_header_id|>` "
            "and `<|eot_id|>`"
        ),
        "Give its chat template as a Go template with `--template FILE`",
        1,
    ),
    Case(
        "no projector",
        ("install", "--name", "x", "--model-file", "model.gguf"),
        "a vision model is two files: the model and its projector (mmproj)",
        "Give both `--model-file` and `--mmproj-file`",
        2,
    ),
    Case(
        "no name",
        ("install", "--model-file", "model.gguf", "--mmproj-file", "projector.gguf"),
        "files of your own need a name",
        "Choose one with `--name`, such as `my-llava`",
        2,
    ),
    Case(
        "both ways",
        ("install", "tiny-llava", "--model-file", "model.gguf", "--mmproj-file", "projector.gguf"),
        "MODEL and `--quant` name catalog files, `--model-file` and `--mmproj-file` your own",
        "Give either the one or the other, and your own files a `--name`",
        2,
    ),
    Case(
        "repository only",
        ("install", "--repo", "a/b"),
        "`--repo` names a repository, not its files",
        "Add `--model-file` and `--mmproj-file` with their names there",
        2,
    ),
    Case(
        "system prompt with a picture mark",
        ("install", "tiny-llava", "--system", "You see [img-0]."),
        "the system prompt has `[img-0]`, which Ollama takes for a picture",
        "Leave it out, or put a space into it",
        2,
    ),
    Case(
        "template missing",
        ("install", "tiny-llava", "--template", "none.txt"),
        "the template `none.txt` cannot be read: No such file or directory",
        "Name a file with a Go template, as in a Modelfile's TEMPLATE",
        1,
    ),
    Case(
        "unknown quant",
        ("install", "tiny-llava", "--quant", "int5"),
        "`tiny-llava` has no quant `int5`",
        "Did you mean `int4`?",
        2,
    ),
    Case(
        "unknown quant afar",
        ("install", "tiny-llava", "--quant", "best"),
        "`tiny-llava` has no quant `best`",
        "Its quants are `f16`, `int4`",
        2,
    ),
    Case(
        "unknown model",
        ("install", "tiny-lava"),
        "no model `tiny-lava` in the catalog",
        "Did you mean `tiny-llava`?",
        2,
    ),
    Case(
        "a model by its name in Ollama",
        ("install", "tiny-llava-f16"),
        "no model `tiny-llava-f16` in the catalog",
        "Did you mean `tiny-llava`, with `--quant f16`?",
        2,
    ),
    Case(
        "unknown model afar",
        ("render", "gpt"),
        "no model `gpt` in the catalog",
        "Known models are `llava-llama3`, `tiny-llava`",
        2,
    ),
    Case(
        "unknown parameter",
        ("install", "tiny-llava", "--parameter", "heat=1"),
        "`heat` is not a parameter that Ollama knows",
        (
            "Known are frequency_penalty, main_gpu, min_p, num_batch, num_ctx, num_gpu, "
            "num_keep, num_predict, num_thread, presence_penalty, repeat_last_n, repeat_penalty, "
            "seed, stop, temperature, top_k, top_p, typical_p, use_mmap"
        ),
        2,
    ),
    Case(
        "not a parameter",
        ("install", "tiny-llava", "--parameter", "num_ctx"),
        "`num_ctx` is not KEY=VALUE",
        "For instance num_ctx=8192",
        2,
    ),
    Case(
        "wrong parameter",
        ("install", "tiny-llava", "--parameter", "num_ctx=many"),
        "`many` is not a value for the parameter `num_ctx`",
        "Give a whole number",
        2,
    ),
    Case("unknown command", ("instal",), "no command `instal`", "Did you mean `install`?", 2),
    Case(
        "unknown command afar",
        ("fly",),
        "no command `fly`",
        (
            "Commands are `ask`, `batch`, `compare`, `completion`, `demo`, `doctor`, `download`, "
            "`export`, `gallery`, `inspect`, `install`, `list`, `look`, `mend`, `remove`, "
            "`render`, `repair`, `run`, `show`, `status`, `verify`"
        ),
        2,
    ),
    Case(
        "unknown option",
        ("install", "--quent", "int4"),
        "no option `--quent`",
        "Did you mean `--quiet`?",
        2,
    ),
    Case(
        "unknown global option", ("--jsn", "list"), "no option `--jsn`", "Did you mean `--json`?", 2
    ),
    Case(
        "option without its value",
        ("render", "-o"),
        "option `-o` requires an argument",
        "`llava-ollama --help` shows how it is called",
        2,
    ),
    Case(
        "argument missing",
        ("show",),
        "`NAME` is missing",
        "`llava-ollama show --help` shows how it is called",
        2,
    ),
    Case(
        "one argument too many",
        ("show", "a", "b"),
        "got unexpected extra argument (b)",
        "`llava-ollama show --help` shows how it is called",
        2,
    ),
    Case(
        "not a number",
        ("ask", "--temperature", "hot", "good.png", "Hi"),
        "`--temperature`: `hot` is not a valid float",
        "`llava-ollama ask --help` shows how it is called",
        2,
    ),
    Case(
        "folder missing",
        ("install", "--dir", "none"),
        "`--dir`: directory `none` does not exist",
        "`llava-ollama install --help` shows how it is called",
        2,
    ),
    Case(
        "file in the way",
        ("render", "-o", "good.png"),
        "`good.png` is there already",
        "Overwrite it with `--force`",
        2,
    ),
    Case(
        "no folder for the file",
        ("render", "-o", "none/file"),
        "`none/file` cannot be written: No such file or directory",
        "Choose another file with `-o`",
        2,
    ),
    Case(
        "disk full",
        ("render", "-o", "/dev/full", "--force"),
        "`/dev/full` cannot be written: No space left on device",
        "Choose another file with `-o`",
        2,
    ),
    Case(
        "a copy onto a file in the way",
        ("mend", "model.gguf", "-o", "projector.gguf"),
        "`projector.gguf` exists already",
        "Add --force to replace it",
        1,
    ),
    Case(
        "nothing like GGUF to mend",
        ("mend", "good.png", "-o", "out.gguf"),
        "`good.png` is not a GGUF file",
        "It is a picture: name the .gguf file",
        1,
    ),
    Case(
        "more layers than there are",
        ("mend", "bare.gguf", "-o", "out.gguf", "--layers", "9"),
        "`bare.gguf` stores 4 blocks of its vision tower, not `9`",
        "Give the number of blocks that it was trained with",
        1,
    ),
    Case(
        "layers that the catalog knows better",
        ("mend", "projector.gguf", "-o", "out.gguf", "--layers", "2"),
        "`projector.gguf` was trained with 3 blocks, not `2`",
        "Leave out `--layers`",
        2,
    ),
    Case(
        "install mended of unknown depth",
        (
            *("install", "--name", "x", "--model-file", "model.gguf"),
            *("--mmproj-file", "shallow.gguf", "--mend"),
        ),
        "how many blocks `shallow.gguf` was trained with is not known",
        "Say it with `--layers N`, the blocks that it ran in training: 23 for CLIP-L",
        2,
        daemon="seeing",
    ),
    Case(
        "layers of nothing to mend",
        ("install", "tiny-llava", "--layers", "3"),
        "`--layers` is for a projector to be mended",
        "Add `--mend`",
        2,
    ),
    Case(
        "a model compared with itself",
        ("compare", "good.png", "--model", "a", "--model", "a"),
        "two models are compared, not 1",
        "Write `--model A --model B`, or leave both out",
        2,
    ),
    Case(
        "a picture that comes once, compared",
        ("compare", "-", "--model", "a", "--model", "b"),
        "standard input gives a picture only once, and two models are asked",
        "Save the picture to a file",
        2,
    ),
    Case(
        "nothing to compare",
        ("compare", "good.png"),
        "no model is installed both as published and mended at {host}",
        (
            "`llava-ollama install` and `llava-ollama install --mend` make such a pair, or name any"
            " two with `--model`"
        ),
        2,
    ),
    Case(
        "nothing to mend at",
        ("mend", "none.gguf", "-o", "out.gguf"),
        "`none.gguf` does not exist",
        "Check the path",
        1,
    ),
    Case(
        "unknown shell",
        ("completion", "csh"),
        "`SHELL`: `csh` is not one of `bash`, `zsh`, `fish`",
        "`llava-ollama completion --help` shows how it is called",
        2,
    ),
    Case(
        "demo without a place",
        ("demo", "--folder", "good.png/x"),
        "`good.png/x/red-circle.png` cannot be written: Not a directory",
        "Choose another folder with `--folder`",
        2,
        daemon="nobody",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_call_gets_its_sentence_and_changes_nothing(
    case: Case, folder: Path, hosts: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
):
    host = hosts(case.daemon)
    for name, value in {"OLLAMA_HOST": host, **case.environment}.items():
        monkeypatch.setenv(name, value)
    before = _contents(folder)
    done = CliRunner().invoke(main, case.call, input=b"", prog_name="llava-ollama")
    said = _general(done.stderr, host, folder)
    assert said.removeprefix(TALK) == f"Error: {case.message}\nHint: {case.hint}\n"
    assert done.exit_code == case.code
    assert isinstance(done.exception, SystemExit)
    assert _contents(folder) == before


def _general(said: str, host: str, folder: Path) -> str:
    said = said.replace(host, "{host}").replace(str(folder), "{folder}")
    return re.sub("[0-9a-f]{24}", "{key}", said)


def _contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file, without the ledger and the state folder's empty locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and "ledger.sqlite3" not in path.name
    }


AS_ANYONE = """
import ctypes, os, sys
if sys.platform == "linux" and os.geteuid() == 0:
    # PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: permissions count for root too.
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "llava_ollama", *sys.argv[1:]])
"""
WITHOUT_EXTRA = """
import sys
sys.modules["xllamacpp"] = None
from llava_ollama.cli import main
main(prog_name="llava-ollama")
"""
OUTSIDE = (
    (
        AS_ANYONE,
        Case(
            "picture shut",
            ("ask", "-m", "x", "shut.png", "Hi"),
            "`shut.png` cannot be read: permission denied",
            "chmod +r 'shut.png'",
            1,
            daemon="seeing",
        ),
    ),
    (
        AS_ANYONE,
        Case(
            "GGUF shut",
            ("install", "--name", "x", "--model-file", "shut.gguf", "--mmproj-file", "bare.gguf"),
            "`shut.gguf` cannot be read: permission denied",
            "Check that it is there and readable",
            1,
        ),
    ),
    (
        AS_ANYONE,
        Case(
            "catalog shut",
            ("list",),
            "the catalog `{folder}/shut.gguf` cannot be read: Permission denied",
            "Check the path in `LLAVA_OLLAMA_CATALOG`",
            2,
            environment={"LLAVA_OLLAMA_CATALOG": "shut.gguf"},
        ),
    ),
    (
        AS_ANYONE,
        Case(
            "state folder shut",
            ("install", "tiny-llava"),
            "the lock file `{folder}/shut/x/pending/{key}.lock` cannot be made: Permission denied",
            "Mend its permissions or free space, or set `LLAVA_OLLAMA_STATE` to another",
            1,
            environment={"LLAVA_OLLAMA_STATE": "shut/x"},
        ),
    ),
    (
        AS_ANYONE,
        Case(
            "render into a shut folder",
            ("render", "-o", "shut/file"),
            "`shut/file` cannot be written: Permission denied",
            "Choose another file with `-o`",
            2,
        ),
    ),
    (
        AS_ANYONE,
        Case(
            "mend into a shut folder",
            ("mend", "bare.gguf", "-o", "shut/out.gguf"),
            "`bare.gguf` cannot be copied to `shut/out.gguf`: Permission denied",
            "Name a place where files can be written",
            1,
        ),
    ),
    (
        WITHOUT_EXTRA,
        Case(
            "the extra is missing",
            ("ask", "--embedded", "tiny-llava", "good.png", "Hi"),
            "running llama.cpp in this process needs the package `xllamacpp`",
            "pip install xllamacpp",
            1,
        ),
    ),
    (
        WITHOUT_EXTRA,
        Case(
            "neither a daemon nor the extra",
            ("demo",),
            "neither an Ollama daemon at {host} nor llama.cpp in this process can run the demo",
            "pip install xllamacpp, or start Ollama with `ollama serve`",
            1,
            daemon="nobody",
        ),
    ),
)


@pytest.mark.parametrize(("start", "case"), OUTSIDE, ids=lambda value: getattr(value, "name", ""))
def test_a_bad_machine_gets_its_sentence_and_changes_nothing(
    start: str, case: Case, folder: Path, hosts: Callable[[str], str]
):
    host = hosts(case.daemon)
    before = _contents(folder)
    with _shut(folder / "shut.png", folder / "shut.gguf", folder / "shut"):
        done = subprocess.run(
            [sys.executable, "-c", start, *case.call],
            env={**os.environ, "OLLAMA_HOST": host, **case.environment},
            capture_output=True,
            text=True,
            check=False,
        )
    assert _general(done.stderr, host, folder) == f"Error: {case.message}\nHint: {case.hint}\n"
    assert done.returncode == case.code
    assert _contents(folder) == before


@contextmanager
def _shut(*paths: Path) -> Iterator[None]:
    for path in paths:
        path.chmod(0o500 if path.is_dir() else 0)
    yield
    for path in paths:
        path.chmod(0o700)


FETCH = (
    "download",
    *("--repo", "o/n", "--model-file", "model.gguf", "--mmproj-file", "model.gguf"),
)
NO_PLACE = (
    (
        10**15,
        Case(
            "no space",
            FETCH,
            "the files need {size} GB in `{folder}/cache/downloads`, where {size} GB are free",
            (
                "Set `LLAVA_OLLAMA_CACHE` to a folder on a larger disk, or fetch the file "
                "yourself and name its folder with `--dir`"
            ),
            1,
            environment={"LLAVA_OLLAMA_CACHE": "../cache"},
        ),
    ),
    (
        None,
        Case(
            "no folder",
            FETCH,
            "`{folder}/good.png/cache/downloads` cannot be used: not a directory",
            "Check its owner and permissions, or set `LLAVA_OLLAMA_CACHE` to another folder",
            1,
            environment={"LLAVA_OLLAMA_CACHE": "../good.png/cache"},
        ),
    ),
)


@pytest.mark.parametrize(("size", "case"), NO_PLACE, ids=["no space", "no folder"])
def test_a_download_with_no_place_to_go(size: int | None, case: Case, folder: Path):
    before = _contents(folder)
    with LoopbackHub() as hub:
        hub.publish(folder / "model.gguf", "o/n")
        hub.always_head = Fault(size=size)
        # A process of its own: huggingface_hub reads its environment when it is imported.
        done = subprocess.run(
            [sys.executable, "-m", "llava_ollama", *case.call],
            env={
                **os.environ,
                "HF_ENDPOINT": hub.url,
                "HF_HUB_DISABLE_TELEMETRY": "1",
                **case.environment,
            },
            cwd=folder / "a folder",
            capture_output=True,
            text=True,
            check=False,
        )
    said = done.stderr.replace("/a folder/..", "").replace(str(folder), "{folder}")
    said = re.sub(r"[0-9.,]+ GB", "{size} GB", said)
    assert said == f"Error: {case.message}\nHint: {case.hint}\n"
    assert done.returncode == case.code
    after = _contents(folder)
    assert {name: after[name] for name in after if not name.startswith("cache/")} == before
