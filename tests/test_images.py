"""Pictures come from any kind of source, and one that gives none is refused in one sentence."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_ollama import images
from llava_ollama.errors import ImageError, UsageProblem
from llava_ollama.images import Vision, looks_like_picture, prepare
from llava_ollama.tiny.shapes import Shape, draw

SIDE = 112
DRAWN = draw(Shape("red", "star", "grey"), width=112, height=112)


def encoded(kind):
    file = io.BytesIO()
    DRAWN.save(file, kind)
    return file.getvalue()


PNG = encoded("PNG")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    return path


def refusal(source):
    with pytest.raises(ImageError) as refused:
        prepare(source, SIDE)
    return str(refused.value), refused.value.hint


# Sources


def test_the_source_may_be_anything(path):
    stream = io.BytesIO(b"before" + PNG)
    stream.seek(6)
    with path.open("rb") as file:
        sources = [path, str(path), PNG, bytearray(PNG), memoryview(PNG), file, stream]
        assert [prepare(source, SIDE).data for source in sources] == [PNG] * 7
    prepared = prepare(DRAWN, SIDE)
    assert Image.open(io.BytesIO(prepared.data)).tobytes() == DRAWN.tobytes()


def test_a_data_uri_is_a_picture_whatever_it_claims_to_be():
    body = base64.b64encode(PNG).decode()
    quoted = body.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    for uri in (f"data:image/png;base64,{body}", f"DATA:;BASE64,{body}", f"data:;base64,{quoted}"):
        assert prepare(uri, SIDE).data == PNG


def test_the_model_is_told_by_what_it_sees_or_by_the_side_of_its_square():
    assert prepare(PNG, Vision(SIDE)) == prepare(PNG, SIDE)
    wide = Image.new("RGB", (20, 10))
    corner = [
        Image.open(io.BytesIO(prepare(wide, vision).data)).getpixel((0, 0))
        for vision in (Vision(20), Vision(20, image_mean=(0.5, 0.5, 0.5)))
    ]
    assert corner == [(122, 116, 104), (127, 127, 127)]


@pytest.mark.parametrize("side", [0, -1, 8193, 10**30])
def test_no_model_sees_such_a_square(side):
    with pytest.raises(UsageProblem, match=f"a model cannot see a square of `{side}` pixels"):
        prepare(PNG, side)


def test_a_way_to_decode_is_one_of_three():
    with pytest.raises(UsageProblem) as refused:
        prepare(PNG, SIDE, decode="quick")  # type: ignore[arg-type] # on purpose
    assert str(refused.value) == "`quick` is no way to decode a picture"
    assert refused.value.hint == "Ways are exact, fast, native"


# Arrays

HIGH = np.arange(3 * 40 * 30, dtype=np.uint8).reshape(40, 30, 3)
ALPHA = np.dstack([HIGH, np.full((40, 30), 128, np.uint8)])
ARRAYS = {
    "colours": (HIGH, HIGH),
    "grey": (HIGH[:, :, 0], HIGH[:, :, 0]),
    "alpha": (ALPHA, ALPHA),
    "16 bits": (HIGH.astype(np.uint16) * 257, HIGH),
    "16 bits, other end": (HIGH.astype(">u2") * 257, HIGH),
    "floats": (HIGH / 255, HIGH),
    "half floats": ((HIGH / 255).astype(np.float16), HIGH),
    "turned": (HIGH[::-1, ::2], np.ascontiguousarray(HIGH[::-1, ::2])),
    "read-only": (np.broadcast_to(HIGH[0], HIGH.shape), np.tile(HIGH[:1], (40, 1, 1))),
}


@pytest.mark.parametrize(("array", "bytewise"), ARRAYS.values(), ids=ARRAYS)
def test_an_array_is_a_picture(array, bytewise):
    assert prepare(array, SIDE).data == prepare(Image.fromarray(bytewise), SIDE).data


def test_a_large_array_is_scaled_in_parts():
    deep = np.random.default_rng(1).integers(0, 65536, (2100, 2100), np.uint16)
    bytewise = np.round(deep / 257).astype(np.uint8)
    assert prepare(deep, SIDE).data == prepare(Image.fromarray(bytewise), SIDE).data


SHAPES = "Pass H x W, H x W x 3 or H x W x 4 numbers"
TYPES = "Pass uint8, uint16, or floats from 0 to 1"
RANGE = "Floats are from 0 to 1: divide by the largest possible value"
NO_ARRAYS = {
    "flat": (np.zeros(9, np.uint8), "a numpy array of the shape `(9,)` is not a picture", SHAPES),
    "batch": (
        np.zeros((1, 9, 9, 3), np.uint8),
        "a numpy array of the shape `(1, 9, 9, 3)` is not a picture",
        SHAPES,
    ),
    "channels first": (
        np.zeros((3, 9, 9), np.uint8),
        "a numpy array of the shape `(3, 9, 9)` is not a picture",
        SHAPES,
    ),
    "signed": (np.zeros((9, 9), np.int64), "a numpy array of `int64` is not a picture", TYPES),
    "truth": (np.zeros((9, 9), bool), "a numpy array of `bool` is not a picture", TYPES),
    "objects": (np.zeros((9, 9), object), "a numpy array of `object` is not a picture", TYPES),
    "to 255": (
        np.full((9, 9), 255.0),
        "the numpy array has values from `255` to `255`",
        RANGE,
    ),
    "nan": (
        np.full((9, 9), np.nan, np.float32),
        "the numpy array has values from `nan` to `nan`",
        RANGE,
    ),
    "empty": (
        np.zeros((0, 9), np.uint8),
        "the numpy array has 9 x 0 pixels",
        "Pass one with 1 to 400 million",
    ),
    "huge": (
        np.broadcast_to(np.uint8(0), (1 << 20, 1 << 20, 3)),
        "the numpy array has 1048576 x 1048576 pixels",
        "Pass one with 1 to 133 million",
    ),
    "long": (
        np.zeros((1, 1_000_000), np.uint8),
        "the numpy array is too long to be padded to a square: 1000000 x 1 pixels",
        "Cut it into parts",
    ),
}


@pytest.mark.parametrize(("array", "message", "hint"), NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_other_arrays_are_refused(array, message, hint):
    assert refusal(array) == (message, hint)


def test_a_view_is_measured_before_it_is_copied():
    endless = np.broadcast_to(np.uint8(0), (1 << 20, 1 << 20)).data
    assert (
        refusal(endless)[0] == "the picture given as bytes is larger than the 256 MB that are read"
    )
    endless.release()
    assert refusal(endless)[1] == "Pass an open buffer"


def test_a_path_may_be_in_bytes(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "xx.png").write_bytes(PNG)
    with os.scandir(os.fsencode(folder)) as entries:
        assert [prepare(entry, SIDE).data for entry in entries] == [PNG]


def from_standard_input(data):
    code = (
        "import sys; from llava_ollama import errors, images\n"
        "try: sys.stdout.buffer.write(images.prepare('-', 112).data)\n"
        "except errors.ImageError as exc: print(exc, exc.hint, sep='|', end='')"
    )
    run = [sys.executable, "-c", code]
    return subprocess.run(run, input=data, capture_output=True, check=True).stdout


def test_a_picture_may_come_through_standard_input():
    assert from_standard_input(PNG) == PNG


def test_a_pipe_of_a_shell_is_read():
    read_end, write_end = os.pipe()
    with os.fdopen(read_end), os.fdopen(write_end, "wb") as writer:
        writer.write(PNG)
        writer.close()
        assert prepare(f"/dev/fd/{read_end}", SIDE).data == PNG


def test_a_named_pipe_is_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    hint = f"Send it to standard input: `... - < '{pipe}'`"
    assert refusal(pipe) == (f"`{pipe}` is not a regular file", hint)


JPEG = encoded("JPEG")
SLOW = {
    "segments": (JPEG[:2] + b"\xff\xe1\0\x0aExif\0\0II" * 1001 + JPEG[2:], "more metadata"),
    "padding": (JPEG[:2] + b"\xff" * 1002 + JPEG[2:], "more metadata"),
    "junk": (JPEG[:20] + bytes(70_000) + JPEG[20:], "more metadata"),
    "long": (JPEG[:2] + (b"\xff\xfe\xff\xff" + bytes(65533)) * 260 + JPEG[2:], "more metadata"),
    "text": (b"P3 1200 1200 255\n" + b"0 " * (3 << 20), "its pixels as text"),
}


@pytest.mark.parametrize(("data", "what"), SLOW.values(), ids=SLOW)
def test_what_pillow_reads_slowly_is_refused(data, what):
    assert what in refusal(data)[0]


def test_usual_metadata_is_read():
    segment = b"\xff\xfe\xff\xff" + bytes(65533)
    prepare(JPEG[:2] + segment * 100 + JPEG[2:], SIDE)


# Refusals


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        ("absent.png", "`absent.png` does not exist", "Check the path"),
        (
            "https://example.org/x.png",
            "`https://example.org/x.png` is an address, not a file",
            "Fetch it first and pass the bytes",
        ),
        (
            "data:image/png,AAAA",
            "the picture in the data URI is not written in base64",
            "Write it as `data:image/png;base64,...`",
        ),
        (
            "data:image/png;base64,AAA*",
            "the picture in the data URI is damaged: its base64 cannot be decoded",
            "Copy it again, to its last character",
        ),
        (
            "data:image/png;base64,",
            "the picture in the data URI is empty: 0 bytes",
            "Copy or download it again",
        ),
        (
            f"data:image/png;base64,{base64.b64encode(PNG[:-300]).decode()}",
            "the picture in the data URI is cut off: it ends too early",
            "Copy or download it again",
        ),
        ("a\0b.png", "'a\\x00b.png' cannot be a path: embedded null byte", "Check the path"),
        (
            f"{'x' * 5000}.png",
            f"`{'x' * 5000}.png` cannot be read: File name too long",
            "Check the path",
        ),
        (
            7,
            "a `int` is not a picture",
            "Pass a path, bytes, a binary file object, a PIL image or a numpy array",
        ),
        (
            b"",
            "the picture given as bytes is empty: 0 bytes",
            "Copy or download it again",
        ),
        (
            io.BytesIO(),
            "the picture given as a file object is empty: 0 bytes",
            "A file object is read from where it stands: `seek(0)` takes it back to the start",
        ),
        (
            io.StringIO("text"),
            "the picture given as a file object gives text",
            'Open the file in binary mode: "rb"',
        ),
    ],
    ids=[
        "absent",
        "url",
        "text-uri",
        "base64",
        "void",
        "cut-uri",
        "nul",
        "long",
        "int",
        "bytes",
        "end",
        "text",
    ],
)
def test_sources_that_give_no_picture(source, message, hint):
    assert refusal(source) == (message, hint)


def test_a_folder_and_an_empty_file(tmp_path):
    assert refusal(tmp_path) == (f"`{tmp_path}` is a folder", "Name a picture in it")
    path = tmp_path / "x.png"
    path.touch()
    assert refusal(path) == (f"`{path}` is empty: 0 bytes", "Copy or download it again")


def test_messages_name_the_source(path):
    path.write_bytes(PNG[:-300])
    end = " is cut off: it ends too early"
    assert refusal(path)[0] == f"`{path}`{end}"
    assert refusal(PNG[:-300])[0] == f"the picture given as bytes{end}"
    with path.open("rb") as file:
        assert refusal(file)[0] == f"`{path}`{end}"


def test_a_file_that_may_not_be_read(path):
    path.chmod(0)
    prepare(DRAWN, SIDE)  # what is imported later may not be readable either
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        message, hint = refusal(path)
    finally:
        os.seteuid(user)
    assert message == f"`{path}` cannot be read: permission denied"
    assert hint == f"chmod +r '{path}'"


def test_files_that_are_closed_or_only_written(path):
    with path.open("rb") as file:
        pass
    assert refusal(file) == (f"`{path}` cannot be read: read of closed file", "Pass an open file")
    with path.open("wb") as file:
        assert refusal(file)[0].startswith(f"`{path}` cannot be read: ")
    path.write_bytes(PNG)
    with Image.open(path) as source:
        pass
    assert refusal(source)[0] == "the `PIL.Image` is damaged: it cannot be decoded"


CONVERT = "Convert it to PNG or JPEG first"
ONLY = "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file"

LOOKS_LIKE = {
    "noise": (bytes(range(200)), None, ONLY),
    "text": (b"Not a picture.\n", "text", ONLY),
    "unicode": ("Kein Bild, höchstens Wörter…".encode(), "text", ONLY),
    "html": (b"\n<!DOCTYPE html><html><body><svg></svg></body></html>", "HTML", ONLY),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", ONLY),
    "gguf": (b"GGUF\3\0\0\0", "a GGUF weight file", ONLY),
    "pdf": (b"%PDF-1.7\n", "PDF", CONVERT),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG", CONVERT),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC", CONVERT),
    "avif": (b"\0\0\0 ftypavif\0\0\0\0avifmif1", "AVIF", CONVERT),
    "icon": (encoded("ICO"), "an icon", CONVERT),
}


@pytest.mark.parametrize(("data", "kind", "hint"), LOOKS_LIKE.values(), ids=LOOKS_LIKE)
def test_other_files_are_told_apart(data, kind, hint):
    looks = f": it looks like {kind}" if kind else ""
    message = f"the picture given as bytes is not a picture that can be read{looks}"
    assert refusal(data) == (message, hint)


def test_what_never_ends_is_cut_off():
    with Path("/dev/zero").open("rb") as zeros:
        assert refusal(zeros)[0] == "`/dev/zero` is larger than the 256 MB that are read"


def test_standard_input_that_is_empty_says_how():
    assert from_standard_input(b"").decode() == (
        "the picture from standard input is empty: 0 bytes"
        "|Send a picture to standard input: `... - < xx.png`"
    )


def test_a_terminal_is_not_waited_for(monkeypatch):
    keyboard, terminal = os.openpty()
    with os.fdopen(keyboard, "rb", buffering=0), os.fdopen(terminal) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert refusal("-") == (
            "the picture from standard input is missing: nothing is sent to it",
            "Send a picture to standard input: `... - < xx.png`",
        )


# Finding pictures among words


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *((kind, encoded(kind)) for kind in ("PNG", "JPEG", "GIF", "WebP", "TIFF", "BMP", "PPM")),
        ("P2", b"P2 # drawn\n3 2 9\n1 2 3\n4 5 6\n"),
        ("photo", b"\0\0\0\x18ftypheic\0\0\0\0"),
        ("drawing", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("empty.png", b""),
        ("broken.JPG", b"no picture"),
    ],
)
def test_what_begins_or_is_named_like_a_picture(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    assert looks_like_picture(path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("words", b"Describe this image"),
        ("BMW", b"BM is how this text begins, as bitmaps do"),
        ("P1", b"P1 is the worst kind of bug"),
        ("page.html", b"<html><svg></svg></html>"),
        ("nothing", b""),
    ],
)
def test_other_files_do_not_look_like_pictures(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    assert not looks_like_picture(path)


def test_what_is_no_file_does_not_look_like_a_picture(tmp_path):
    for path in (tmp_path, tmp_path / "absent.png", Path("Describe\0this"), Path("x" * 5000)):
        assert not looks_like_picture(path)


def test_importing_it_imports_no_pillow():
    code = "import sys, llava_ollama.images; sys.exit({'PIL', 'numpy'} & {*sys.modules} != set())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert images.MAX_PIXELS == 200_000_000


@pytest.mark.parametrize("word", ["Describe this image", "Is it a star? Or not.", "Hello"])
def test_a_prompt_in_the_place_of_a_picture_is_told(word):
    hint = "Check the path; `Llava.ask` takes the pictures first, `Chat.ask` the prompt"
    assert refusal(word) == (f"`{word}` does not exist", hint)
    assert refusal(word * 100)[1] == hint  # no name can be so long
    assert refusal("my picture.png")[1] == refusal("xx.heic")[1] == "Check the path"
