"""The pytest plugin; the owner of pytest. Loaded at every start of pytest, so it loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from llava_ollama.client import Llava
    from llava_ollama.testing import LlamaServer, OllamaDaemon, ShapePicture


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    group = parser.getgroup("llava-ollama", "a real small vision model (llava-ollama)")
    group.addoption(
        "--llava-require-daemon",
        action="store_true",
        help="Fail, not skip, tests of `ollama_daemon` where there is no Ollama.",
    )
    group.addoption(
        "--llava-daemon",
        metavar="WHICH",
        help="For `ollama_daemon`: the program to start, or the address of a daemon that runs "
        "(default: `ollama` on PATH, else OLLAMA_HOST if that is on this machine).",
    )


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llava]:
    """A `llava_ollama.Llava` that answers with the tiny model, from llama.cpp in this process.

    It is shared by all tests of the session, so do not close it. Needs `llava-ollama[embedded]`.
    """
    from llava_ollama.client import Llava
    from llava_ollama.testing import servers

    with _failing():
        engine = servers.start(tmp_path_factory.mktemp("tiny-llava"))
    with Llava(engine=engine) as llava:
        yield llava


@pytest.fixture(scope="session")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """An OpenAI-compatible server of the tiny model in this process: no daemon, no download.

    It has a `base_url`, an `api_key` and a `model` for `openai.OpenAI` and its like, and listens
    on the loopback address only. Needs `llava-ollama[embedded]`.
    """
    from llava_ollama.testing import servers

    with ExitStack() as stack:
        with _failing():
            folder = tmp_path_factory.mktemp("llama-server")
            server = stack.enter_context(servers.serving(folder))
        yield server


@pytest.fixture(scope="session")
def ollama_daemon(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OllamaDaemon]:
    """A real Ollama daemon with the tiny model: it has a `host` and the `model`'s name.

    Where `ollama` is on PATH, a daemon is started with folders and a port of its own; else the one
    at OLLAMA_HOST gets the model for as long as the tests last. `--llava-daemon` names another.
    Without any the test is skipped, or fails with `--llava-require-daemon`.
    """
    from llava_ollama.errors import EngineUnavailable
    from llava_ollama.testing import daemons

    named = pytestconfig.getoption("llava_daemon")
    with ExitStack() as stack:
        with _failing():
            try:
                folder = tmp_path_factory.mktemp("ollama")
                daemon = stack.enter_context(daemons.opened(named, folder))
            except EngineUnavailable as exc:
                if pytestconfig.getoption("llava_require_daemon"):
                    raise
                raise pytest.skip.Exception(f"no Ollama daemon: {exc}") from None
        yield daemon


@contextmanager
def _failing() -> Iterator[None]:
    """Make one line of an error of ours: its traceback would only show this plugin."""
    from llava_ollama.errors import LlavaOllamaError

    try:
        yield
    except LlavaOllamaError as exc:
        text = f"{exc}\nHint: {exc.hint}" if exc.hint else str(exc)
        raise pytest.fail.Exception(text, pytrace=False) from None


@pytest.fixture(scope="session", name="shape_picture")
def _shape_picture() -> Callable[..., ShapePicture]:
    """`llava_ollama.testing.shape_picture`: draws a picture that has an expected `sentence`.

    `shape_picture("blue", "star", "grey", seed=7)` has the PNG file's bytes as `data` as well.
    """
    from llava_ollama.testing import shape_picture

    return shape_picture


@pytest.fixture(scope="session", name="assert_sees")
def _assert_sees() -> Callable[..., None]:
    """`llava_ollama.testing.assert_sees`: fails unless a client tells what is in pictures.

    The client is a `Llava`, an `ollama.Client`, an `openai.OpenAI`, or a function of a picture's
    bytes and a prompt that returns the answer.
    """
    from llava_ollama.testing import assert_sees

    return assert_sees
