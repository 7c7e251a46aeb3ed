"""Where the data files are: one lookup for an editable install, an sdist and a wheel.

`templates/` and `modelfiles/` stand at the top of the repository. A wheel carries them inside
the package, as `_data/`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def find(name: str) -> Path:
    """Return the path of the data file `name`, such as `templates/Modelfile.jinja`.

    Raises:
        FileNotFoundError: the installation is incomplete; this is a packaging bug.
    """
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        candidate = root / name
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{name} is missing from this installation of llava-ollama")


def bundled(name: str) -> Path:
    """Return the path of the weight file `name` that ships inside the package."""
    return _PACKAGE / "tiny" / name
