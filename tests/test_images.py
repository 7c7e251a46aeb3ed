"""Pictures of every kind come out upright, in RGB and whole, or are refused in one sentence."""

from __future__ import annotations

import io
import os
import random
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageCms, ImageFile

from llava_ollama import images
from llava_ollama.errors import ImageError
from llava_ollama.images import PreparedPicture, looks_like_picture, prepare
from llava_ollama.tiny.shapes import Shape, draw

SIDE = 112
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
DRAWN = draw(Shape("red", "star", "grey"), width=112, height=80)


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pixels(prepared):
    """Decode what would be sent, and hold it to what is promised of every picture."""
    picture = Image.open(io.BytesIO(prepared.data))
    picture.load()
    assert picture.mode == "RGB"
    assert picture.format == prepared.format
    assert picture.size == (prepared.width, prepared.height)
    assert prepared.format in {"PNG", "JPEG"}
    assert picture.getexif().get(0x0112) not in range(2, 9)
    assert "transparency" not in picture.info
    return picture


def cornered(mode="RGB"):
    """Return an upright picture, wider than high: red top left, green top right, blue below."""
    picture = Image.new("RGB", (60, 40), WHITE)
    picture.paste(RED, (0, 0, 20, 20))
    picture.paste(GREEN, (40, 0, 60, 20))
    picture.paste(BLUE, (0, 20, 20, 40))
    return picture.convert(mode)


def is_upright(picture):
    spots = [picture.getpixel(spot) for spot in ((5, 5), (55, 5), (5, 35), (55, 35))]
    wanted = (RED, GREEN, BLUE, WHITE)
    return picture.size == (60, 40) and all(
        max(abs(a - b) for a, b in zip(spot, want, strict=True)) < 40
        for spot, want in zip(spots, wanted, strict=True)
    )


def chunk(name, body=b""):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width, height, depth=8, colour=2):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


# What goes out as it came


@pytest.mark.parametrize(
    "data",
    [
        encoded(DRAWN, "PNG"),
        encoded(DRAWN, "PNG", optimize=True, dpi=(72, 72)),
        encoded(DRAWN, "JPEG"),
        encoded(DRAWN, "JPEG", progressive=True, comment=b"drawn"),
        encoded(DRAWN, "JPEG", exif=Image.Exif()),
        encoded(DRAWN.resize((224, 224)), "PNG"),
    ],
)
def test_a_file_that_is_right_keeps_its_bytes(data):
    prepared = prepare(data, SIDE)
    assert prepared.data == data
    assert prepared.notes == ()
    assert pixels(prepared).tobytes() == Image.open(io.BytesIO(data)).tobytes()


def with_first_segment(jpeg, marker, body):
    return jpeg[:2] + struct.pack(">HH", marker, len(body) + 2) + body + jpeg[2:]


@pytest.mark.parametrize(
    "data",
    [
        encoded(DRAWN.convert("L"), "PNG"),
        encoded(DRAWN.convert("L"), "JPEG"),
        encoded(DRAWN, "PNG", transparency=(1, 2, 3)),
        encoded(DRAWN, "PNG", save_all=True, append_images=[DRAWN.rotate(90)]),
        encoded(DRAWN, "JPEG") + b"\0" * 200_000,
        encoded(DRAWN.resize((225, 100)), "PNG"),
        encoded(DRAWN, "PNG")[:33] + chunk(b"XXXX") + encoded(DRAWN, "PNG")[33:],
        png_header(2, 1, depth=16) + chunk(b"IDAT", zlib.compress(bytes(13))) + chunk(b"IEND"),
    ],
    ids=["grey-png", "grey-jpeg", "key", "animated", "tail", "large", "unknown-chunk", "16-bit"],
)
def test_a_file_that_simpler_decoders_may_misread_is_written_anew(data):
    prepared = prepare(data, SIDE)
    assert prepared.data != data
    assert prepared.format == "PNG"
    pixels(prepared)


def test_the_source_may_be_anything(tmp_path):
    data = encoded(DRAWN, "PNG")
    path = tmp_path / "xx.png"
    path.write_bytes(data)
    stream = io.BytesIO(b"before" + data)
    stream.seek(6)
    with path.open("rb") as file:
        sources = [path, str(path), data, bytearray(data), memoryview(data), file, stream]
        assert [prepare(source, SIDE).data for source in sources] == [data] * 7
    assert pixels(prepare(DRAWN, SIDE)).tobytes() == DRAWN.tobytes()


def test_a_picture_may_come_through_standard_input():
    data = encoded(DRAWN, "PNG")
    code = (
        "import sys; from llava_ollama.images import prepare;"
        "sys.stdout.buffer.write(prepare('-', 112).data)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout == data


def test_a_named_pipe_is_read(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    data = encoded(DRAWN, "PNG")
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    assert prepare(pipe, SIDE).data == data
    writer.join()


# Turned, shrunk, made RGB


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_undone(kind, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how the camera held it
    stored = cornered()
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    prepared = prepare(encoded(stored, kind, exif=exif), SIDE)
    assert is_upright(pixels(prepared))
    turned = ("turned by its EXIF orientation",)
    assert prepared.notes == (turned if orientation in undo else ())


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_pillow_image_is_turned_and_stays_as_it_was(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = cornered().transpose(Image.Transpose.ROTATE_90) if orientation == 6 else cornered()
    source = Image.open(io.BytesIO(encoded(stored, "JPEG", exif=exif)))
    assert is_upright(pixels(prepare(source, SIDE)))
    assert source.size == stored.size
    assert source.getexif()[0x0112] == orientation


def test_broken_exif_does_not_cost_the_picture():
    data = with_first_segment(encoded(cornered(), "JPEG"), 0xFFE1, b"Exif\0\0II*\0\xff\xff")
    assert is_upright(pixels(prepare(data, SIDE)))


@pytest.mark.parametrize(
    ("size", "prepared_size"),
    [
        ((224, 224), (224, 224)),
        ((225, 225), (224, 224)),
        ((4000, 3000), (224, 168)),
        ((300, 900), (75, 224)),
        ((5000, 3), (224, 1)),
        ((1, 1), (1, 1)),
    ],
)
def test_only_what_is_far_too_large_is_shrunk(size, prepared_size):
    picture = Image.new("RGB", size, RED)
    prepared = prepare(picture, SIDE)
    assert pixels(prepared).size == prepared_size
    assert pixels(prepared).getpixel((0, 0)) == RED
    assert prepare(encoded(picture, "JPEG"), SIDE).width == prepared_size[0]


MODES = """1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV I F I;16 I;16B I;16L"""


@pytest.mark.parametrize("mode", MODES.split())
def test_every_mode_of_pillow_becomes_rgb(mode):
    source = (
        cornered("L").convert("I").convert(mode)
        if mode.startswith("I;16")
        else cornered("RGBA").convert("LA").convert("La")
        if mode == "La"
        else cornered("RGBA").convert("RGBa")
        if mode == "RGBa"
        else cornered(mode)
    )
    before = source.tobytes()
    shown = pixels(prepare(source, SIDE))
    assert shown.size == (60, 40)
    if mode in {"RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "LAB", "HSV", "P", "PA", "CMYK"}:
        assert is_upright(shown)
    assert source.tobytes() == before


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WebP", "GIF"])
def test_transparency_shows_white(kind):
    picture = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (20, 0, 40, 20))
    data = encoded(picture, kind, **({"lossless": True} if kind == "WebP" else {}))
    shown = pixels(prepare(data, SIDE))
    assert shown.getpixel((5, 5)) == WHITE
    assert shown.getpixel((35, 5)) == RED


def test_half_transparent_is_half_white():
    shown = pixels(prepare(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), SIDE))
    assert shown.getpixel((4, 4)) == (255, 127, 127)
    shown = pixels(prepare(Image.new("LA", (8, 8), (0, 128)), SIDE))
    assert shown.getpixel((4, 4)) == (127, 127, 127)


def test_a_palette_with_alpha_keeps_both():
    picture = Image.new("P", (3, 1))
    picture.putpalette([*RED, *GREEN, *BLUE])
    for x in range(3):
        picture.putpixel((x, 0), x)
    several = encoded(picture, "PNG", transparency=bytes([255, 128, 0]))
    assert pixels(prepare(several, SIDE)).tobytes() == bytes([*RED, 127, 255, 127, *WHITE])
    one = encoded(picture, "PNG", transparency=1)
    assert pixels(prepare(one, SIDE)).tobytes() == bytes([*RED, *WHITE, *BLUE])


def test_one_transparent_colour_shows_white():
    picture = Image.new("RGB", (2, 1), RED)
    picture.putpixel((1, 0), GREEN)
    data = encoded(picture, "PNG", transparency=GREEN)
    assert pixels(prepare(data, SIDE)).tobytes() == bytes([*RED, *WHITE])


def gradient(mode):
    """Return 256 greys over the whole range of `mode`, each one 8-bit step from the last."""
    top = {"L": 255, "F": 1.0}.get(mode, 65535)
    picture = Image.new("I" if mode.startswith("I") else mode, (256, 1))
    for x in range(256):
        picture.putpixel((x, 0), x * top / 255 if mode == "F" else x * top // 255)
    return picture.convert(mode)


STEPS = bytes(value for grey in range(256) for value in [grey] * 3)


@pytest.mark.parametrize("mode", ["L", "I;16", "I;16B", "I", "F"])
def test_deep_greys_keep_their_steps(mode):
    assert pixels(prepare(gradient(mode), 128)).tobytes() == STEPS


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_files_with_16_bit_greys_keep_their_steps(kind):
    assert pixels(prepare(encoded(gradient("I;16"), kind), 128)).tobytes() == STEPS


def test_a_dark_16_bit_picture_stays_dark():
    dark = b"P5 2 1 65535\n" + struct.pack(">HH", 0, 257)
    assert pixels(prepare(dark, SIDE)).tobytes() == bytes([0, 0, 0, 1, 1, 1])


def test_a_transparent_16_bit_grey_shows_white():
    picture = Image.new("I;16", (3, 1))
    for x, grey in enumerate((5000, 5001, 65535)):
        picture.putpixel((x, 0), grey)
    shown = pixels(prepare(encoded(picture, "PNG", transparency=5000), SIDE))
    assert shown.tobytes() == bytes([*WHITE, 19, 19, 19, *WHITE])


def test_floats_of_any_range_are_shown():
    picture = Image.new("F", (3, 1))
    for x, grey in enumerate((-1000.0, 0.0, 1000.0)):
        picture.putpixel((x, 0), grey)
    assert pixels(prepare(picture, SIDE)).tobytes()[::3] == bytes([0, 128, 255])
    picture.putpixel((0, 0), float("inf"))
    with pytest.raises(ImageError, match=r"the `PIL\.Image` is damaged"):
        prepare(picture, SIDE)


def test_16_bit_colours_keep_their_high_byte():
    row = b"\0" + struct.pack(">HHHHHH", 0x1234, 0x8000, 0xFFFF, 0, 0x0100, 0x00FF)
    data = png_header(2, 1, depth=16) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND")
    assert pixels(prepare(data, SIDE)).tobytes() == bytes([0x12, 0x80, 0xFF, 0, 1, 0])


# CMYK


def cmyk_profile():
    """Return a CMYK profile in which the inks swap their colours: cyan prints red, and so on."""
    return _lut_profile(b"CMYK", 4)


def _lut_profile(space, inks):
    # A `lut8` from device to Lab with two grid points: corner by corner, cyan ink gives red.
    curves = bytes(range(256))
    grid = bytearray()
    for corner in range(2**inks):
        cyan = corner >> (inks - 1) & 1
        grid += bytes((138, 208, 195)) if cyan else bytes((255, 128, 128))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1\0\0\0\0" + bytes((inks, 3, 2, 0)) + identity
    lut += curves * inks + bytes(grid) + curves * 3
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"inks\0" + bytes(78)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags, body, offset = [], b"", 128 + 4 + 12 * 3
    for name, value in ((b"desc", text), (b"wtpt", white), (b"A2B0", lut)):
        padded = value + bytes(-len(value) % 4)
        tags.append(name + struct.pack(">II", offset + len(body), len(value)))
        body += padded
    header = struct.pack(">I4s4s4s4s4s", 0, b"lcms", b"\2\x20\0\0", b"prtr", space, b"Lab ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    header = header.ljust(128, b"\0")
    whole = header + struct.pack(">I", 3) + b"".join(tags) + body
    return struct.pack(">I", len(whole)) + whole[4:]


def test_cmyk_without_a_profile_is_converted_plainly():
    picture = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for data in (encoded(picture, "JPEG"), encoded(picture, "TIFF")):
        red, green, blue = pixels(prepare(data, SIDE)).getpixel((8, 8))
        assert red < 10
        assert min(green, blue) > 245


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile_is_converted_by_it(kind):
    picture = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    data = encoded(picture, kind, icc_profile=cmyk_profile())
    prepared = prepare(data, SIDE)
    red, green, blue = pixels(prepared).getpixel((8, 8))
    assert red > 200
    assert max(green, blue) < 90
    assert b"iCCP" not in prepared.data


@pytest.mark.parametrize(
    "profile", [b"no profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
)
def test_a_profile_that_does_not_fit_is_as_good_as_none(profile):
    picture = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    shown = pixels(prepare(encoded(picture, "JPEG", icc_profile=profile), SIDE))
    assert max(shown.getpixel((8, 8))[:1]) < 10


# Frames


@pytest.mark.parametrize("kind", ["GIF", "WebP", "TIFF", "PNG"])
def test_an_animation_shows_its_first_frame_and_says_so(kind):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WebP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    prepared = prepare(data, SIDE)
    assert prepared.notes == ("first of 3 frames",)
    assert pixels(prepared).getpixel((10, 10)) == RED


def test_a_pillow_image_shows_the_frame_it_stands_at():
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, GREEN, BLUE)]
    source = Image.open(
        io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    )
    source.seek(1)
    prepared = prepare(source, SIDE)
    assert prepared.notes == ("frame 2 of 3",)
    assert pixels(prepared).getpixel((10, 10)) == GREEN


@pytest.mark.parametrize("kind", ["GIF", "WebP", "BMP", "TIFF", "PPM"])
def test_other_formats_are_sent_as_png(kind):
    prepared = prepare(encoded(cornered(), kind), SIDE)
    assert prepared.format == "PNG"
    assert prepared.notes == ()
    assert is_upright(pixels(prepared))


# Refusals


def bomb(width, height):
    return png_header(width, height) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND")


REFUSED = {
    "png-bomb": (
        bomb(30_000, 30_000),
        "`x` has 30000 x 30000 pixels, more than the 200 million that are decoded",
        "Make it smaller first",
    ),
    "bmp-bomb": (
        b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0),
        "`x` has 30000 x 30000 pixels, more than the 200 million that are decoded",
        "Make it smaller first",
    ),
    "cut-jpeg": (
        encoded(DRAWN, "JPEG")[:-300],
        "`x` is cut off: it ends too early",
        "Copy or download it again",
    ),
    "no-end-marker": (
        encoded(DRAWN, "JPEG")[:-2],
        "`x` is cut off: it ends too early",
        "Copy or download it again",
    ),
    "cut-png": (
        encoded(DRAWN, "PNG")[:-300],
        "`x` is cut off: it ends too early",
        "Copy or download it again",
    ),
    "png-signature-only": (
        encoded(DRAWN, "PNG")[:20],
        "`x` is cut off: it ends too early",
        "Copy or download it again",
    ),
    "broken-png": (
        png_header(8, 8) + chunk(b"IDAT", b"no zlib stream") + chunk(b"IEND"),
        "`x` is damaged: it cannot be decoded as PNG",
        "Copy or download it again",
    ),
    "text-bomb": (
        png_header(8, 8)
        + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(4 * 1024**2)))
        + encoded(Image.new("RGB", (8, 8)), "PNG")[33:],
        "`x` is damaged: it cannot be decoded as PNG",
        "Copy or download it again",
    ),
    "empty": (b"", "`x` is empty: 0 bytes", "Copy or download it again"),
    "text": (
        b"Not a picture.\n",
        "`x` is not a picture that can be read: it looks like text",
        "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file",
    ),
    "unicode": (
        "Kein Bild, höchstens Wörter…".encode(),
        "`x` is not a picture that can be read: it looks like text",
        "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file",
    ),
    "html": (
        b"\n<!DOCTYPE html><html><body><svg></svg></body></html>",
        "`x` is not a picture that can be read: it looks like HTML",
        "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file",
    ),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "`x` is not a picture that can be read: it looks like a Git LFS pointer",
        "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file",
    ),
    "gguf": (
        b"GGUF\3\0\0\0",
        "`x` is not a picture that can be read: it looks like a GGUF weight file",
        "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file",
    ),
    "noise": (
        bytes(range(200)),
        "`x` is not a picture that can be read",
        "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file",
    ),
    "pdf": (
        b"%PDF-1.7\n",
        "`x` is not a picture that can be read: it looks like PDF",
        "Convert it to PNG or JPEG first",
    ),
    "svg": (
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        "`x` is not a picture that can be read: it looks like SVG",
        "Convert it to PNG or JPEG first",
    ),
    "heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "`x` is not a picture that can be read: it looks like HEIC",
        "Convert it to PNG or JPEG first",
    ),
    "avif": (
        encoded(DRAWN, "AVIF") if "avif" in Image.registered_extensions() else b"\0\0\0 ftypavif",
        "`x` is not a picture that can be read: it looks like AVIF",
        "Convert it to PNG or JPEG first",
    ),
    "icon": (
        encoded(DRAWN, "ICO"),
        "`x` is not a picture that can be read: it looks like an icon",
        "Convert it to PNG or JPEG first",
    ),
}


@pytest.mark.parametrize(("data", "message", "hint"), REFUSED.values(), ids=REFUSED)
def test_bad_files_are_refused_in_one_sentence(tmp_path, data, message, hint):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(ImageError) as refused:
        prepare(path, SIDE)
    assert str(refused.value) == message.replace("`x`", f"`{path}`")
    assert refused.value.hint == hint
    with pytest.raises(ImageError) as refused:
        prepare(data, SIDE)
    assert str(refused.value) == message.replace("`x`", "the picture's bytes")


def test_paths_that_are_no_files(tmp_path):
    cases = {
        "absent.png": ("`absent.png` does not exist", "Check the path"),
        str(tmp_path): (f"`{tmp_path}` is a folder", "Name a picture in it"),
        "https://example.org/x.png": (
            "`https://example.org/x.png` is an address, not a file",
            "Fetch it first and pass the bytes",
        ),
        "a\0b.png": ("'a\\x00b.png' cannot be a path: embedded null byte", "Check the path"),
        "x" * 5000: (f"`{'x' * 5000}` cannot be read: File name too long", "Check the path"),
    }
    for source, (message, hint) in cases.items():
        with pytest.raises(ImageError) as refused:
            prepare(source, SIDE)
        assert (str(refused.value), refused.value.hint) == (message, hint)


def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(encoded(DRAWN, "PNG"))
    path.chmod(0)
    prepare(DRAWN, SIDE)  # what is imported later may not be readable either
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(ImageError) as refused:
            prepare(path, SIDE)
    finally:
        os.seteuid(user)
    assert str(refused.value) == f"`{path}` cannot be read: permission denied"
    assert refused.value.hint == f"chmod +r '{path}'"


def test_file_objects_that_give_nothing(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(encoded(DRAWN, "PNG"))
    with path.open("rb") as file:
        prepare(file, SIDE)
        with pytest.raises(ImageError, match="is empty: 0 bytes") as refused:
            prepare(file, SIDE)
        assert "seek(0)" in str(refused.value.hint)
    with pytest.raises(ImageError, match=re.escape(f"`{path}` cannot be read: read of closed")):
        prepare(file, SIDE)
    with (tmp_path / "y.png").open("wb") as file, pytest.raises(ImageError, match="cannot be read"):
        prepare(file, SIDE)
    with pytest.raises(ImageError, match="the picture's file object gives text"):
        prepare(io.StringIO("text"), SIDE)  # type: ignore[arg-type] # the user's mistake
    with pytest.raises(ImageError, match="a `int` is not a picture"):
        prepare(7, SIDE)  # type: ignore[arg-type] # the user's mistake


def test_what_never_ends_is_cut_off():
    with Path("/dev/zero").open("rb") as zeros, pytest.raises(ImageError) as refused:
        prepare(zeros, SIDE)
    assert str(refused.value) == "`/dev/zero` is larger than the 256 MB that are read"


def test_standard_input_that_is_empty_says_how():
    code = (
        "from llava_ollama import errors, images\n"
        "try: images.prepare('-', 112)\n"
        "except errors.ImageError as exc: print(exc, exc.hint, sep='|', end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code], input=b"", capture_output=True, check=True
    )
    assert done.stdout.decode() == (
        "the picture from standard input is empty: 0 bytes"
        "|Send a picture to standard input: `... - < xx.png`"
    )


def test_a_pillow_image_without_pixels_or_with_a_closed_file(tmp_path):
    with pytest.raises(ImageError, match=r"the `PIL\.Image` has no pixels: 0 x 5"):
        prepare(Image.new("RGB", (0, 5)), SIDE)
    path = tmp_path / "x.png"
    path.write_bytes(encoded(DRAWN, "PNG"))
    with Image.open(path) as source:
        pass
    with pytest.raises(ImageError, match=r"the `PIL\.Image` is damaged"):
        prepare(source, SIDE)


def test_pillow_never_warns_and_its_settings_stay():
    data = with_first_segment(encoded(cornered(), "JPEG"), 0xFFE1, b"Exif\0\0II*\0\x08\0\0\0\xff")
    large = b"P4 10000 10000\n" + bytes(1250 * 10000)  # over Pillow's own limit for a warning
    before = warnings.filters[:], Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        prepare(data, SIDE)
        prepare(large, SIDE)
    assert seen == []
    assert before == (warnings.filters, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def seeds():
    """Return small files of seven formats, plain and odd."""
    exif = Image.Exif()
    exif[0x0112] = 6
    other = DRAWN.rotate(90)
    small = DRAWN.resize((24, 16))
    animation = {"save_all": True, "append_images": [small.rotate(90)]}
    return [
        encoded(small, "PNG"),
        encoded(small.convert("P"), "PNG", transparency=bytes(range(200))),
        encoded(small, "PNG", exif=exif, **animation),
        encoded(gradient("I;16"), "PNG"),
        encoded(small, "JPEG", exif=exif),
        encoded(small, "JPEG", progressive=True),
        encoded(small.convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
        encoded(small, "GIF"),
        encoded(small, "GIF", **animation),
        encoded(other, "WebP"),
        encoded(small, "WebP", lossless=True, exif=exif, **animation),
        encoded(small, "BMP"),
        encoded(small.convert("P"), "BMP"),
        encoded(small, "TIFF", exif=exif),
        encoded(small, "TIFF", compression="tiff_lzw", **animation),
        encoded(small.convert("F"), "TIFF"),
        encoded(small, "PPM"),
        b"P2 3 2 9\n1 2 3\n4 5 6\n",
    ]


def mutated(data, rng):
    """Return `data` with some of what goes wrong: flips, cuts, repeats, extreme numbers."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = min(rng.randrange(len(damaged)), rng.choice((40, 400, len(damaged))))
        match rng.randrange(5):
            case 0:
                damaged[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                damaged[at : at + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
                )
            case 2:
                del damaged[at : at + rng.choice((1, 3, 50))]
            case 3:
                damaged[at:at] = damaged[at : at + rng.choice((1, 8, 60))]
            case _:
                del damaged[max(8, at) :]
        if not damaged:
            break
    return bytes(damaged)


def test_hostile_files_are_pictures_or_our_error():
    rng = random.Random(11)
    files = seeds()
    outcomes = {"prepared": 0, "refused": 0}
    for n in range(2000):
        data = mutated(files[n % len(files)], rng)
        try:
            prepared = prepare(data, SIDE)
        except ImageError as refused:
            outcomes["refused"] += bool(refused.hint)
        else:
            outcomes["prepared"] += 1
            assert isinstance(prepared, PreparedPicture)
            with warnings.catch_warnings(action="ignore"):  # broken EXIF may go out as it came
                pixels(prepared)
    assert min(outcomes.values()) > 300, outcomes


# Finding pictures among words


def test_what_looks_like_a_picture(tmp_path):
    def written(name, data):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    for number, data in enumerate(seeds()):
        assert looks_like_picture(written(f"picture-{number}", data))
    assert looks_like_picture(written("photo", b"\0\0\0\x18ftypheic\0\0\0\0"))
    assert looks_like_picture(written("drawing", b"<svg xmlns='http://www.w3.org/2000/svg'/>"))
    assert looks_like_picture(written("empty.png", b""))
    assert not looks_like_picture(written("words", b"Describe this image"))
    assert not looks_like_picture(written("BMW", b"BM is how this text begins, as bitmaps do"))
    assert not looks_like_picture(written("page.html", b"<html><svg></svg></html>"))
    assert not looks_like_picture(written("nothing", b""))
    assert not looks_like_picture(tmp_path)
    assert not looks_like_picture(tmp_path / "absent.png")
    assert not looks_like_picture(Path("Describe\0this"))
    assert not looks_like_picture(Path("x" * 5000))


def test_importing_it_imports_no_pillow():
    code = "import sys, llava_ollama.images; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert images.MAX_PIXELS == 200_000_000
