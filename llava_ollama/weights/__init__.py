"""Weights: a file of the catalog becomes a verified file on this machine.

`local` looks for it where it may be already, `download` brings it, `mended` makes copies with their
metadata mended; `hub` is the Hub as huggingface_hub sees it, `hub_errors` the door for what goes
wrong there.
"""

from __future__ import annotations

from llava_ollama.weights.local import Weights
from llava_ollama.weights.values import LocalFile, Mending, Origin, Whereabouts

__all__ = ["LocalFile", "Mending", "Origin", "Weights", "Whereabouts"]
