"""The pytest plugin, as other people's projects meet it: in a pytest of their own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import ollama as ollama_python
import openai
import pytest

from llava_ollama import AsyncLlava, Llava
from llava_ollama.daemon import Daemon
from llava_ollama.errors import EngineUnavailable, LlavaOllamaError, UsageProblem
from llava_ollama.settings import Settings
from llava_ollama.testing import LlamaServer, assert_sees, daemons, shape_picture
from llava_ollama.tiny.shapes import ALL_COLOURS, BACKGROUNDS, SHAPES
from tests.daemons.running import RunningDaemon

INI = "[pytest]\nfilterwarnings = error\naddopts = --strict-config --strict-markers\n"
FOREIGN = """
import pathlib

import ollama
import openai
import pytest


def test_ours(tiny_llava, assert_sees):
    assert_sees(tiny_llava)


def test_openai(llama_server, assert_sees):
    with openai.OpenAI(base_url=llama_server.base_url, api_key=llama_server.api_key) as client:
        assert_sees(client)
        assert_sees(client, model=llama_server.model)


def test_ollama(ollama_daemon, assert_sees):
    with pathlib.Path("hosts").open("a") as file:
        file.write(ollama_daemon.host + "\\n")
    client = ollama.Client(ollama_daemon.host)
    assert_sees(client, model=ollama_daemon.model)
    client.close()


@pytest.mark.parametrize("seed", range(4))
def test_own_program(tiny_llava, shape_picture, seed):
    picture = shape_picture("green", "star", "grey", seed=seed)
    answer = tiny_llava.ask(picture.data, options={"temperature": 0})
    assert answer.text == picture.sentence
"""
KILLED = """
import os, pathlib, signal


def test_killed(ollama_daemon):
    pathlib.Path("hosts").write_text(ollama_daemon.host)
    os.kill(os.getpid(), signal.SIGKILL)
"""
BLIND = """
def test_blind(assert_sees):
    assert_sees(lambda picture, prompt: "A red circle on a white background.")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of somebody else's."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pytest.ini").write_text(INI)
    (folder / "test_foreign.py").write_text(FOREIGN)
    return folder


def run_pytest(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run pytest there; return its exit code and what it says."""
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *arguments]
    # On CI pytest tells each failure's message again in its summary.
    environment = {**os.environ, "PATH": "/usr/bin:/bin", "CI": "", **variables}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def is_gone(host: str) -> bool:
    try:
        httpx.get(host, trust_env=False)
    except httpx.ConnectError:
        return True
    return False


@pytest.mark.ollama
def test_a_project_that_has_ollama(project: Path, ollama: RunningDaemon):
    variables = {"PATH": f"{ollama.binary.parent}:/usr/bin:/bin"}
    code, said = run_pytest(project, "-k", "test_ollama", **variables)
    assert "1 passed" in said
    assert code == 0, said
    hosts = (project / "hosts").read_text().split()
    assert [is_gone(host) for host in hosts] == [True]
    assert ollama.host not in hosts


@pytest.mark.ollama
@pytest.mark.parametrize("ollama", ["0.34.4"], indirect=True)
def test_a_project_in_several_processes(project: Path, ollama: RunningDaemon):
    variables = {"PATH": f"{ollama.binary.parent}:/usr/bin:/bin"}
    code, said = run_pytest(project, "-n", "2", "--dist", "each", **variables)
    assert "14 passed" in said
    assert code == 0, said
    hosts = set((project / "hosts").read_text().split())
    assert len(hosts) == 2
    assert all(map(is_gone, hosts))


@pytest.mark.ollama
@pytest.mark.parametrize("ollama", ["0.34.4"], indirect=True)
def test_a_daemon_that_runs_is_left_as_it_was(project: Path, ollama: RunningDaemon):
    with closing(Daemon(ollama.host)) as daemon:
        before = {*daemon.models()}  # 0.34.4 has no order of those that are a moment old
        code, said = run_pytest(project, "-k", "ollama", OLLAMA_HOST=ollama.host)
        assert (code, {*daemon.models()}) == (0, before), said
    assert (project / "hosts").read_text().split() == [ollama.host]


@pytest.mark.ollama
@pytest.mark.parametrize("ollama", ["0.34.4"], indirect=True)
def test_a_run_that_is_killed_leaves_no_daemon(project: Path, ollama: RunningDaemon):
    (project / "test_foreign.py").write_text(KILLED)
    code, said = run_pytest(project, PATH=f"{ollama.binary.parent}:/usr/bin:/bin")
    assert code == -signal.SIGKILL, said
    host = (project / "hosts").read_text()
    for _ in range(200):  # it is told by the system, and may take its time
        if is_gone(host):
            break
        time.sleep(0.05)
    assert is_gone(host)


@pytest.mark.embedded
def test_a_project_without_ollama(project: Path):
    code, said = run_pytest(project)
    assert "6 passed, 1 skipped" in said
    assert code == 0, said
    assert "no Ollama daemon: `ollama` is not on PATH and OLLAMA_HOST is not set" in said


@pytest.mark.parametrize(
    ("arguments", "host", "reason"),
    [
        (["--llava-require-daemon"], "", "`ollama` is not on PATH and OLLAMA_HOST is not set"),
        (["--llava-daemon", "./none"], "", "`./none` in --llava-daemon is not a program"),
        (["--llava-daemon", "127.0.0.1:1"], "", "http://127.0.0.1:1"),
        (["--llava-daemon", "false"], "", "ended at once; it said: nothing"),
    ],
)
def test_a_project_that_must_have_ollama(
    project: Path, arguments: list[str], host: str, reason: str
):
    code, said = run_pytest(project, "-k", "test_ollama", *arguments, OLLAMA_HOST=host)
    assert code == 1
    assert reason in said
    assert "Traceback" not in said
    assert "During handling" not in said


def test_a_host_without_a_daemon_counts_as_none(project: Path):
    code, said = run_pytest(project, "-k", "test_ollama", OLLAMA_HOST="127.0.0.1:1")
    assert code == 0
    assert "no Ollama daemon: `ollama` is not on PATH, and nothing answers at" in said


def test_a_project_without_llama_cpp(project: Path):
    (project / "conftest.py").write_text("import sys\nsys.modules['xllamacpp'] = None\n")
    code, said = run_pytest(project, "-k", "openai or ours")
    assert code == 1
    assert said.count("Hint: pip install xllamacpp") == 2


def test_a_blind_program_fails(project: Path):
    (project / "test_foreign.py").write_text(BLIND)
    code, said = run_pytest(project)
    assert code == 1
    assert (
        "was shown a blue square on a black background and said `A red circle on a white"
        " background.`: that is not what was drawn"
    ) in said
    assert "sight.py" not in said


def test_the_fixtures_are_described(project: Path):
    _, said = run_pytest(project, "--fixtures", "-v")
    found = re.findall(r"^(\w+) \[session scope\] -- .*llava_ollama/testing", said, re.MULTILINE)
    assert sorted(found) == sorted(
        ("assert_sees", "llama_server", "ollama_daemon", "shape_picture", "tiny_llava")
    )


def test_another_machine_is_not_used_unless_it_is_named():
    settings = Settings.read(environment={"OLLAMA_HOST": "gpu.example"})
    with pytest.raises(EngineUnavailable, match="in OLLAMA_HOST is another machine"):
        daemons.find(None, settings)
    assert daemons.find("gpu.example", settings) == "http://gpu.example:11434"


def test_loading_the_plugin_loads_nothing_else():
    code = (
        "import pytest, sys; before = set(sys.modules); import llava_ollama.testing.plugin\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert said == ["llava_ollama", "llava_ollama.testing", "llava_ollama.testing.plugin"]


def test_pictures_and_the_check_need_no_pytest():
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from llava_ollama.testing import *\n"
        "picture = shape_picture('cyan', 'star', 'grey')\n"
        "print(picture.sentence, len(picture.data) > 99, picture.data_uri[:15])"
    )
    said = subprocess.check_output([sys.executable, "-W", "error", "-c", code], text=True)
    assert said == "A cyan star on a grey background. True data:image/png;\n"


@pytest.mark.embedded
def test_every_picture_gets_its_sentence(tiny_llava: Llava):
    wanted = [(c, s, b) for c in ALL_COLOURS for s in SHAPES for b in BACKGROUNDS if c != b]
    pictures = [shape_picture(*words, seed=seed) for seed, words in enumerate(wanted)]
    said = [tiny_llava.ask(each.data, options={"temperature": 0}).text for each in pictures]
    right = [each.sentence == text for each, text in zip(pictures, said, strict=True)]
    assert sum(right) >= 0.95 * len(wanted)
    assert all(each.is_seen_in(each.sentence) for each in pictures)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("brown",), "the tiny model knows no colour `brown`", "It knows red, green"),
        (("white",), "the tiny model knows no colour `white` on white", "It knows red, green"),
        (("red", "oval"), "the tiny model knows no shape `oval`", "It knows circle, square"),
        (("red", "star", "blue"), "the tiny model knows no background `blue`", "It knows white"),
    ],
)
def test_a_picture_that_the_model_does_not_know(words: tuple[str, ...], message: str, hint: str):
    with pytest.raises(UsageProblem) as caught:
        shape_picture(*words)
    assert caught.value.message == message
    assert (caught.value.hint or "").startswith(hint)


def completion(server: LlamaServer, prompt: str) -> str:
    """Ask with a raw prompt: no chat template, no picture."""
    answer = httpx.post(
        f"{server.url}/completion",
        json={"prompt": prompt, "temperature": 0, "n_predict": 20},
        headers={"Authorization": f"Bearer {server.api_key}"},
        trust_env=False,
    )
    return str(answer.json()["content"])


@pytest.mark.embedded
def test_the_complaint_says_what_the_clients_mistake_is(llama_server: LlamaServer):
    with (
        openai.OpenAI(base_url=llama_server.base_url, api_key=llama_server.api_key) as client,
        pytest.raises(AssertionError, match="the picture did not reach the model"),
    ):
        assert_sees(
            lambda _, prompt: (
                client.chat.completions.create(
                    model="any", messages=[{"role": "user", "content": prompt}], temperature=0
                )
                .choices[0]
                .message.content
            )
        )
    chatml = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(AssertionError, match="the prompt is not written as Llama-3-instruct"):
        assert_sees(lambda _, prompt: completion(llama_server, chatml.format(prompt)))


@pytest.mark.embedded
def test_the_server_answers_nobody_without_its_key(llama_server: LlamaServer):
    assert llama_server.url.startswith("http://127.0.0.1:")
    assert llama_server.api_key not in repr(llama_server)
    with (
        openai.OpenAI(base_url=llama_server.base_url, api_key="other") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model="any", messages=[{"role": "user", "content": "Hi"}])


class Two:
    """Has two models; of ollama-python as far as can be seen."""

    __module__ = "ollama"

    def list(self) -> ollama_python.ListResponse:
        return ollama_python.ListResponse(
            models=[
                ollama_python.ListResponse.Model(model=name) for name in ("a:latest", "b:latest")
            ]
        )


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (Two(), "which model is to be asked is not clear; there are: `a:latest`, `b:latest`"),
        (AsyncLlava("x"), "`AsyncLlava` is asynchronous"),
        (asyncio.sleep, "`sleep` is asynchronous"),
        (ollama_python.AsyncClient(), "`AsyncClient` is asynchronous"),
        (3, "`int` is no client that is known here"),
        (lambda _, __: None, "`<lambda>` answers with `NoneType` instead of text"),
    ],
)
def test_what_is_no_client(client: object, message: str):
    with pytest.raises(LlavaOllamaError) as caught:
        assert_sees(client)
    assert caught.value.message == message
    assert caught.value.hint
