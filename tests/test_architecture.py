"""The house's rules: what may import what, and who owns which foreign library."""

import ast
import sys
from pathlib import Path

import pytest

import llava_ollama

PACKAGE = Path(llava_ollama.__file__).parent
LAYERS = """
errors progress findings untrusted
settings resources package locks whole
schema records gguf modelfile images prompts daemon_errors
catalog shown
weights daemon
ledger store presence
engine swap transfer
ways preflight
planning turns pins quarantine
inventory results
verify supply doctor_store
install in_process doctor chat repair extract
client
async_client compare
batch
export gallery
__init__ tiny
cli testing
__main__
"""
"""Imports go down: a room may use those on the lines above its own."""
OWNERS = {
    "PIL": "images/ tiny/",
    "click": "cli/",
    "filelock": "locks.py weights/download.py",
    "httpx": "daemon.py daemon_errors.py engine/",
    "httpx2": "weights/hub_errors.py",
    "huggingface_hub": "weights/",
    "jinja2": "modelfile.py",
    "jsonschema referencing": "schema.py",
    "ollama": "engine/ollama.py",
    "pyarrow": "export/parquet.py",
    # ollama-python lets its errors through.
    "pydantic": "extract.py engine/ollama.py",
    "pytest": "testing/plugin.py",
    "ray": "batch/crew.py",
    "rich": "cli/bars.py cli/watching.py",
    "sqlite3": "ledger.py batch/journal/ batch/thumbnails.py",
    "tenacity": "weights/download.py engine/persistent.py cli/answering.py",
    "xllamacpp": "engine/embedded.py",
    # Where it is read, hidden from an `import ollama` that fails of it, asked for NO_COLOR, and
    # handed on to a daemon.
    "os.environ os.getenv": "settings.py engine/ollama.py cli/app.py testing/daemons.py",
    "print input exit sys.exit": "nowhere",
}
LEVEL = {room: level for level, line in enumerate(LAYERS.split("\n")) for room in line.split()}
PLACES = {name: places.split() for names, places in OWNERS.items() for name in names.split()}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_a_file_keeps_the_rules_of_the_house(path: Path):
    file = path.relative_to(PACKAGE).as_posix()
    room = file.split("/")[0].removesuffix(".py")
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 320
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom | ast.Import):
            origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for first, _, rest in ((origin + n.name).partition(".") for n in node.names):
                other = rest.split(".")[0]
                if first == "llava_ollama" and other not in {room, "__version__"}:
                    assert LEVEL[other] < LEVEL[room], f"{file} imports {other}"
                elif first in PLACES or first not in sys.stdlib_module_names | {"llava_ollama"}:
                    assert file.startswith(tuple(PLACES[first])), f"{file} imports {first}"
        elif isinstance(node, ast.Attribute | ast.Name) and (said := ast.unparse(node)) in PLACES:
            assert file.startswith(tuple(PLACES[said])), f"{file} uses {said}"
