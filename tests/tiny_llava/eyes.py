"""What llama.cpp does to a picture before the vision tower sees it, done with Pillow.

Source: llama.cpp tools/mtmd/mtmd-image.cpp, fixed-size preprocessor of projector `mlp`: the aspect
is kept, bicubic with antialias (a = -0.5, as Pillow's), centred on CLIP's mean colour.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tests.tiny_llava.scene import SIDE

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PADDING = (122, 116, 104)


def seen(image: Image.Image) -> NDArray[np.uint8]:
    """Return the 112 x 112 x 3 RGB values that the model sees of a picture of any size."""
    if image.size != (SIDE, SIDE):
        # Single precision, as llama.cpp computes it: the ceiling depends on the last bit.
        scale = min(np.float32(SIDE) / np.float32(side) for side in image.size)
        fitted = [min(math.ceil(np.float32(side) * scale), SIDE) for side in image.size]
        small = image.resize((fitted[0], fitted[1]), Image.Resampling.BICUBIC)
        image = Image.new("RGB", (SIDE, SIDE), PADDING)
        image.paste(small, ((SIDE - fitted[0]) // 2, (SIDE - fitted[1]) // 2))
    return np.asarray(image, np.uint8)
