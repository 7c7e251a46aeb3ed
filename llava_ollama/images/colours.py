"""From any of Pillow's modes to RGB.

Training did `.convert("RGB")`, which drops transparency, cuts greys of 16 bits off at 255 and
ignores the profile of CMYK. Here transparent pixels lie on white, deep greys are scaled, and CMYK
is converted by its profile where it has one.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from PIL import Image

# What Pillow's readers are known to raise on hostile files, `MemoryError` aside.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError),
    *(ArithmeticError, AssertionError, RuntimeError, struct.error, zlib.error),
)


def rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Return `image` in RGB, and what had to be done for it."""
    done = []
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
        done.append("its deep greys scaled to 8 bits")
    if image.mode == "CMYK":
        converted = _by_profile(image)
        done.append("its inks made RGB" + (" by their profile" if converted else ""))
        return converted or image.convert("RGB"), done
    if not image.has_transparency_data:
        return (image if image.mode == "RGB" else image.convert("RGB")), done
    return _on_white(image), [*done, "laid on white where it is transparent"]


def as_trained(image: Image.Image) -> Image.Image:
    """Return `image` in RGB as it was made in training."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "La":  # one step at a time is all that Pillow knows
        image = image.convert("LA")
    colours = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(colours, mask=colours)
    return white


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale greys of 16 bits, 32 bits or floats to 8; Pillow's own conversion cuts them off."""
    from PIL import ImageChops

    grey = image if image.mode == "F" else image.convert("I").convert("F")
    low, high = cast("tuple[float, float]", grey.getextrema())
    if not math.isfinite(low + high):
        raise ValueError(f"grey values from {low} to {high}")
    if image.mode.startswith("I;16") or image.format in {"PNG", "PPM"}:
        usual = [65535]
    else:  # nothing says what white is: the smallest usual value that none exceeds
        usual = [1, 255] if image.mode == "F" else [255, 65535]
    top = high if low < 0 else next((limit for limit in usual if high <= limit), high)
    low = min(low, 0)
    scale = 255 / ((top - low) or 1)
    scaled = grey.point(lambda v: v * scale + (0.5 - low * scale)).convert("L")
    clear = scaled.info.pop("transparency", None)
    if isinstance(clear, int):  # the one grey that is transparent
        above, below = (
            grey.point(lambda v, s=s: v * s - clear * s).convert("L") for s in (255, -255)
        )
        scaled.putalpha(ImageChops.lighter(above, below))
    return scaled


def _by_profile(image: Image.Image) -> Image.Image | None:
    from PIL import ImageCms

    if profile := image.info.get("icc_profile"):
        # A profile that is broken or of another colour space: as good as none. So is a Pillow
        # without Little CMS.
        with contextlib.suppress(*DAMAGE, ImageCms.PyCMSError, ImportError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(
                image,
                source,
                target,
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
    return None
