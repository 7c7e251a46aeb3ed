"""Modelfiles: text and back, hostile values, and Ollama's own parser on both daemons."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_ollama import catalog, install, modelfile, resources
from llava_ollama.daemon import Daemon
from llava_ollama.errors import TemplateError, UsageProblem
from llava_ollama.modelfile import Instruction, Modelfile
from llava_ollama.package import PARAMETER_TYPES
from tests.daemons.running import RunningDaemon

QUOTES = '"""'
LLAMA3 = modelfile.chat_template()


def made(**changes) -> Modelfile:
    return Modelfile(
        **{"model": "./m.gguf", "projector": "./p.gguf", "template": LLAMA3, **changes}
    )


def test_the_published_models_modelfile_is_the_cards():
    known = catalog.load()
    for quant in ("int4", "f16"):
        text = modelfile.render(install.from_catalog(known, "llava-llama3", quant).words())
        assert text.split("\n")[:2] == [
            f"FROM ./llava-llama-3-8b-v1_1-{quant}.gguf",
            "FROM ./llava-llama-3-8b-v1_1-mmproj-f16.gguf",
        ]
        assert text.rpartition(QUOTES)[2].strip().split("\n") == [
            'PARAMETER stop "<|start_header_id|>"',
            'PARAMETER stop "<|end_header_id|>"',
            'PARAMETER stop "<|eot_id|>"',
            "PARAMETER num_keep 4",
            "PARAMETER num_ctx 4096",
        ]
        committed = resources.find(f"modelfiles/OLLAMA_MODELFILE_{quant.upper()}")
        assert committed.read_text(encoding="utf-8") == text, "run `make modelfiles`"


def test_the_chat_template_is_text_of_ours_alone():
    hostile = made(system="{{ .Evil }}", parameters={"stop": ("{{ .Evil }}",)})
    assert modelfile.parse(modelfile.render(hostile)).template == LLAMA3
    assert "Evil" not in LLAMA3


# --- text and back

awkward = st.sampled_from(
    [
        *(
            '"',
            '""',
            "'",
            "{{",
            "}}",
            "{%",
            "{#",
            "%}",
            "\\",
            "#",
            " ",
            "~",
            "[",
            "FROM x",
            "SYSTEM",
        ),
        *("ß", "漢", "😀", "e\u0301", "\u05d0", "<|eot_id|>", "</s>", "$HOME", "a"),
    ]
)
printable = awkward | st.characters(exclude_categories=("C", "Z"))
unwritable = st.sampled_from(
    [QUOTES, "\r", "\x00", "\x1b", "\x85", "\u200b", "\u2028", "\xa0", "\u3000", "\ud800", "\ue000"]
)


def text_of(piece: st.SearchStrategy[str], least: int = 0) -> st.SearchStrategy[str]:
    joined = st.lists(piece, min_size=least, max_size=8).map("".join)
    return joined.filter(lambda text: QUOTES not in text)


paths = text_of(printable, 1)
words = text_of(printable | st.sampled_from(["\n", "\t"]))
values: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**53), 2**53),
    float: st.floats(-(2**53), 2**53),
    bool: st.booleans(),
    tuple: st.lists(words.filter(bool), min_size=1, max_size=3).map(tuple),
}
writable = st.builds(
    Modelfile,
    model=paths,
    projector=paths,
    template=words,
    system=words,
    parameters=st.fixed_dictionaries(
        {}, optional={name: values[kind] for name, kind in PARAMETER_TYPES.items()}
    ),
)


@given(writable)
def test_what_is_written_is_read_again(x):
    assert modelfile.parse(modelfile.render(x)) == x


@given(
    writable,
    st.tuples(words, unwritable, words).map("".join),
    st.sampled_from(["system", "template", "stop"]),
)
def test_what_the_grammar_has_no_words_for_is_refused(x, text, where):
    change: dict[str, Any] = (
        {"parameters": {**x.parameters, "stop": ("a", text)}} if where == "stop" else {where: text}
    )
    with pytest.raises(TemplateError):
        modelfile.render(dataclasses.replace(x, **change))


@given(writable, st.tuples(paths, st.sampled_from("\n\t\r\x00\u200b\xa0"), paths).map("".join))
def test_a_path_that_cannot_stand_on_a_line_is_refused(x, path):
    with pytest.raises(TemplateError):
        modelfile.render(dataclasses.replace(x, projector=path))


@pytest.mark.parametrize(
    "text", ['"x', '""x', '" x "', '"', '""', 'x"', ' x"', " x ", "x", "~", "a b", "#", "[x"]
)
def test_a_path_is_read_again(text):
    x = made(model=text, projector=text)
    assert modelfile.parse(modelfile.render(x)) == x


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"system": f"a {QUOTES} b"}, "system prompt"),
        ({"template": f"{{{{ {QUOTES} }}}}"}, "template"),
        ({"parameters": {"stop": (QUOTES,)}}, "parameter"),
        ({"system": "a\x00b"}, "U+0000"),
        ({"system": "a\rb"}, "U+000D"),
        ({"system": "zero\u200bwidth"}, "U+200B"),
        ({"system": "half \ud83d"}, "U+D83D"),
        ({"model": "a\nFROM b"}, "U+000A"),
        ({"projector": "a\tb"}, "U+0009"),
        ({"model": ""}, "FROM"),
        ({"model": f'"{QUOTES}'}, "file name"),
    ],
)
def test_what_cannot_be_written_is_told(changes, said):
    with pytest.raises(TemplateError) as caught:
        modelfile.render(made(**changes))
    assert said in caught.value.message
    assert caught.value.hint


def test_a_wrong_parameter_is_told():
    with pytest.raises(UsageProblem, match="num_ctxx"):
        modelfile.render(made(parameters={"num_ctxx": 1}))


# --- reading as Ollama reads


def test_instructions_are_read_as_ollamas_parser_reads_them():
    text = (
        '# comment "with a quote\n\n'
        "  from ./a b.gguf  \r\n"
        "FROM\t./p.gguf\r"
        f'SYSTEM {QUOTES}  two\r\n"lines"{QUOTES}\n'
        'parameter stop "a "b" c"\n'
        "PARAMETER stop x\u200by\n"
        "MESSAGE user hello\n"
        'LICENSE ""'
    )
    assert list(modelfile.instructions(text)) == [
        Instruction("FROM", "./a b.gguf"),
        Instruction("FROM", "./p.gguf"),
        Instruction("SYSTEM", '  two\r\n"lines"'),
        Instruction("PARAMETER", 'a "b" c', "stop"),
        Instruction("PARAMETER", "xy", "stop"),
        Instruction("MESSAGE", "user hello"),
        Instruction("LICENSE", ""),
    ]


def test_the_last_of_a_parameter_counts_and_stops_add_up():
    read = modelfile.parse(
        "FROM m\nFROM p\nPARAMETER seed 1\nPARAMETER seed 2\nPARAMETER stop a\nPARAMETER stop b"
    )
    assert read.parameters == {"seed": 2, "stop": ("a", "b")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "two FROM"),
        ("FROM a", "this one has 1"),
        ("FROM a\nFROM b\nFROM c", "this one has 3"),
        ("FROM a\nFROM b\nSYSTEN x", "SYSTEN"),
        ("FROM a\nFROM b\nPARAMETER", "parameter"),
        ("FROM a\nFROM b\nPARAMETER st-op x", "st-op"),
        ('FROM a\nFROM b\nSYSTEM "x', "never ends"),
        (f"FROM a\nFROM b\nSYSTEM {QUOTES}x\n\n", "never ends"),
    ],
)
def test_what_is_no_modelfile_is_told(text, said):
    with pytest.raises(TemplateError, match=said):
        modelfile.parse(text)


def test_the_sources_are_read_whatever_comes_after_them():
    text = '# FROM x:latest\n\nFROM /m/blobs/sha256-1\nFROM /m/b c\nSYSTEM "unclosed\nFROM evil'
    assert modelfile.sources(text) == ["/m/blobs/sha256-1", "/m/b c"]
    assert modelfile.sources("") == []


# --- Ollama's own parser

TINY = catalog.load().entry("tiny-llava")
HOSTILE = [
    # system prompt, file name, stop
    ("plain", "model.gguf", "</s>"),
    ('say "hi"', "with space.gguf", 'a "quoted" stop'),
    ('"begins so', "two  spaces and.dots.gguf", '"begins'),
    ('""begins so', "quo'te.gguf", 'ends"'),
    ('ends so"', 'quo"te.gguf', "new\nline"),
    ("one\ntwo\n\nthree", "#hash.gguf", "\ttab\t"),
    ("  outer space  ", " outer space ", " "),
    ("\n\nouter lines\n", '"begins.gguf', "\n\n"),
    ("{{ .System }}{{ end }}{{", "{{ name }}.gguf", "{{ .Prompt }}"),
    ("{% raw %}{# no #}", "{% x %}.gguf", "{#"),
    ("FROM /etc/passwd\nPARAMETER num_ctx 1", "FROM x.gguf", "PARAMETER"),
    ("# no comment", "näme-漢字-😀.gguf", "漢😀"),
    ("tab\there, back\\slash\\n, 100 %s $HOME `ls`", "brackets[1].gguf", "\\n"),
    ("ß e\u0301 漢字 😀 \u05e2\u05d1\u05e8\u05d9\u05ea \u0661", "e\u0301.gguf", "e\u0301"),
    ("<|eot_id|><|start_header_id|>", "<|x|>.gguf", "<|x|>"),
    ("'single' and ''", "'single'.gguf", "'"),
    ('"whole"', "~tilde.gguf", '""'),
]


@pytest.mark.ollama
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: repr(hostile[0])[:30])
def test_ollama_reads_what_we_write(ollama: RunningDaemon, daemon: Daemon, tmp_path, hostile):
    system, file, stop = hostile
    (tmp_path / "a folder").mkdir()
    model, projector = TINY.model("int4")[1], TINY.projector
    shutil.copy(str(model.path), tmp_path / "a folder" / file)
    x = Modelfile(
        model=f"./a folder/{file}",
        projector=str(projector.path),
        template=LLAMA3,
        system=system,
        parameters={"stop": (stop, "<|eot_id|>"), "num_ctx": 4096, "temperature": 0.7},
    )
    (tmp_path / "Modelfile").write_text(modelfile.render(x), encoding="utf-8")
    name = f"hostile-{uuid4().hex[:8]}"
    ollama.cli("create", name, "-f", "Modelfile", cwd=tmp_path)
    try:
        shown = daemon.show(name)
        assert shown.template == x.template
        assert shown.system == x.system
        assert shown.parameters == x.parameters
        assert set(shown.sources) == {model.sha256, projector.sha256}
        assert shown.has_vision
    finally:
        daemon.delete(name)


@pytest.mark.ollama
@pytest.mark.parametrize("quant", ["int4", "f16"])
def test_the_committed_modelfiles_work_beside_the_cards_files(
    ollama: RunningDaemon, daemon: Daemon, tmp_path: Path, quant
):
    published = catalog.load().entry("llava-llama3")
    ours = TINY.model(quant)[1]
    shutil.copy(str(ours.path), tmp_path / published.model(quant)[1].name)
    shutil.copy(str(TINY.projector.path), tmp_path / published.projector.name)
    shutil.copy(resources.find(f"modelfiles/OLLAMA_MODELFILE_{quant.upper()}"), tmp_path)
    name = f"card-{quant}-{uuid4().hex[:8]}"
    # The card's own command.
    ollama.cli("create", name, "-f", f"./OLLAMA_MODELFILE_{quant.upper()}", cwd=tmp_path)
    try:
        shown = daemon.show(name)
        assert set(shown.sources) == {ours.sha256, TINY.projector.sha256}
        assert shown.has_vision
        assert shown.template == LLAMA3
        assert shown.parameters == catalog.LLAMA3_PARAMETERS
    finally:
        daemon.delete(name)
