"""The API for Python scripts: `Llava`; `AsyncLlava` is in `async_client.py`.

    from llava_ollama import Llava

    llava = Llava("llava-llama3-int4")
    print(llava.ask("photo.jpg", "Describe this image"))

Both have the same methods with the same parameters; a test holds them to it.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from typing import Any, Self, TypeVar, overload

from llava_ollama import turns
from llava_ollama.chat import Chat, user_turn
from llava_ollama.engine.interface import Answer, Chunk, Engine
from llava_ollama.engine.persistent import RETRY_FOR, PersistentEngine
from llava_ollama.errors import UsageProblem
from llava_ollama.extract import OPTIONS, Extracted, form_of
from llava_ollama.images import Decode, Vision
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.settings import Settings
from llava_ollama.turns import Pictures

T = TypeVar("T")

DEFAULT_MODEL = "llava-llama3-int4"
DESCRIBE = "Describe this image"
"""The model card's own prompt."""


class Llava:
    """A vision model to ask, in an Ollama daemon unless made by `embedded` or `server`."""

    def __init__(  # noqa: PLR0913 - keywords, each of them something a caller may set
        self,
        model: str = DEFAULT_MODEL,
        *,
        host: str | None = None,
        timeout: float | None = None,
        retry_for: float = RETRY_FOR,
        engine: Engine | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        """Use the installed model `model` of the daemon at `host` (default: `OLLAMA_HOST`).

        Nothing is sent before the first question. What the daemon says of the model is asked for
        once: make a new client after the model was installed anew. `timeout` is in seconds
        without a word from the daemon, and a daemon's first word of an answer to `ask` is also
        its last. A daemon that is busy, loads the model or is being restarted is asked again for
        `retry_for` seconds (0: never), as long as no word of the answer has come. `engine` takes
        the place of all four. `reporter` is told what a person may want to know: that only the
        first frame of a picture is shown, say, or that the daemon is asked again.
        """
        self._engine = engine or PersistentEngine(
            _ollama(model, host, timeout), retry_for, reporter
        )
        self._reporter = reporter

    @classmethod
    def embedded(  # noqa: PLR0913 - keywords, each of them something a caller may know
        cls,
        name: str | None = None,
        *,
        quant: str | None = None,
        model: str | os.PathLike[str] | None = None,
        mmproj: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        mend: bool = False,
        reporter: Reporter = SILENT,
    ) -> Self:
        """Run llama.cpp in this process: a catalog model by name, or two files of your own.

        A catalog model that is not on this machine is downloaded first; `reporter` hears of that.
        With `mend` a copy of the projector is loaded of which all blocks are run that it was
        trained with, where the catalog knows how many; else, as everywhere, it may be one less.

        Raises:
            EngineUnavailable: the extra `embedded` is not installed.
        """
        from llava_ollama import in_process

        which = in_process.Which(name, quant, model, mmproj, mend=mend)
        engine = in_process.start(which, threads=threads, reporter=reporter)
        return cls(engine=engine, reporter=reporter)

    @classmethod
    def server(
        cls,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float | None = None,
        retry_for: float = RETRY_FOR,
        reporter: Reporter = SILENT,
    ) -> Self:
        """Use a running `llama-server` that was started with `--mmproj`.

        `api_key` is the one that it was started with; by default it is in `LLAMA_API_KEY`, as for
        llama-server itself.
        """
        from llava_ollama.engine.llamacpp import LlamaCppEngine

        settings = Settings.read()
        key = api_key or settings.api_key
        engine = LlamaCppEngine(url, timeout=patience(timeout, settings), api_key=key)
        return cls(engine=PersistentEngine(engine, retry_for, reporter), reporter=reporter)

    def ask(  # noqa: PLR0913 - keywords, each of them something a caller may know
        self,
        pictures: Pictures,
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> Answer:
        """Ask one question about one or more pictures.

        A picture is a path, bytes, a file object, a PIL image, a numpy array, a `data:` URI, or
        `-` for standard input. It is decoded here and sent as the model was trained to see it, or
        as `decode` says (`images.prepare`); one that `images.prepare` made goes out as it is.
        `options` are Ollama's model options: `temperature`, `seed`, `num_predict`, ... What would
        act in `prompt` and `system`, such as `<|eot_id|>`, is made inert
        (`llava_ollama.untrusted`) unless the text is `trusted`.

        Raises:
            ImageError: a picture cannot be read.
            UsageProblem: the model has no vision, or an option is unknown.
            LlavaOllamaError: see `llava_ollama.errors` for all that can go wrong at the daemon.
        """
        turn = user_turn(self._engine, self._reporter, pictures, prompt, decode=decode)
        request = turns.request_of([], turn, system, options, trusted=trusted)
        return self._engine.answer(request)

    def stream(  # noqa: PLR0913 - keywords, each of them something a caller may know
        self,
        pictures: Pictures,
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> Generator[Chunk]:
        """Ask as `ask` does, and yield the answer as it is made.

        Closing the iterator stops the model's work. The last chunk carries the whole `Answer`.
        """
        turn = user_turn(self._engine, self._reporter, pictures, prompt, decode=decode)
        request = turns.request_of([], turn, system, options, trusted=trusted)
        yield from self._engine.stream(request)

    @overload
    def extract(
        self,
        pictures: Pictures,
        wanted: type[T],
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> Extracted[T]: ...
    @overload
    def extract(
        self,
        pictures: Pictures,
        wanted: Mapping[str, Any],
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> Extracted[Any]: ...
    def extract(  # noqa: PLR0913 - keywords, as in `ask`
        self,
        pictures: Pictures,
        wanted: Any,
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> Extracted[Any]:
        """Have a document read off pictures: an object of the pydantic model `wanted`, say.

        `wanted` is such a model or another type that pydantic can validate, or a JSON schema as a
        dict (which keywords: `llava_ollama.schema`). The engine lets the model write nothing else
        than the schema allows; the answer is checked, and the model is asked once more if it does
        not fit. The prompt is followed by the schema; `temperature` is 0 and `num_predict` 1024
        unless `options` says otherwise.

        Raises:
            InvalidAnswer: the second answer does not fit either, or one reached its limit.
            UsageProblem: `wanted` is no schema that an answer can be held to.
        """
        form = form_of(wanted)
        turn = user_turn(self._engine, self._reporter, pictures, form.asked(prompt), decode=decode)
        options = {**OPTIONS, **(options or {})}
        request = turns.request_of([], turn, system, options, trusted=trusted)
        return form.extract(request, self._engine.answer)

    def chat(
        self,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> Chat:
        """Begin a conversation that keeps its turns."""
        return Chat(
            self._engine,
            self._reporter,
            system=system,
            options=options,
            trusted=trusted,
            decode=decode,
        )

    def vision(self) -> Vision:
        """Return what the model sees, for `images.prepare`.

        Raises:
            UsageProblem: the model has no vision.
        """
        return Vision(self._engine.image_size())

    def close(self) -> None:
        """Release connections, and the model where it lives in this process."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _ollama(model: str, host: str | None, timeout: float | None) -> Engine:
    from llava_ollama.engine.ollama import OllamaEngine

    settings = Settings.read(host=host)
    return OllamaEngine(model, settings.host, timeout=patience(timeout, settings))


def patience(timeout: float | None, settings: Settings) -> float:
    """Return the seconds to wait for a word: the caller's, else the settings'.

    Raises:
        UsageProblem: `timeout` is no such number.
    """
    if timeout is None:
        return settings.timeout
    if not 0 < timeout < float("inf"):
        raise UsageProblem(f"`{timeout}` is not a number of seconds to wait", hint="Give 60, say")
    return timeout
