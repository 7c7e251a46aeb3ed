"""The command line without a daemon: streams, options, pictures in prompts, shells, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from llava_ollama import Llava, resources
from llava_ollama.cli import main
from llava_ollama.cli.bars import Bars, waiting
from llava_ollama.cli.frame import _cause
from llava_ollama.cli.output import Output
from llava_ollama.errors import DaemonBusy, DownloadError, LlavaOllamaError, ModelLoading
from llava_ollama.findings import Finding
from llava_ollama.progress import Reporter
from llava_ollama.records import Records
from llava_ollama.tiny.shapes import Shape, draw
from tests.published import rewrite
from tests.stand_ins import stand_in

NOBODY = "http://127.0.0.1:1"
PROGRAM = (sys.executable, "-m", "llava_ollama")
QUESTION = "Describe this image"
RED = "A red circle on a white background."
TINY = ("--embedded", "tiny-llava")


def call(*arguments: str, code: int = 0, stdin: bytes = b"") -> Result:
    done = CliRunner().invoke(main, arguments, prog_name="llava-ollama", input=stdin)
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures, and no daemon."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_HOST", NOBODY)
    red = draw(Shape("red", "circle", "white"))
    red.save("red.png")
    red.save("my picture.png")
    red.save("moving.gif", save_all=True, append_images=[draw(Shape("blue", "star", "black"))])
    return tmp_path


@pytest.mark.embedded
@pytest.mark.usefixtures("desk")
def test_ask_for_a_document():
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}}
    Path("seen.json").write_text(json.dumps({**schema, "required": ["colour"]}))
    asked = ("ask", "red.png", QUESTION, *TINY, "--schema", "seen.json")
    document = json.loads(call(*asked).stdout)
    assert document["colour"] in {"red", "blue"}
    whole = json.loads(call(*asked, "--json").stdout)
    assert whole["value"] == document == json.loads(whole["text"])
    assert (whole["repaired"], whole["finish"]) == (False, "stop")
    cut = call(*asked, "--max-tokens", "2", code=1)
    assert cut.stdout == ""
    assert 'said: {"' in cut.stderr
    assert "Error: the answer reached its limit of tokens" in cut.stderr


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("kind", ["busy", "loading"])
def test_who_is_busy_is_asked_again_unless_not_wanted(kind, monkeypatch):
    asked: list[None] = []
    with stand_in(kind, on_request=lambda: asked.append(None)) as host:
        monkeypatch.setenv("OLLAMA_HOST", host)
        where = ("--server", host) if kind == "loading" else ("-m", "x")
        call("ask", "red.png", QUESTION, *where, "--no-retry", code=1)
        once = len(asked)
        llava = Llava.server(host, retry_for=1) if kind == "loading" else Llava("x", retry_for=1)
        with llava, pytest.raises((DaemonBusy, ModelLoading)):
            llava.ask("red.png")
    assert len(asked) - once > once


@pytest.mark.embedded
def test_ask_without_a_daemon(desk: Path):
    done = call("ask", "red.png", QUESTION, *TINY)
    assert (done.stdout, done.stderr) == (f"{RED}\n", "")
    assert call("ask", "red.png", QUESTION, "--embedded", "tiny-llava:f16").stdout == f"{RED}\n"
    done = call("ask", "-", QUESTION, *TINY, stdin=(desk / "red.png").read_bytes())
    assert done.stdout == f"{RED}\n"
    done = call("ask", "moving.gif", QUESTION, *TINY)
    assert (done.stdout, done.stderr) == (f"{RED}\n", "`moving.gif`: first of 2 frames\n")
    assert call("--quiet", "ask", "moving.gif", QUESTION, *TINY).stderr == ""
    done = call("ask", "red.png", QUESTION, *TINY, "--max-tokens", "3", "--verbose")
    said = done.stderr.splitlines()
    assert said[0] == "the answer was cut off at its limit"
    assert said[1].startswith("78 prompt tokens, 3 answer tokens, ")


@pytest.mark.embedded
@pytest.mark.parametrize("kind", ["CMYK", "I;16", "P with alpha", "EXIF"])
def test_pictures_of_every_kind_are_seen(kind: str, desk: Path):
    with Image.open(desk / "red.png") as file:
        image = file.convert("RGB")
    name, exif = "other.tif", Image.Exif()
    if kind == "P with alpha":
        image = image.convert("RGBA").quantize(64)
    elif kind == "EXIF":
        exif[0x0112] = 6
        name = "other.jpg"
    else:
        grey = image.convert("L").convert("I").point(lambda value: value * 257)
        image = grey.convert("I;16") if kind == "I;16" else image.convert(kind)
    image.save(name, exif=exif)
    done = call("ask", name, QUESTION, *TINY, "--temperature", "0")
    if kind == "I;16":  # a grey circle is nothing that it was trained on, so compare with 8 bits
        with Image.open("red.png") as file:
            file.convert("L").save("8-bits.png")
        same = call("ask", "8-bits.png", QUESTION, *TINY, "--temperature", "0")
        assert done.stdout == same.stdout != ""
    else:
        assert "circle" in done.stdout
    assert ("turned" in done.stderr) == (kind == "EXIF")


PAGE = "demo-pictures/run/gallery/index.html"
SHOWN = f"all of it as a batch, to be looked at in a browser: {PAGE}"
TURNED = "`demo-pictures/green-triangle-sideways.jpg`: turned by its EXIF orientation"


@pytest.mark.embedded
def test_the_demo_runs_without_a_daemon_and_says_so(desk: Path):
    done = call("demo")
    assert done.stderr.splitlines() == [
        "tiny-llava through llama.cpp in this process:",
        TURNED,
        SHOWN,
    ]
    assert done.stdout.count("[right]\n") == 5
    shown = json.loads(call("demo", "--json").stdout)
    assert shown["engine"] == "llama.cpp in this process"
    assert [Path(item["picture"]).is_file() and item["right"] for item in shown["pictures"]] == (
        [True] * 5
    )
    assert {path.name for path in desk.glob("demo-pictures/*")} == {
        *("red-circle.png", "blue-square.png", "yellow-star.png", "purple-triangle.png"),
        *("green-triangle-sideways.jpg", "run"),
    }
    assert shown["gallery"] == PAGE
    assert (desk / PAGE).is_file()


@pytest.mark.parametrize(
    ("words", "pictures", "prompt"),
    [
        (["red.png Describe this image"], ["red.png"], "Describe this image"),
        (["./red.png Describe this image"], ["./red.png"], "Describe this image"),
        (["Describe this image red.png"], ["red.png"], "Describe this image"),
        (["Describe", "red.png", "now"], ["red.png"], "Describe now"),
        (["What is in 'red.png'?"], ["red.png"], "What is in"),
        (["Compare red.png, moving.gif"], ["red.png", "moving.gif"], "Compare"),
        (["my picture.png What?"], ["my picture.png"], "What?"),
        (["my picture.png", "What?"], ["my picture.png"], "What?"),
        ([r"./my\ picture.png What?"], ["./my picture.png"], "What?"),
        (["red.png List:\n- a\n- b"], ["red.png"], "List:\n- a\n- b"),
        (["No picture at all, 3.5 of them."], [], "No picture at all, 3.5 of them."),
        (["red.png"], ["red.png"], ""),
    ],
)
def test_every_word_that_is_a_picture_is_attached(
    words: list[str], pictures: list[str], prompt: str, desk: Path
):
    from llava_ollama.cli.ask import _split

    assert (desk / "red.png").is_file()
    assert _split(" ".join(words)) == (pictures, prompt)


def test_run_says_what_it_attaches_before_it_asks(desk: Path):
    done = call("run", "x", f"{desk}/red.png and './my picture.png': {QUESTION}", code=3)
    assert done.stderr.splitlines()[:2] == [f"attached {desk}/red.png", "attached ./my picture.png"]
    done = call("run", "x", QUESTION, code=3)
    assert done.stderr.splitlines()[0] == "no picture in the prompt"


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["list"], ["catalog", "installed"]),
        (["render"], ["modelfile", "path"]),
        (["render", "-o", "new"], ["modelfile", "path"]),
        (["download", "tiny-llava"], ["files"]),
        (
            ["mend", "bare.gguf", "-o", "out.gguf"],
            ["path", "changes", "sha256", "source_sha256", "size"],
        ),
        (["doctor"], ["findings"]),
        (["verify"], ["models"]),
        (["inspect", "bare.gguf"], ["files", "pairing"]),
        (["completion", "bash"], ["script"]),
        (
            ["install", "tiny-llava", "--dry-run"],
            ["wanted", "host", "existing", "parts", "modelfile", "found", "unproven", "findings"],
        ),
        (["demo"], ["engine", "pictures", "gallery"]),
        (
            ["ask", "red.png", QUESTION, *TINY],
            ["text", "finish", "usage", "times", "model_digest", "engine"],
        ),
    ],
    ids=lambda value: value[0],
)
def test_json_is_one_document_wherever_its_option_stands(arguments: list[str], keys: list[str]):
    rewrite(_bundled("mmproj-f16"), Path("bare.gguf"), {"clip.projector_type": None})
    code = {"list": 3, "doctor": 3}.get(arguments[0], 0)
    with stand_in("bare") as host:
        at = ["--host", host] if arguments[0] in {"install", "verify"} else []
        for line in ([*at, "--json", *arguments], [*arguments, *at, "--json"]):
            if "-o" in arguments:
                Path(arguments[-1]).unlink(missing_ok=True)
            done = call(*line, code=code)
            assert list(json.loads(done.stdout)) == keys
    help_text = " ".join(call(arguments[0], "--help").stdout.split())
    assert all(key in help_text for key in keys)


def _bundled(part: str) -> Path:
    return resources.bundled(f"tiny-llava-{part}.gguf")


def test_render_never_overwrites_without_force(desk: Path):
    first = call("render", "--quant", "f16", "-o", "M").stdout
    assert first == "wrote M\n"
    text = (desk / "M").read_text()
    call("render", "-o", "M", code=2)
    assert (desk / "M").read_text() == text
    call("render", "-o", "M", "--force")
    assert (desk / "M").read_text() == call("render").stdout != text


def test_mend_tells_what_it_added(desk: Path):
    rewrite(_bundled("mmproj-f16"), Path("bare.gguf"), {"clip.projector_type": None})
    lines = call("mend", "bare.gguf", "-o", "out.gguf").stdout.splitlines()
    assert "clip.projector_type" in lines[0]
    assert lines[-1] == "wrote out.gguf"
    assert (desk / "out.gguf").is_file()
    done = call("mend", "out.gguf", "-o", "again.gguf")
    assert done.stdout == "nothing to mend: again.gguf is a copy\n"
    assert (desk / "again.gguf").read_bytes() == (desk / "out.gguf").read_bytes()


@pytest.mark.usefixtures("desk")
def test_list_without_a_daemon_still_lists_the_catalog():
    done = call("list", code=3)
    assert done.stdout.splitlines()[0].split() == ["MODEL", "QUANT", "SIZE", "INSTALLED", "AS"]
    assert done.stderr.startswith(f"Error: no Ollama daemon answers at {NOBODY}\n")


def test_list_with_a_daemon_that_is_silent_still_lists_the_catalog(
    desk: Path, monkeypatch: pytest.MonkeyPatch
):
    assert desk.is_dir()
    monkeypatch.setenv("LLAVA_OLLAMA_TIMEOUT", "0.2")
    with stand_in("silent") as host:
        done = call("list", "--host", host, code=3)
    assert done.stdout.startswith("MODEL")
    assert done.stderr.startswith(
        f"Error: the daemon at {host} did not answer within 0.2 seconds\n"
    )


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("variable", ["LLAVA_OLLAMA_CACHE", "LLAVA_OLLAMA_STATE", "HOME"])
def test_doctor_tells_of_folders_that_cannot_be_written(
    variable: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(variable, "/dev/null")
    lines = call("doctor", code=3).stdout.splitlines()
    wrong = [line for line in lines if "cannot be written: Not a directory" in line]
    fixes = [line.split("`")[1] for line in lines if "to a folder that can be written" in line]
    assert len(wrong) == len(fixes)
    assert all(line.startswith("error  ") and "/dev/null" in line for line in wrong)
    assert fixes == (
        ["LLAVA_OLLAMA_CACHE", "LLAVA_OLLAMA_STATE"] if variable == "HOME" else [variable]
    )


def test_doctor_tells_what_interrupted_installs_have_left(
    desk: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LLAVA_OLLAMA_CACHE", str(desk / "cache"))
    monkeypatch.setenv("LLAVA_OLLAMA_STATE", str(desk / "state"))
    (downloads := desk / "cache" / "downloads" / "0123456789abcdef").mkdir(parents=True)
    (downloads / "model.gguf").write_bytes(bytes(3_000_000))
    (downloads / "kept.gguf").write_bytes(bytes(3_000_000))
    (downloads.parent / "model.gguf.0-1.partial").write_bytes(bytes(2_000_000))
    records = Records(desk / "state")
    records.put("transient", "o/r", "main", "model.gguf", record={"name": "model.gguf"})
    records.put("probe", "/m/blobs/sha256-0", record={"path": "/m/blobs/sha256-0"})
    with stand_in("bare") as host:
        said = call("doctor", "--host", host).stdout
    assert f"1 interrupted, 2.0 MB kept in {downloads.parent}" in said
    assert (
        f"1 for an install that was interrupted, or is under way, 3.0 MB kept in {downloads.parent}"
    ) in said
    assert "/m/blobs/sha256-0 asked a daemon whether the folder is its own" in said


def test_doctor_goes_on_without_a_catalog_of_ones_own(desk: Path, monkeypatch: pytest.MonkeyPatch):
    (desk / "own.toml").write_text("[models")
    monkeypatch.setenv("LLAVA_OLLAMA_CATALOG", "own.toml")
    with stand_in("bare") as host:
        done = call("doctor", "--host", host, code=4)
    assert done.stdout.startswith(f"error    catalog: the catalog `{desk}/own.toml` has a mistake")
    assert "Ollama 0.24.0 answers" in done.stdout


@pytest.mark.usefixtures("desk")
def test_verbose_names_the_cause():
    done = call("-v", "show", "x", code=3)
    assert done.stderr.splitlines()[2].startswith("caused by ConnectError: ")


def test_a_closed_pipe_is_no_accident(desk: Path):
    line = f"{sys.executable} -m llava_ollama render | head -c 1"
    done = subprocess.run(["bash", "-c", line], cwd=desk, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"F", b"")


def test_a_full_disk_is_one_line(desk: Path):
    for command in ("render", "render --json", "--help", "render --help"):
        line = f"{sys.executable} -m llava_ollama {command} > /dev/full"
        done = subprocess.run(["bash", "-c", line], cwd=desk, capture_output=True, check=False)
        assert done.stderr == (
            b"Error: standard output cannot be written: No space left on device\n"
            b"Hint: Send it to another file or disk\n"
        )
        assert done.returncode == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_accident(closed: str, desk: Path):
    line = f"{sys.executable} -m llava_ollama %s {closed}"
    for command, code in (("render", 0), ("list", 3), ("doctor", 3), ("show x", 3)):
        done = subprocess.run(
            ["bash", "-c", line % command], cwd=desk, capture_output=True, check=False
        )
        assert done.returncode == code
        assert b"Traceback" not in done.stderr


def test_what_is_awaited_is_said_when_it_takes_long():
    told = Told()
    with waiting(told, "x") as arrived:
        arrived()
        arrived()
    assert told.tasks == []
    with waiting(told, "x") as arrived:
        assert told.begun.wait(10)
        arrived()
    assert told.tasks == ["+ x", "- x"]


class Told(Reporter):
    """Keeps what begins and ends."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.begun = threading.Event()

    def started(self, task: str, total: int | None = None) -> None:
        assert total is None
        self.tasks.append(f"+ {task}")
        self.begun.set()

    def finished(self, task: str) -> None:
        self.tasks.append(f"- {task}")


WAIT = """
import time
from llava_ollama.cli.bars import Bars
bars = Bars(colour=False)
for total in (None, 2_000_000):
    bars.started("waiting", total)
    bars.advanced("waiting", total // 2 if total else 0)
    time.sleep(0.3)  # for one frame
    bars.finished("waiting")
bars.close()
"""


def test_a_task_without_a_total_shows_the_time_alone(desk: Path):
    said = _shown([sys.executable, "-c", WAIT], cwd=desk)
    first, _, second = said.partition("0.0/2.0 MB")
    assert "0:00:00" in first
    assert "bytes" not in first
    assert "/?" not in first
    assert "1.0/2.0 MB" in second


def test_colour_is_for_terminals_without_no_color(desk: Path, monkeypatch: pytest.MonkeyPatch):
    assert "\x1b" not in _on_terminal("doctor", cwd=desk)
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[31m" in _on_terminal("doctor", cwd=desk)
    assert "\x1b" not in _on_terminal("doctor", "--no-color", cwd=desk)
    assert "\x1b" not in call("doctor", code=3).output


def _on_terminal(*arguments: str, cwd: Path) -> str:
    return _shown([*PROGRAM, *arguments], cwd=cwd)


def _shown(command: list[str], *, cwd: Path) -> str:
    """Return what a terminal of its own shows of a command."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=cwd, stdout=theirs, stderr=theirs):
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 4096):
                said += piece
        except OSError:  # Linux: the other end is closed
            pass
    os.close(ours)
    return said.decode()


@pytest.mark.parametrize("arguments", [["show", "x"], ["install", "tiny-llava"], ["demo"]])
def test_ctrl_c_while_a_daemon_is_silent(arguments: list[str], desk: Path):
    with stand_in("silent", on_request=lambda: process.send_signal(signal.SIGINT)) as host:
        process = subprocess.Popen(
            [*PROGRAM, *arguments, "--host", host], cwd=desk, stderr=subprocess.PIPE, text=True
        )
        said = process.communicate(timeout=60)[1]
    again = "Hint: Run the same command again: it goes on where it stopped\n"
    hint = again if arguments[0] == "install" else ""
    assert (process.returncode, said) == (130, f"Error: interrupted\n{hint}")


def test_ctrl_c_while_a_picture_is_awaited(desk: Path):
    with stand_in("seeing") as host:
        process = subprocess.Popen(
            [*PROGRAM, "ask", "-m", "x", "-", QUESTION, "--host", host],
            cwd=desk,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        with process:
            # More than a pipe holds: once it is written, the program is reading.
            process.stdin.write("x" * 1_000_000)
            process.stdin.flush()
            # Python sees a signal that arrives between two reads only after the next one: as a
            # person would, press the keys again.
            for _ in range(10):
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(2)
                    break
                except subprocess.TimeoutExpired:
                    continue
            assert process.stderr.read() == "Error: interrupted\n"
    assert process.returncode == 130


def _complete(*words: str, cwd: Path) -> list[str]:
    """Return what bash offers for the last word, by the script that `completion` prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = (
        'eval "$(llava-ollama completion bash)"; complete -p llava-ollama >/dev/null || exit 1\n'
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); compopt() { :; }\n'
        "_llava_ollama_completion llava-ollama\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", "llava-ollama", *words],
        env={**os.environ, "PATH": path},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_models_quants_and_options(desk: Path):
    assert _complete("inst", cwd=desk) == ["install"]
    assert _complete("install", "ti", cwd=desk) == ["tiny-llava"]
    assert _complete("render", "tiny-llava", "--quant", "", cwd=desk) == ["int4", "f16"]
    assert _complete("ask", "--emb", cwd=desk) == ["--embedded"]
    assert _complete("ask", "--embedded", "ti", cwd=desk) == ["tiny-llava"]
    assert _complete("show", "x", cwd=desk) == []


def test_a_catalog_of_ones_own_is_completed_too(desk: Path, monkeypatch: pytest.MonkeyPatch):
    text = '[models.mine]\nprojector = {file = "b.gguf"}\nquants.q8 = {file = "a.gguf"}\n'
    (desk / "own.toml").write_text(text)
    monkeypatch.setenv("LLAVA_OLLAMA_CATALOG", "own.toml")
    assert _complete("install", "mi", cwd=desk) == ["mine"]
    assert _complete("install", "mine", "--quant", "", cwd=desk) == ["q8"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str):
    assert "_LLAVA_OLLAMA_COMPLETE" in call("completion", shell).stdout


def test_text_that_a_stream_cannot_encode_is_escaped(desk: Path):
    done = subprocess.run(
        [*PROGRAM, "ask", "é.png", QUESTION, *TINY],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=desk,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "Error: `\\xe9.png` does not exist\nHint: Check the path\n"


def test_words_that_are_not_utf8_are_refused(desk: Path):
    done = subprocess.run(
        [*PROGRAM, "ask", "-m", "x", "red.png", b"\xff"], cwd=desk, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"Error: the prompt is not UTF-8 text\n")


def test_render_keeps_symlinks_and_pipes(desk: Path):
    os.mkfifo(desk / "pipe")
    (desk / "link").symlink_to("file")
    call("render", "-o", "link", "--force")
    assert (desk / "link").is_symlink()
    assert (desk / "file").read_text() == call("render").stdout
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    call("render", "-o", "pipe", "--force")
    assert os.read(reader, 1 << 16).decode() == call("render").stdout
    os.close(reader)
    assert (desk / "pipe").is_fifo()
    assert not list(desk.glob(".llava-ollama-*"))


def test_the_demo_keeps_a_file_of_the_same_name(desk: Path):
    (desk / "demo-pictures").mkdir()
    mine = desk / "demo-pictures" / "yellow-star.png"
    mine.write_text("mine")
    done = call("demo", code=2)
    assert done.stderr.endswith("\nHint: Choose another folder with `--folder`\n")
    assert [path.name for path in mine.parent.iterdir()] == ["yellow-star.png"]
    assert mine.read_text() == "mine"


@pytest.mark.embedded
def test_the_demo_does_without_a_daemon_that_is_silent(desk: Path, monkeypatch: pytest.MonkeyPatch):
    assert desk.is_dir()
    monkeypatch.setenv("LLAVA_OLLAMA_TIMEOUT", "0.2")
    with stand_in("silent") as host:
        done = call("demo", "--host", host)
    assert done.stderr.splitlines() == [
        f"the daemon at {host} did not answer within 0.2 seconds",
        "tiny-llava through llama.cpp in this process:",
        TURNED,
        SHOWN,
    ]


EVIL = "a\x1b]0;x\x07\x9b1m\x7f\r\n\tb"


def test_nothing_from_elsewhere_steers_the_terminal(capsys: pytest.CaptureFixture[str]):
    out, shown = Output(colour=False), "a\\x1b]0;x\\x07\\x9b1m\\x7f\\x0d"
    out.result(None, EVIL)
    out.piece(EVIL)
    out.result(None, out.table([EVIL], [[EVIL]]))
    out.result(None, out.findings([Finding(EVIL, "error", EVIL, EVIL)]))
    for say in (out.note, out.reporter().note):
        say(EVIL)
    out.error(EVIL, EVIL)
    Bars(colour=False).note(EVIL)
    said = "".join(capsys.readouterr())
    assert shown in said
    assert set(said) - set("\n\t") == {char for char in said if char.isprintable()}
    Output(json=True).result({"text": EVIL})
    said = capsys.readouterr().out
    assert json.loads(said) == {"text": EVIL}
    assert all(char.isprintable() or char == "\n" for char in said)


@pytest.mark.usefixtures("desk")
def test_an_odd_name_fails_nothing_else():
    with stand_in("odd names") as host:
        listed = call("list", "--host", host).stdout
        assert "a b\\x1b]0;x\\x07" in listed
        done = call("doctor", "--host", host)
    assert "Ollama 0.24.0 answers" in done.stdout
    assert "bytes: this daemon keeps the bytes it is given" in done.stdout


def test_the_cause_of_a_failed_download_has_no_address():
    secret = LlavaOllamaError("https://x/?Signature=secret")
    assert _cause(DownloadError("x"), secret) == "LlavaOllamaError"
    assert _cause(LlavaOllamaError("x"), OSError("why")) == "OSError: why"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_is_asked_to_end_clears_up(number: signal.Signals, desk: Path):
    with stand_in("silent", on_request=lambda: process.send_signal(number)) as host:
        process = subprocess.Popen(
            [*PROGRAM, "show", "x", "--host", host], cwd=desk, stderr=subprocess.PIPE, text=True
        )
        said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (128 + number, "Error: interrupted\n")
    assert signal.getsignal(number) is signal.SIG_DFL
