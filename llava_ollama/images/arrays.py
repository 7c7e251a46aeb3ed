"""From a numpy array to a PIL image. numpy is not needed for that: whoever has an array has it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from llava_ollama.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

MAX_VALUES = 400_000_000
"""Numbers in an array; with fewer of them it is far below what a file may have."""

_AT_ONCE = 1 << 22  # values that are scaled at once


class Array(Protocol):
    """What is used of a `numpy.ndarray`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, columns, and the channels of each pixel."""
        ...

    @property
    def dtype(self) -> Any:
        """The type of its numbers."""
        ...

    def __getitem__(self, rows: slice, /) -> Any: ...


def is_array(source: object) -> TypeGuard[Array]:
    """Return whether `source` is a numpy array; numpy is not imported to ask."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(source, numpy.ndarray)


def image_of(array: Array, most: int = MAX_VALUES) -> Image.Image:
    """Return the picture in an array of H x W, H x W x 3 or H x W x 4 numbers.

    They are uint8, uint16 (scaled), or floats from 0 to 1.

    Raises:
        ImageError: the array has another shape or type, no pixels, or too many.
    """
    from PIL import Image

    mode = _mode(array)
    size = array.shape[1], array.shape[0]
    if not 0 < size[0] * size[1] * len(mode) <= most:
        raise ImageError(
            f"the numpy array has {size[0]} x {size[1]} pixels",
            hint=f"Pass one with 1 to {most // len(mode) // 1_000_000} million",
        )
    return Image.frombytes(mode, size, b"".join(_bytes(array)))


def _mode(array: Array) -> str:
    shape = array.shape
    if len(shape) == len("HW"):
        return "L"
    mode = {3: "RGB", 4: "RGBA"}.get(shape[-1]) if len(shape) == len("HWC") else None
    if mode is None:
        raise ImageError(
            f"a numpy array of the shape `{shape}` is not a picture",
            hint="Pass H x W, H x W x 3 or H x W x 4 numbers",
        )
    return mode


def _bytes(array: Array) -> Iterator[bytes]:
    """Yield the rows of an array in 8 bits."""
    values = 1
    for length in array.shape[1:]:
        values *= length
    rows = max(1, _AT_ONCE // values)
    for top in range(0, array.shape[0], rows):
        yield _eight_bits(array[top : top + rows]).tobytes()


def _eight_bits(part: Any) -> Any:
    if part.dtype.kind == "u" and part.dtype.itemsize == 1:
        return part
    if part.dtype.kind == "u" and part.dtype.itemsize == 2:  # noqa: PLR2004 - 16 bits
        return ((part.astype("uint32") * 255 + 32767) // 65535).astype("uint8")
    if part.dtype.kind != "f":
        raise ImageError(
            f"a numpy array of `{part.dtype}` is not a picture",
            hint="Pass uint8, uint16, or floats from 0 to 1",
        )
    low, high = float(part.min()), float(part.max())
    if not (low >= 0 and high <= 1):  # a NaN is neither
        raise ImageError(
            f"the numpy array has values from `{low:g}` to `{high:g}`",
            hint="Floats are from 0 to 1: divide by the largest possible value",
        )
    return (part * 255).round().astype("uint8")
