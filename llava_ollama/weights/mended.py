"""Mended copies of projectors: made of the published file where it is, and remembered by digest.

A copy is made anew whenever it is needed, since the same original and depth give the same bytes;
what is remembered is only which digest that was, for those who have to know it without the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from llava_ollama.catalog import WeightFile
from llava_ollama.errors import ChecksumMismatch, UsageProblem
from llava_ollama.gguf import checks
from llava_ollama.gguf.changes import sentence
from llava_ollama.gguf.mend import Mended, Recipe, check_place, mend
from llava_ollama.gguf.reader import read
from llava_ollama.weights.download import disk
from llava_ollama.weights.local import Weights
from llava_ollama.weights.values import LocalFile, Mending, Whereabouts

if TYPE_CHECKING:
    from pathlib import Path

_FOLDER = "mended"


def mended_copy(file: WeightFile, layers: int | None = None) -> WeightFile:
    """Return what stands for the mended copy of `file`.

    `layers` is how many blocks it was trained with, where the catalog does not know.

    Raises:
        UsageProblem: the catalog knows another number.
    """
    name = PurePosixPath(file.name)
    return WeightFile(
        name=f"{name.stem}-mended{name.suffix}",
        vision_layers=_agreed(file.name, file.vision_layers, layers),
        source=file,
    )


def locate(weights: Weights, file: WeightFile, source: WeightFile) -> Whereabouts:
    """Say where the original is and what the copy will have; reads it, writes nothing.

    Where nothing has to be mended, the original itself is told.

    Raises:
        UsageProblem: nobody says how many blocks it was trained with.
    """
    place = weights.locate(source)
    if place.path is None:
        digest, size = remembered(weights, file, place.sha256) or (None, place.size)
        return replace(
            place, file=file, sha256=digest, size=size, mending=Mending(place.sha256, ())
        )
    local = weights.fetch(source)
    if _depth(weights, file, local) is None and checks.may_run_short(read(local.path)):
        # A copy called "mended" that still runs short would be a false promise.
        raise UsageProblem(
            f"how many blocks `{local.path.name}` was trained with is not known",
            hint="Say it with `--layers N`, the blocks that it ran in training: 23 for CLIP-L",
        )
    recipe = _recipe(weights, file, local)
    if not recipe.changes:
        _say_right(weights, recipe)
        return place
    known = remembered(weights, file, local.sha256) or recipe.digest(weights.reporter)
    words = tuple(sentence(recipe.header, change) for change in recipe.changes)
    return replace(
        place, file=file, sha256=known[0], size=known[1], mending=Mending(local.sha256, words)
    )


def fetch(weights: Weights, file: WeightFile, source: WeightFile) -> LocalFile:
    """Return the mended copy, made where it is not at hand; the original where that is right."""
    local = weights.fetch(source)
    recipe = _recipe(weights, file, local)
    if not recipe.changes:
        _say_right(weights, recipe)
        return local
    made = _made(weights, recipe, local)
    if file.sha256 not in {None, made.sha256}:
        raise ChecksumMismatch(
            f"`{local.path}` mended has sha256 {made.sha256[:8]}…, not {str(file.sha256)[:8]}…",
            hint="Install the model again with `--mend --force`",
        )
    return made


def write(
    weights: Weights, source: Path, out: Path, *, layers: int | None = None, overwrite: bool = False
) -> Mended:
    """Write the mended copy of any weight file to `out`; see `gguf.mend`.

    Raises:
        GGUFError: `source` is damaged or cannot be judged, or `out` may not be written.
        UsageProblem: `layers` are not those that the catalog knows.
        NotEnoughSpace: the disk cannot hold the copy.
    """
    check_place(read(source), out, overwrite=overwrite)  # before 5 GB are hashed
    local = weights.fetch(WeightFile(name=source.name, path=source))
    recipe = _recipe(weights, WeightFile(name=source.name, vision_layers=layers), local)
    return _make(weights, recipe, local, out, overwrite=overwrite)


def _made(weights: Weights, recipe: Recipe, source: LocalFile) -> LocalFile:
    key = hashlib.sha256(repr((source.sha256, recipe.changes)).encode()).hexdigest()[:16]
    folder = weights.downloads / _FOLDER
    out = folder / f"{source.path.stem}-{key}.gguf"
    known = weights.ledger.known(out) if weights.ledger and out.exists() else None
    if known is not None:
        return LocalFile(out, known.sha256, known.size, "mended")
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    done = _make(weights, recipe, source, out, overwrite=True)
    if weights.ledger is not None:
        weights.ledger.arrived(out, done.sha256)
    return LocalFile(out, done.sha256, done.size, "mended")


def _make(
    weights: Weights, recipe: Recipe, source: LocalFile, out: Path, *, overwrite: bool
) -> Mended:
    """Make a copy, and write down which digest it has and of what it was made."""
    done = mend(
        source.path,
        out,
        layers=recipe.layers,
        sha256=source.sha256,
        overwrite=overwrite,
        reporter=weights.reporter,
    )
    if weights.records is not None and done.changes:
        record = {
            "source": source.sha256,
            "layers": str(recipe.layers or ""),
            "sha256": done.sha256,
            "size": str(done.size),
            "path": str(source.path.absolute()) if source.origin == "given" else "",
        }
        weights.records.put("mended", *_key(source.sha256, recipe.layers), record=record)
    return done


def _recipe(weights: Weights, file: WeightFile, local: LocalFile) -> Recipe:
    layers = _depth(weights, file, local)
    recipe = Recipe.of(read(local.path), layers=layers, sha256=local.sha256)
    if layers is None and checks.may_run_short(recipe.header):
        weights.say_once(
            local.path,
            f"how many blocks `{local.path.name}` was trained with is not known: its feature layer"
            " stays unset; say it with `--layers N`",
        )
    return recipe


def _depth(weights: Weights, file: WeightFile, local: LocalFile) -> int | None:
    known = weights.catalog.vision_layers(local.sha256) if weights.catalog else None
    return _agreed(local.path.name, known, file.vision_layers)


def _say_right(weights: Weights, recipe: Recipe) -> None:
    path = recipe.header.path
    weights.say_once(path, f"`{path.name}` is right as it is: nothing to mend")


def remembered(weights: Weights, file: WeightFile, source: str | None) -> tuple[str, int] | None:
    """Return sha256 and size that the copy of `source` had when it was made before."""
    if weights.records is None or source is None:
        return None
    layers = file.vision_layers
    if layers is None and weights.catalog is not None:
        layers = weights.catalog.vision_layers(source)
    record = weights.records.get("mended", *_key(source, layers))
    if record is None or not record.get("size", "").isdecimal():
        return None
    return record.get("sha256", ""), int(record["size"])


def _key(source: str, layers: int | None) -> tuple[str, str]:
    return source, str(layers or "")


def _agreed(name: str, known: int | None, given: int | None) -> int | None:
    """Return how many blocks a projector was trained with: as is known, else as the user says."""
    if known and given and known != given:
        raise UsageProblem(
            f"`{name}` was trained with {known} blocks, not `{given}`", hint="Leave out `--layers`"
        )
    return known or given
