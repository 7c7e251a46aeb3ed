"""Store: the daemon's models folder on this disk: found and proven, read, and added to.

`manifests` reads what the daemon wrote about its models, `folder` is the store itself, `search`
tells which folder is a given daemon's.
"""

from __future__ import annotations

from llava_ollama.store.folder import NoStore, Store, StoredBlob
from llava_ollama.store.manifests import Layer, Manifest
from llava_ollama.store.search import find, prove, recover

__all__ = ["Layer", "Manifest", "NoStore", "Store", "StoredBlob", "find", "prove", "recover"]
