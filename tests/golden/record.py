# /// script
# requires-python = ">=3.11"
# dependencies = ["transformers==4.57.6", "pillow==13.0.0", "numpy==2.4.6"]
# ///
"""Records what training made of the pictures: xtuner's padding, then Hugging Face's CLIP processor.

It runs in an environment of its own, since nothing else here needs transformers, and prints no
differences where nothing has changed:

    python -m venv golden && golden/bin/pip install \
        transformers==4.57.6 pillow==13.0.0 numpy==2.4.6
    golden/bin/python -m tests.golden.record

`pictures.json` gets two sha256 for each picture, over its pixels at 112 and then at 336: from its
upright RGB on, and from training's own `convert("RGB")` on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.golden.pictures import SIDES, all_drawn

RECORDED = Path(__file__).with_name("pictures.json")
_AMBIGUOUS = (1, 3)


def main() -> None:
    processors = [_processor(side) for side in SIDES]
    recorded = {
        drawn.name: [
            _digest(drawn.upright, processors),
            _digest(drawn.opened().convert("RGB"), processors),
        ]
        for drawn in all_drawn()
    }
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")


def _processor(side: int) -> Callable[[Image.Image], bytes]:
    from transformers import CLIPImageProcessor  # the slow one; the other has `Fast` in its name

    processor: Any = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size=side,
        # Of 8-bit pixels these two make floats, one for each value of each channel.
        do_rescale=False,
        do_normalize=False,
    )
    background = tuple(int(mean * 255) for mean in processor.image_mean)

    def process(picture: Image.Image) -> bytes:
        square = expand2square(picture, background)
        # A square of 1 or 3 pixels could as well be its channels: the processor asks which.
        hint = {"input_data_format": "channels_last"} if square.width in _AMBIGUOUS else {}
        values = processor(square, return_tensors="np", **hint)["pixel_values"][0]
        pixels: np.ndarray[Any, np.dtype[np.uint8]] = values.transpose(1, 2, 0)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (side, side, 3)
        return pixels.tobytes()

    return process


def expand2square(picture: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """Pad as `xtuner/dataset/utils.py` does."""
    width, height = picture.size
    if width == height:
        return picture
    if width > height:
        result = Image.new(picture.mode, (width, width), background)
        result.paste(picture, (0, (width - height) // 2))
        return result
    result = Image.new(picture.mode, (height, height), background)
    result.paste(picture, ((height - width) // 2, 0))
    return result


def _digest(picture: Image.Image, processors: list[Callable[[Image.Image], bytes]]) -> str:
    digest = hashlib.sha256()
    for process in processors:
        digest.update(process(picture))
    return digest.hexdigest()


if __name__ == "__main__":
    main()
