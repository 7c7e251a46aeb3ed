"""Programs that nobody here wrote, on this plugin: simonw/llm with llm-ollama, and LangChain.

`make test-clients` runs this in an environment of its own, without the project's other tests: a
stranger's project is all that this is.
"""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage
from langchain_ollama import ChatOllama

from llava_ollama.testing import LlamaServer, OllamaDaemon, assert_sees


@pytest.fixture
def llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The program `llm` with settings of its own, called with a picture."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))

    def call(model: str, data: bytes, prompt: str) -> str:
        picture = tmp_path / "picture.png"
        picture.write_bytes(data)
        command = [sys.executable, "-m", "llm", "--no-log", "--no-stream", "--model", model]
        words = ["--option", "temperature", "0", "--attachment", str(picture), prompt]
        return subprocess.run(
            [*command, *words], check=True, stdout=subprocess.PIPE
        ).stdout.decode()

    return call


def test_llm_sees_through_ollama(
    ollama_daemon: OllamaDaemon, llm: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OLLAMA_HOST", ollama_daemon.host)

    def ask(data: bytes, prompt: str) -> str:
        return llm(f"ollama/{ollama_daemon.model}", data, prompt)

    assert_sees(ask)


def test_llm_sees_through_the_server_here(
    llama_server: LlamaServer, llm: Callable[..., str], tmp_path: Path
):
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: tiny\n  model_name: {llama_server.model}\n"
        f"  api_base: {llama_server.base_url}\n  vision: true\n  api_key_name: tiny\n"
    )
    (tmp_path / "keys.json").write_text(f'{{"tiny": "{llama_server.api_key}"}}')

    def ask(data: bytes, prompt: str) -> str:
        return llm("tiny", data, prompt)

    assert_sees(ask)


def test_langchain_sees_through_ollama(ollama_daemon: OllamaDaemon):
    chat = ChatOllama(model=ollama_daemon.model, base_url=ollama_daemon.host, temperature=0)

    def ask(data: bytes, prompt: str) -> str:
        uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": prompt}]
        return str(chat.invoke([HumanMessage(content=parts)]).content)

    assert_sees(ask)
