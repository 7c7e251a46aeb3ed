"""Picture files of every kind come out upright, in RGB and whole, or are refused."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import pytest
from PIL import Image, ImageCms, ImageFile

from llava_ollama.errors import ImageError
from llava_ollama.images.pixels import Preparation, from_file, from_image
from llava_ollama.images.signatures import kind_of
from llava_ollama.images.square import Vision
from llava_ollama.tiny.shapes import Shape, draw

LONGEST = 224
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
DRAWN = draw(Shape("red", "star", "grey"), width=112, height=80)
TURNED = ("turned by its EXIF orientation",)


def prepare(source, longest=LONGEST):
    """Prepare a file's bytes or a PIL image for an engine that pads it by itself."""
    how = Preparation(Vision(longest // 2), "native")
    if isinstance(source, bytes):
        return from_file(kind_of(source, "`x`"), source, "`x`", how)
    return from_image(source, "`x`", how)


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pixels(prepared):
    """Decode what would be sent, and hold it to what is promised of every picture."""
    picture = Image.open(io.BytesIO(prepared.data))
    picture.load()
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    assert picture.size == (prepared.width, prepared.height)
    assert picture.getexif().get(0x0112) not in range(2, 9)
    assert "transparency" not in picture.info
    return picture


def shown(source):
    return pixels(prepare(source))


def row(mode, *values):
    """Return a picture one pixel high."""
    picture = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        picture.putpixel((x, 0), value)
    return picture


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


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


def deep_png(row):
    """Return a PNG file of 16-bit colours, two pixels wide."""
    return png_header(2, 1, depth=16) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND")


def with_broken_exif(tail):
    jpeg = encoded(cornered(), "JPEG")
    body = b"Exif\0\0II*\0" + tail
    return jpeg[:2] + struct.pack(">HH", 0xFFE1, len(body) + 2) + body + jpeg[2:]


# What goes out as it came


RIGHT = {
    "small": encoded(DRAWN, "PNG"),
    "optimized": encoded(DRAWN, "PNG", optimize=True, dpi=(72, 72)),
    "largest": encoded(DRAWN.resize((224, 224)), "PNG"),
}
MISREAD = {
    "grey": encoded(DRAWN.convert("L"), "PNG"),
    "key": encoded(DRAWN, "PNG", transparency=(1, 2, 3)),
    "animated": encoded(DRAWN, "PNG", save_all=True, append_images=[DRAWN.rotate(90)]),
    "tail": encoded(DRAWN, "PNG") + bytes(200_000),
    "large": encoded(DRAWN.resize((225, 100)), "PNG"),
    "unknown-chunk": encoded(DRAWN, "PNG")[:33] + chunk(b"XXXX") + encoded(DRAWN, "PNG")[33:],
    "16-bit": deep_png(bytes(13)),
    "jpeg": encoded(DRAWN, "JPEG"),
    "progressive": encoded(DRAWN, "JPEG", progressive=True, comment=b"drawn"),
    "grey-jpeg": encoded(DRAWN.convert("L"), "JPEG"),
}


@pytest.mark.parametrize("data", RIGHT.values(), ids=RIGHT)
def test_a_png_that_is_right_keeps_its_bytes(data):
    prepared = prepare(data)
    assert prepared.data == data
    assert prepared.notes == ()
    pixels(prepared)


@pytest.mark.parametrize("data", MISREAD.values(), ids=MISREAD)
def test_a_file_that_simpler_decoders_may_misread_is_written_anew(data):
    prepared = prepare(data)
    assert prepared.data != data
    pixels(prepared)


def test_a_jpeg_keeps_its_pixels():
    data = encoded(DRAWN, "JPEG")
    assert shown(data).tobytes() == Image.open(io.BytesIO(data)).tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WebP", "BMP", "TIFF", "PPM"])
def test_other_formats_are_sent_as_png(kind):
    prepared = prepare(encoded(cornered(), kind))
    assert prepared.notes == ()
    assert is_upright(pixels(prepared))


# Turned, shrunk, made RGB


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_undone(kind, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how the camera held it
    stored = cornered()
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    prepared = prepare(encoded(stored, kind, exif=oriented(orientation)))
    assert is_upright(pixels(prepared))
    assert prepared.notes == (TURNED if orientation in undo else ())


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_pillow_image_is_turned_and_stays_as_it_was(orientation):
    stored = cornered().transpose(Image.Transpose.ROTATE_90) if orientation == 6 else cornered()
    source = Image.open(io.BytesIO(encoded(stored, "JPEG", exif=oriented(orientation))))
    assert is_upright(shown(source))
    assert source.size == stored.size
    assert source.getexif()[0x0112] == orientation


def test_broken_exif_does_not_cost_the_picture():
    assert is_upright(shown(with_broken_exif(b"\xff\xff")))


SIZES = [(224, 224), (225, 225), (4000, 3000), (300, 900), (5000, 3), (1, 1)]
SHRUNK = [(224, 224), (224, 224), (224, 168), (75, 224), (224, 1), (1, 1)]


@pytest.mark.parametrize(("size", "prepared_size"), [*zip(SIZES, SHRUNK, strict=True)])
def test_only_what_is_far_too_large_is_shrunk(size, prepared_size):
    picture = Image.new("RGB", size, RED)
    for source in (picture, encoded(picture, "PNG")):
        assert shown(source).size == prepared_size
        assert shown(source).getpixel((0, 0)) == RED


MODES = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV I F I;16 I;16B I;16L"
STEPS_TO = {"La": ("RGBA", "LA", "La"), "RGBa": ("RGBA", "RGBa")}


@pytest.mark.parametrize("mode", MODES.split())
def test_every_mode_of_pillow_becomes_rgb(mode):
    source = cornered()
    for step in ("L", "I", mode) if mode.startswith("I;16") else STEPS_TO.get(mode, (mode,)):
        source = source.convert(step)
    before = source.tobytes()
    picture = shown(source)
    assert picture.size == (60, 40)
    if mode in {"RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "LAB", "HSV", "P", "PA", "CMYK"}:
        assert is_upright(picture)
    assert source.tobytes() == before


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WebP", "GIF"])
def test_transparency_shows_white(kind):
    picture = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    picture.paste((*RED, 255), (20, 0, 40, 20))
    data = encoded(picture, kind, **({"lossless": True} if kind == "WebP" else {}))
    assert shown(data).getpixel((5, 5)) == WHITE
    assert shown(data).getpixel((35, 5)) == RED


def palette():
    picture = row("P", 0, 1, 2)
    picture.putpalette([*RED, *GREEN, *BLUE])
    return picture


MIXED = {
    "half": (row("RGBA", (*RED, 128)), [255, 127, 127]),
    "half-grey": (row("LA", (0, 128)), [127, 127, 127]),
    "colour": (encoded(row("RGB", RED, GREEN), "PNG", transparency=GREEN), [*RED, *WHITE]),
    "entry": (encoded(palette(), "PNG", transparency=1), [*RED, *WHITE, *BLUE]),
    "entries": (
        encoded(palette(), "PNG", transparency=bytes([255, 128, 0])),
        [*RED, 127, 255, 127, *WHITE],
    ),
    "16-bit-grey": (
        encoded(row("I;16", 5000, 5001, 65535), "PNG", transparency=5000),
        [*WHITE, 19, 19, 19, *WHITE],
    ),
}


@pytest.mark.parametrize(("source", "colours"), MIXED.values(), ids=MIXED)
def test_transparent_pixels_mix_with_white(source, colours):
    assert list(shown(source).tobytes()) == colours


# Deep pixels


def gradient(mode):
    """Return 256 greys over the whole range of `mode`, each one 8-bit step from the last."""
    top = {"L": 255, "F": 1.0}.get(mode, 65535)
    picture = Image.new("I" if mode.startswith("I") else mode, (256, 1))
    for x in range(256):
        picture.putpixel((x, 0), x * top / 255 if mode == "F" else x * top // 255)
    return picture.convert(mode)


STEPS = bytes(value for grey in range(256) for value in [grey] * 3)
GREYS = {mode: gradient(mode) for mode in ("L", "I;16", "I;16B", "I", "F")}
GREYS |= {kind: encoded(gradient("I;16"), kind) for kind in ("PNG", "TIFF")}


@pytest.mark.parametrize("source", GREYS.values(), ids=GREYS)
def test_deep_greys_keep_their_steps(source):
    assert pixels(prepare(source, 256)).tobytes() == STEPS


RANGES = {
    "dark": (b"P5 2 1 65535\n" + struct.pack(">HH", 0, 257), [0, 1]),
    "around-zero": (row("F", -1000.0, 0.0, 1000.0), [0, 128, 255]),
    "below-zero": (row("F", -5.0), [0]),
}


@pytest.mark.parametrize(("source", "greys"), RANGES.values(), ids=RANGES)
def test_greys_of_any_range_are_shown(source, greys):
    assert list(shown(source).tobytes()) == [value for grey in greys for value in [grey] * 3]


def test_16_bit_colours_keep_their_high_byte():
    data = deep_png(b"\0" + struct.pack(">6H", 0x1234, 0x8000, 0xFFFF, 0, 0x0100, 0x00FF))
    assert list(shown(data).tobytes()) == [0x12, 0x80, 0xFF, 0, 1, 0]


# CMYK


def cmyk_profile():
    """Return a profile by which cyan ink prints red: a `lut8` to Lab with two grid points."""
    curves = bytes(range(256))
    red, white = bytes((138, 208, 195)), bytes((255, 128, 128))
    identity = struct.pack(">9i", *(65536, 0, 0), *(0, 65536, 0), *(0, 0, 65536))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity
    lut += curves * 4 + white * 8 + red * 8 + curves * 3
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"inks\0" + bytes(78)
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    tags, body = b"", b""
    for name, value in ((b"desc", text), (b"wtpt", b"XYZ \0\0\0\0" + d50), (b"A2B0", lut)):
        tags += name + struct.pack(">II", 168 + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    header = bytes(4) + b"lcms\2\x20\0\0prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28) + d50
    whole = header.ljust(128, b"\0") + struct.pack(">I", 3) + tags + body
    return struct.pack(">I", len(whole)) + whole[4:]


PROFILES = {
    "none": (None, (0, 255, 255)),
    "broken": (b"no profile", (0, 255, 255)),
    "of-rgb": (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), (0, 255, 255)),
    "swapping": (cmyk_profile(), (255, 40, 40)),
}


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize(("profile", "colour"), PROFILES.values(), ids=PROFILES)
def test_cmyk_is_converted_by_a_profile_that_fits(kind, profile, colour):
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    prepared = prepare(encoded(cyan, kind, icc_profile=profile))
    assert pixels(prepared).getpixel((8, 8)) == pytest.approx(colour, abs=45)
    assert b"iCCP" not in prepared.data


# Frames


def animation(kind):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WebP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("kind", ["GIF", "WebP", "TIFF", "PNG"])
def test_an_animation_shows_its_first_frame_and_says_so(kind):
    prepared = prepare(animation(kind))
    assert prepared.notes == ("first of 3 frames",)
    assert pixels(prepared).getpixel((10, 10)) == RED


def test_a_pillow_image_shows_the_frame_it_stands_at():
    source = Image.open(io.BytesIO(animation("GIF")))
    source.seek(1)
    prepared = prepare(source)
    assert prepared.notes == ("frame 2 of 3",)
    assert pixels(prepared).getpixel((10, 10)) == GREEN


def test_frames_that_are_slow_to_count_are_several():
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, GREEN)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert prepare(data).notes == ("first of 2 frames",)
    assert prepare(data + bytes(1 << 16)).notes == ("first of several frames",)
    assert prepare(animation("GIF") + b"," * 20_001).notes == ("first of several frames",)


@pytest.mark.parametrize(
    ("colour", "depth", "most"), [(6, 8, 62), (0, 16, 50), (4, 16, 62)], ids=["RGBA", "I;16", "LA"]
)
def test_what_takes_more_memory_may_have_fewer_pixels(colour, depth, most):
    with pytest.raises(ImageError, match=f"more than the {most} million"):
        prepare(png_header(8000, 8001, depth, colour) + BLACK)


# Refusals

SMALLER = "Make it smaller first"
AGAIN = "Copy or download it again"
BOMB = "has 30000 x 30000 pixels, more than the 200 million that are decoded"
CUT_OFF = "is cut off: it ends too early"
DAMAGED = "is damaged: it cannot be decoded"

BLACK = encoded(Image.new("RGB", (8, 8)), "PNG")[33:]
NO_ZLIB = chunk(b"IDAT", b"no zlib stream") + chunk(b"IEND")
BMP_BOMB = b"BM" + bytes(12) + struct.pack("<IiiHH24x", 40, 30000, 30000, 1, 24)
TEXT_BOMB = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(4 * 1024**2)))

REFUSED = {
    "png-bomb": (png_header(30_000, 30_000) + BLACK, BOMB, SMALLER),
    "bmp-bomb": (BMP_BOMB, BOMB, SMALLER),
    "cut-jpeg": (encoded(DRAWN, "JPEG")[:-300], CUT_OFF, AGAIN),
    "no-end-marker": (encoded(DRAWN, "JPEG")[:-2], CUT_OFF, AGAIN),
    "cut-png": (encoded(DRAWN, "PNG")[:-300], CUT_OFF, AGAIN),
    "png-signature-only": (encoded(DRAWN, "PNG")[:20], CUT_OFF, AGAIN),
    "broken-png": (png_header(8, 8) + NO_ZLIB, f"{DAMAGED} as PNG", AGAIN),
    "text-bomb": (png_header(8, 8) + TEXT_BOMB + BLACK, f"{DAMAGED} as PNG", AGAIN),
    "infinite": (row("F", 0.0, float("inf")), DAMAGED, AGAIN),
    "long-row": (
        b"P6 1000001 1 255\n" + bytes(3_000_003),
        "needs too much memory to be decoded",
        SMALLER,
    ),
    "no-pixels": (Image.new("RGB", (0, 5)), "has no pixels: 0 x 5", "Pass another picture"),
}


@pytest.mark.parametrize(("source", "message", "hint"), REFUSED.values(), ids=REFUSED)
def test_bad_pictures_are_refused_in_one_sentence(source, message, hint):
    with pytest.raises(ImageError) as refused:
        prepare(source)
    assert (str(refused.value), refused.value.hint) == (f"`x` {message}", hint)


def test_pillow_never_warns_and_its_settings_stay():
    large = b"P4 10000 10000\n" + bytes(1250 * 10000)  # over Pillow's own limit for a warning
    before = warnings.filters[:], Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        prepare(with_broken_exif(b"\x08\0\0\0\xff"))
        prepare(large)
    assert seen == []
    assert before == (warnings.filters, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
