"""A user with the tiny pair in its published form, and a catalog that pins it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result

from llava_ollama.cli import main
from tests.holding import sha256
from tests.installing import MODEL, PROJECTOR
from tests.published import published_model, published_projector

OLD = """
[models.{name}]
parameters.num_thread = 1
projector = {{ file = "{projector}", sha256 = "{projector_sha256}"{more} }}
[models.{name}.quants]
int4 = {{ file = "{model}", sha256 = "{model_sha256}" }}
"""


@dataclass(frozen=True)
class Desk:
    """The user's folder, the two files in it, and calls of the command line there."""

    folder: Path
    model: Path
    projector: Path

    @classmethod
    def set_up(cls, folder: Path) -> Desk:
        desk = cls(
            folder,
            published_model(MODEL, folder / "model.gguf"),
            published_projector(PROJECTOR, folder / "mmproj.gguf"),
        )
        desk.write_catalog(", vision-layers = 3")
        return desk

    def write_catalog(self, more: str, *, name: str = "old") -> None:
        files = {"model": self.model, "projector": self.projector}
        digests = {f"{kind}_sha256": sha256(path) for kind, path in files.items()}
        values = {kind: path.name for kind, path in files.items()}
        self.catalog.write_text(OLD.format(name=name, more=more, **values, **digests))

    @property
    def catalog(self) -> Path:
        return self.folder / "own.toml"

    def call(self, *words: str, host: str = "http://127.0.0.1:9", code: int = 0) -> Result:
        environment = {
            "LLAVA_OLLAMA_CATALOG": str(self.catalog),
            "LLAVA_OLLAMA_CACHE": str(self.folder / "cache"),
            "LLAVA_OLLAMA_STATE": str(self.folder / "state"),
            "OLLAMA_HOST": host,
        }
        done = CliRunner().invoke(main, words, env=environment)
        assert done.exit_code == code, done.output
        return done
