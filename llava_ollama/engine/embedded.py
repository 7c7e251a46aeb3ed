"""llama.cpp in this process: check the files, load them with xllamacpp, and hand out an engine.

xllamacpp serves llama-server's API on a loopback port, so the engine is that of `llamacpp.py`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llava_ollama import __version__
from llava_ollama.catalog import LLAMA3_PARAMETERS
from llava_ollama.engine.llamacpp import AsyncLlamaCppEngine, LlamaCppEngine
from llava_ollama.errors import EngineUnavailable, GGUFError, UsageProblem
from llava_ollama.gguf import changes, checks, mend
from llava_ollama.gguf.reader import read
from llava_ollama.modelfile import chat_template
from llava_ollama.package import Package, ParameterValue
from llava_ollama.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import ModuleType

    from llava_ollama.gguf.reader import Header

CALLED = "llama.cpp in this process"
_SMALL = 64 << 20
"""Bytes. Two threads spin on a model this small: 100 answers took 70-110 s instead of 1.3 s beside
a busy process on two cores."""
_SILENT = -1
"""Below llama.cpp's lowest log level; it writes to standard error at all others."""
_FATAL = ("v.position_embd.weight", "mm.2.bias")
"""Tensors of a LLaVA projector; without one llama.cpp does not refuse it but dies of SIGSEGV."""


def start_embedded(  # noqa: PLR0913 - keywords, each of them something a caller may know
    model: Path,
    projector: Path,
    *,
    cache: Path,
    threads: int | None = None,
    num_ctx: int | None = None,
    parameters: Mapping[str, ParameterValue] = LLAMA3_PARAMETERS,
    digests: tuple[str, str] | None = None,
    reporter: Reporter = SILENT,
) -> LlamaCppEngine:
    """Load the pair into this process and return the engine that answers from it.

    `cache` is the folder for a mended copy of the projector, made where it names no type.
    `parameters` hold where a request has no such option; `num_thread` and `num_ctx` among them
    stand back behind `threads` and `num_ctx`. `digests` are the sha256 of model and projector for
    the answers' `model_digest`: hashing 5 GB here would take seconds.

    Raises:
        EngineUnavailable: xllamacpp is not installed, or llama.cpp does not load the files.
        GGUFError: the files are damaged, do not fit, or are no LLaVA-Llama-3.
        NotEnoughSpace: the mended copy does not fit on the disk.
    """
    given = {"num_thread": threads, "num_ctx": num_ctx}
    settings = {**parameters, **{name: value for name, value in given.items() if value is not None}}
    return LlamaCppEngine(
        **_load(model, projector, cache=cache, settings=settings, reporter=reporter),
        model_digest=_digest(digests, parameters),
    )


def start_embedded_async(  # noqa: PLR0913 - see start_embedded
    model: Path,
    projector: Path,
    *,
    cache: Path,
    threads: int | None = None,
    num_ctx: int | None = None,
    parameters: Mapping[str, ParameterValue] = LLAMA3_PARAMETERS,
    digests: tuple[str, str] | None = None,
    reporter: Reporter = SILENT,
) -> AsyncLlamaCppEngine:
    """See `start_embedded`; the model is loaded when this returns."""
    given = {"num_thread": threads, "num_ctx": num_ctx}
    settings = {**parameters, **{name: value for name, value in given.items() if value is not None}}
    return AsyncLlamaCppEngine(
        **_load(model, projector, cache=cache, settings=settings, reporter=reporter),
        model_digest=_digest(digests, parameters),
    )


def _load(
    model: Path,
    projector: Path,
    *,
    cache: Path,
    settings: Mapping[str, ParameterValue],
    reporter: Reporter,
) -> dict[str, Any]:
    """Return the keywords of an engine for the pair, which is loaded."""
    library = _library()
    heads = read(model), read(projector)
    _check(*heads)
    _tell_pre_tokenizer(heads[0], reporter)
    loadable = _loadable(heads[1], cache, reporter)
    key = secrets.token_urlsafe(32)
    # A list, since `release` must drop the last reference: that is what ends the server.
    with _told(heads[0], reporter):
        servers = [_serve(library, heads[0], loadable, settings, key=key)]
    return {
        "url": servers[0].listening_address,
        "api_key": key,
        "image_size": checks.image_size(heads[1]),
        "defaults": settings,
        "called": CALLED,
        "release": servers.clear,
    }


def _library() -> ModuleType:
    try:
        import xllamacpp
    except ModuleNotFoundError as exc:
        raise EngineUnavailable(
            "running llama.cpp in this process needs the package `xllamacpp`",
            hint="pip install xllamacpp",
        ) from exc
    except ImportError as exc:
        raise EngineUnavailable(
            f"the package `xllamacpp` is installed but cannot be loaded: {exc}",
            hint="pip install --force-reinstall xllamacpp",
        ) from exc
    library: ModuleType = xllamacpp
    return library


def _check(model: Header, projector: Header) -> None:
    checks.pair(model, projector)
    if not checks.has_llama3_vocabulary(model):
        raise GGUFError(
            f"`{model.path}` has no Llama-3 vocabulary, and only Llama-3's prompt is known here",
            hint="Install it in Ollama with a template of its own: llava-ollama install --template",
        )
    missing = [name for name in _FATAL if projector.tensor(name) is None]
    if checks.is_llava(projector) and missing:
        raise GGUFError(
            f"`{projector.path}` lacks the tensor `{missing[0]}`",
            hint="Convert it again with llama.cpp's convert_hf_to_gguf.py --mmproj",
        )
    _check_numbers(projector)


def _check_numbers(projector: Header) -> None:
    """Refuse what llama.cpp takes, and dies of with the whole process at the first picture."""
    if not checks.is_llava(projector):
        return
    width = projector.integer("clip.vision.embedding_length") or 0
    heads = projector.integer("clip.vision.attention.head_count") or 0
    layers = projector.array(checks.FEATURE_LAYER)
    table, first = projector.tensor(_FATAL[0]), projector.tensor("mm.0.weight")
    taken = width * (1 if layers is None else max(1, len(layers)))
    wrong = {
        "clip.vision.embedding_length": table is not None and table.shape[:1] != (width,),
        "clip.vision.attention.head_count": heads < 1 or width % heads,
        checks.FEATURE_LAYER: first is not None and first.shape[:1] != (taken,),
    }
    for key in filter(wrong.get, wrong):
        raise GGUFError(
            f"`{projector.path}` has a `{key}` that its tensors do not fit",
            hint="Convert it again with llama.cpp's convert_hf_to_gguf.py --mmproj",
        )


def _tell_pre_tokenizer(model: Header, reporter: Reporter) -> None:
    # Only a mended copy closes this gap: xllamacpp has no metadata overrides.
    for finding in checks.health(model):
        if finding.check == "pre-tokenizer":
            reporter.note(f"`{model.path}` {finding.detail}; to mend that: {finding.fix}")


def _loadable(projector: Header, cache: Path, reporter: Reporter) -> Path:
    """Return a file that llama.cpp loads: the projector, or its mended copy in `cache`."""
    if not changes.planned(projector):
        return projector.path
    status = projector.path.stat()
    same = (__version__, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    key = hashlib.sha256(repr(same).encode()).hexdigest()[:16]
    copy = cache / f"{projector.path.stem}-mended-{key}.gguf"
    if not _is_whole(copy):  # it appears whole, see `mend`, but may have been cut since
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise EngineUnavailable(
                f"the folder `{cache}` cannot be made: {exc.strerror}",
                hint="Mend its permissions, or set `LLAVA_OLLAMA_CACHE` to another folder",
            ) from exc
        done = mend.mend(projector.path, copy, overwrite=True, reporter=reporter)
        reporter.note(
            f"`{projector.path}` is left as it is; llama.cpp gets the mended copy `{copy}`:"
            f" {'; '.join(done.changes)}"
        )
    return copy


def _is_whole(copy: Path) -> bool:
    try:
        read(copy)
    except GGUFError:
        return False
    return True


def _serve(
    library: ModuleType,
    model: Header,
    projector: Path,
    settings: Mapping[str, ParameterValue],
    *,
    key: str,
) -> Any:
    params = library.CommonParams()
    params.model.path, params.mmproj.path = str(model.path), str(projector)
    params.model_alias = {model.path.stem}  # else `/v1/models` tells the path
    params.n_ctx = settings.get("num_ctx", 4096)
    params.cpuparams.n_threads = _threads(model.size, settings.get("num_thread"))
    params.cpuparams_batch.n_threads = params.cpuparams.n_threads
    params.verbosity = _SILENT
    # One conversation at a time has all of num_ctx; further requests wait for their turn.
    params.n_parallel = 1
    params.warmup, params.cache_ram_mib = False, 0
    # Any user of this machine can reach the port.
    params.api_keys, params.ui, params.endpoint_slots = [key], False, False
    params.endpoint_metrics = True
    try:
        server = _begun(library, params)
    except (RuntimeError, UnicodeError) as exc:
        command = f"llama-server --model {_quoted(model.path)} --mmproj {_quoted(projector)}"
        raise EngineUnavailable(
            f"llama.cpp cannot load `{model.path}` with `{projector}`",
            hint=f"There may be too little memory; this says why: {command}",
        ) from exc
    return server


@contextmanager
def _told(model: Header, reporter: Reporter) -> Iterator[None]:
    """Report the loading of a model that takes long."""
    task = f"loading {model.path.name}"
    if model.size >= _SMALL:
        reporter.started(task)
    try:
        yield
    finally:
        reporter.finished(task)


def _begun(library: ModuleType, params: Any) -> Any:
    """Return a server whose loop has begun: one that is ended before waits for ever.

    Ctrl-C is raised in the main thread, between any two steps of it: measured, 4 of 40 came
    between these two. So another thread takes both, and is waited for. While llama.cpp loads it
    keeps the interpreter's lock, so that nobody hears of Ctrl-C earlier anyhow.
    """
    from concurrent.futures import ThreadPoolExecutor

    def begin() -> Any:
        server = library.Server(params)
        server.handle_metrics()  # answered by the loop
        return server

    with ThreadPoolExecutor(1, "llama.cpp") as helper:
        return helper.submit(begin).result()


def _threads(size: int, wanted: ParameterValue | None) -> int:
    if wanted is not None:
        if not isinstance(wanted, int) or wanted < 1:
            raise UsageProblem(f"`{wanted}` is not a number of threads", hint="Give 1 or more")
        return wanted
    if size < _SMALL:
        return 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    # llama.cpp counts the physical cores by itself, but of the whole machine.
    return allowed if 0 < allowed < (os.cpu_count() or 1) else -1


def _digest(
    digests: tuple[str, str] | None, parameters: Mapping[str, ParameterValue]
) -> str | None:
    if digests is None:
        return None
    return Package(*digests, template=chat_template(), parameters=parameters).digest()


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
