"""A run as a page to look at: a folder that opens in any browser, without a server or a network.

The page is `templates/gallery/`, copied as it is. What is shown comes in classic scripts of some
hundred pictures each, as a page from `file://` may load neither JSON nor modules.
"""

from __future__ import annotations

from llava_ollama.gallery.build import PAGE, Gallery, build

__all__ = ["PAGE", "Gallery", "build"]
