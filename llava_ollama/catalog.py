"""Which models there are: the catalog that ships with the package, and the user's own beside it.

A catalog is TOML data (`catalog.toml` is the example to follow). Its entries are pinned: every
file has a sha256, so what arrives can be proven to be what was meant.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_ollama.errors import UnknownModel, UnknownQuant, UsageProblem
from llava_ollama.modelfile import LLAMA3
from llava_ollama.package import ParameterValue, is_sha256, parameters
from llava_ollama.prompts import STOPS
from llava_ollama.resources import bundled

DEFAULT_MODEL = "llava-llama3"
"""What is meant where no model is named."""
LLAMA3_PARAMETERS: Mapping[str, ParameterValue] = {
    "stop": STOPS,
    "num_keep": 4,
    "num_ctx": 4096,
}
"""The model card's parameters; they belong to the Llama-3-instruct template."""

_SHIPPED = Path(__file__).with_name("catalog.toml")
_MODEL_KEYS = {
    *("title", "repo", "revision", "bundled", "template", "default-quant"),
    *("parameters", "projector", "quants"),
}
_LARGEST = 1_000_000
_LARGEST_FILE = 1 << 63
"""Bytes of a catalog, and of a weight file that it names."""
_FILE_KEYS = {"file", "repo", "revision", "size", "sha256", "library", "vision-layers"}
_MOST_LAYERS = 1000


@dataclass(frozen=True)
class WeightFile:
    """A GGUF file and where it comes from: the Hub, this package, or a path of the user's."""

    name: str
    repo: str | None = None
    revision: str = "main"
    size: int | None = None
    sha256: str | None = None
    path: Path | None = None
    """Set for a file that is on this machine already: bundled or named by the user."""
    library: str | None = None
    """A tag of Ollama's public library with this very model and its projector."""
    vision_layers: int | None = None
    """How many blocks of its vision tower a projector was trained with, where that is known."""
    source: WeightFile | None = None
    """Set for a mended copy: the file that it is made of. It has no other origin of its own."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What its download is recorded under: repository, revision and name."""
        if self.source is not None:
            return self.source.key
        return self.repo or "", self.revision, self.name


@dataclass(frozen=True)
class Entry:
    """A model of the catalog with all its quants."""

    name: str
    title: str
    template: str
    default_quant: str
    projector: WeightFile
    quants: Mapping[str, WeightFile]
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    """Added to, or put in place of, the parameters that come with the template."""

    def model(self, quant: str | None) -> tuple[str, WeightFile]:
        """Return the quant's name and its model file; None means the default quant.

        Raises:
            UnknownQuant: this model has no such quant.
        """
        chosen = quant or self.default_quant
        if chosen not in self.quants:
            raise UnknownQuant(
                f"`{self.name}` has no quant `{chosen}`",
                hint=suggestion(chosen, self.quants, "Its quants are"),
            )
        return chosen, self.quants[chosen]


@dataclass(frozen=True)
class Catalog:
    """All known models by name."""

    entries: Mapping[str, Entry]

    def entry(self, name: str) -> Entry:
        """Return the entry `name`.

        Raises:
            UnknownModel: there is none; the hint names the nearest.
        """
        if name not in self.entries:
            raise UnknownModel(
                f"no model `{name}` in the catalog",
                hint=self._with_quant(name) or suggestion(name, self.entries, "Known models are"),
            )
        return self.entries[name]

    def _with_quant(self, name: str) -> str:
        """Return what is meant by a name as it is in Ollama, or as the library has its tags."""
        for model, quant in ((m, q) for m, entry in self.entries.items() for q in entry.quants):
            if name in {f"{model}-{quant}", f"{model}:{quant}"}:
                return f"Did you mean `{model}`, with `--quant {quant}`?"
        return ""

    def vision_layers(self, sha256: str) -> int | None:
        """Return how many blocks the projector with this sha256 was trained with, if known."""
        found = (entry.projector for entry in self.entries.values())
        return next((file.vision_layers for file in found if file.sha256 == sha256), None)


def suggestion(wrong: str, known: Iterable[str], otherwise: str) -> str:
    """Return "Did you mean …?", or all that is known where nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    if near:
        return f"Did you mean `{near[0]}`?"
    return f"{otherwise} {', '.join(f'`{name}`' for name in names)}"


def load(own: Path | None = None) -> Catalog:
    """Return the shipped catalog; entries of the user's file `own` are added or replace it.

    Raises:
        UsageProblem: the user's catalog cannot be read or has a mistake, which is named.
    """
    entries = _parse(_SHIPPED, _SHIPPED.read_bytes())
    if own is not None:
        try:
            text = _read(own)
        except OSError as exc:
            raise UsageProblem(
                f"the catalog `{own}` cannot be read: {exc.strerror}",
                hint="Check the path in `LLAVA_OLLAMA_CATALOG`",
            ) from exc
        entries |= _parse(own, text)
    return Catalog(entries)


def _read(own: Path) -> bytes:
    # A pipe or a device would be read for ever.
    if own.exists() and not own.is_file() and not own.is_dir():
        raise UsageProblem(
            f"the catalog `{own}` is not a regular file",
            hint="Check the path in `LLAVA_OLLAMA_CATALOG`",
        )
    with own.open("rb") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise UsageProblem(
            f"the catalog `{own}` is larger than {_LARGEST // 1_000_000} MB",
            hint="Check the path in `LLAVA_OLLAMA_CATALOG`",
        )
    return text


def _parse(path: Path, text: bytes) -> dict[str, Entry]:
    try:
        data = tomllib.loads(text.decode("utf-8-sig"))
        _known(data, {"models"}, "the top level")
        models = _table(data, "models", "", {})
        return {
            name: _entry(name, _table(models, name, "models"), path.absolute().parent)
            for name in models
        }
    except (ValueError, RecursionError, UsageProblem) as exc:
        why: object = exc
        if isinstance(exc, RecursionError):
            why = "it is nested too deeply"
        elif not isinstance(exc, UnicodeDecodeError | tomllib.TOMLDecodeError | UsageProblem):
            why = "a number has too many digits"
        raise UsageProblem(
            f"the catalog `{path}` has a mistake: {why}",
            hint="Compare it with the example in the README under `Your own models`",
        ) from exc


class _Mistake(UsageProblem):
    """A catalog entry that is not of the right form; the message names the key."""


def _entry(name: str, data: Mapping[str, Any], folder: Path) -> Entry:
    where = f"models.{name}"
    _known(data, _MODEL_KEYS, f"`{where}`")
    given = _table(data, "quants", where)
    quants = {
        quant: _weight_file(
            _table(given, quant, f"{where}.quants"), f"{where}.quants.{quant}", data, folder
        )
        for quant in given
    }
    if not quants:
        raise _Mistake(f"`{where}.quants` is empty")
    default = _text(data, "default-quant", where, next(iter(quants)))
    if default not in quants:
        raise _Mistake(
            f"`{where}.default-quant` names `{default}`, which is not among its quants. "
            + suggestion(default, quants, "They are")
        )
    projector = f"{where}.projector"
    return Entry(
        name=name,
        title=_text(data, "title", where, ""),
        template=_template(_text(data, "template", where, LLAMA3), folder),
        default_quant=default,
        projector=_weight_file(_table(data, "projector", where), projector, data, folder),
        quants=quants,
        parameters=_parameters(data, where),
    )


def _template(text: str, folder: Path) -> str:
    """Return the shipped template's name as it is, and a file's as a path from the catalog."""
    return text if text == LLAMA3 else str(folder / _home(text))


def _home(text: str) -> Path:
    """Return the path with `~` replaced."""
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:
        raise _Mistake(f"`{text}` names the home of an unknown user") from exc


def _parameters(data: Mapping[str, Any], where: str) -> Mapping[str, ParameterValue]:
    try:
        return parameters(_table(data, "parameters", where, {}))
    except _Mistake:
        raise
    except UsageProblem as exc:
        raise _Mistake(f"in `{where}.parameters`, {exc}. {exc.hint}") from exc


def _weight_file(
    data: Mapping[str, Any], where: str, model: Mapping[str, Any], folder: Path
) -> WeightFile:
    _known(data, _FILE_KEYS, f"`{where}`")
    shared = {key: model[key] for key in ("repo", "revision") if key in model}
    name = _text(data, "file", where)
    if not name:
        raise _Mistake(f"`{where}.file` is empty")
    repo = _text({**shared, **data}, "repo", where, "")
    size = _whole(data, "size", where, _LARGEST_FILE)
    sha256 = _text(data, "sha256", where, "") or None
    if sha256 is not None and not is_sha256(sha256):
        raise _Mistake(f"`{where}.sha256` must be 64 lower-case hexadecimal digits")
    path = None
    if _flag(model, "bundled"):
        path = bundled(name)
    elif not repo:
        path = folder / _home(name)
    return WeightFile(
        name=name if path is None else path.name,
        repo=None if path else repo,
        revision=_text({**shared, **data}, "revision", where, "main"),
        size=size,
        sha256=sha256,
        path=path,
        library=_text(data, "library", where, "") or None,
        vision_layers=_whole(data, "vision-layers", where, _MOST_LAYERS),
    )


def _table(
    data: Mapping[str, Any], key: str, where: str, default: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    value = data.get(key, default)
    if not isinstance(value, dict):
        raise _wrong(data, key, where, "a table")
    return value


def _text(data: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = data.get(key, default)
    if not isinstance(value, str):
        raise _wrong(data, key, where, "a string")
    return value


def _whole(data: Mapping[str, Any], key: str, where: str, most: int) -> int | None:
    value = data.get(key)
    if value is None or (type(value) is int and 0 < value < most):
        return value
    what = "a number of bytes" if key == "size" else "a number of blocks"
    raise _Mistake(f"`{where}.{key}` must be {what}")


def _flag(data: Mapping[str, Any], key: str) -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise _Mistake(f"`{key}` must be true or false")
    return value


def _wrong(data: Mapping[str, Any], key: str, where: str, kind: str) -> _Mistake:
    full = f"{where}.{key}" if where else key
    return _Mistake(f"`{full}` must be {kind}" if key in data else f"`{full}` is missing")


def _known(data: Mapping[str, Any], keys: set[str], where: str) -> None:
    for key in data:
        if key not in keys:
            raise _Mistake(f"{where} has an unknown key `{key}`. {suggestion(key, keys, 'Known:')}")
