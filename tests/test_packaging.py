"""What is shipped: the exact files of wheel and sdist, and that they work where they land."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from llava_ollama import __version__

ROOT = Path(__file__).parent.parent
STEM = f"llava_ollama-{__version__}"
PACKAGE = """
llava_ollama: __init__ __main__ async_client catalog catalog.toml chat client compare daemon
llava_ollama: daemon_errors doctor doctor_store errors extract findings in_process install
llava_ollama: inventory ledger locks modelfile package pins planning preflight presence progress
llava_ollama: prompts py.typed quarantine records repair resources results schema
llava_ollama: settings shown supply swap turns untrusted verify ways whole
llava_ollama/batch/journal: __init__ changes config database feed filling intake journal
llava_ollama/batch/journal: leases place reading writer
llava_ollama/batch: __init__ asking bell breaker canary captioner cluster crew events
llava_ollama/batch: failures held hosts keeper levels local nodes outcomes pace pictures relay
llava_ollama/batch: requests roster run runner sources tally thumbnails watch work
llava_ollama/cli: __init__ app ask bars batch compare complete completion demo doctor export files
llava_ollama/cli: frame inspect install inventory look output question status verify watching
llava_ollama/cli: answering gallery
llava_ollama/engine: __init__ completion connection embedded interface llamacpp ollama
llava_ollama/engine: persistent
llava_ollama/export: __init__ csv doors interface jsonl openai outline packet parquet sidecars
llava_ollama/export: targets txt xmp
llava_ollama/gallery: __init__ build index scripts
llava_ollama/gguf: __init__ changes checks layout mend reader summary
llava_ollama/images: __init__ arrays colours pixels signatures small sources square
llava_ollama/store: __init__ folder manifests search
llava_ollama/testing: __init__ daemons keeper pictures plugin servers sight
llava_ollama/tiny: CARD.md __init__ check demo shapes tiny-llava-f16.gguf tiny-llava-int4.gguf
llava_ollama/tiny: tiny-llava-mmproj-f16.gguf
llava_ollama/transfer: __init__ interface link pull sources upload
llava_ollama/weights: __init__ download hashing hub hub_errors local mended values
"""
"""One folder a line: its files, those of Python without their ending."""
DATA = {
    "modelfiles/OLLAMA_MODELFILE_F16",
    "modelfiles/OLLAMA_MODELFILE_INT4",
    "templates/Modelfile.jinja",
    "templates/gallery/gallery.css",
    "templates/gallery/gallery.js",
    "templates/gallery/index.html",
    "templates/llama3-instruct.gotmpl",
    "templates/llama3-instruct.jinja",
}
TOP = {
    *(".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "PKG-INFO", "README.md"),
    "pyproject.toml",
}


def _package_files() -> set[str]:
    files = set()
    for line in PACKAGE.strip().splitlines():
        folder, _, names = line.partition(":")
        files |= {f"{folder}/{n if '.' in n else f'{n}.py'}" for n in names.split()}
    return files


@dataclass(frozen=True)
class Place:
    """Somewhere the package has landed, and how Python is started to find it there."""

    python: str
    home: Path
    path: Path | None = None

    def run(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.path or "")}
        done = subprocess.run(
            [self.python, *arguments],
            env=environment,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it."""
    folder = tmp_path_factory.mktemp("built")
    # No isolation: hatchling is here, and an index may not be.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module", params=["wheel", "sdist", "editable"])
def place(
    request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    folder = tmp_path_factory.mktemp("place").resolve()
    if request.param == "editable":
        return Place(sys.executable, ROOT / "llava_ollama")
    if request.param == "sdist":
        with tarfile.open(built / f"{STEM}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        return Place(sys.executable, folder / STEM / "llava_ollama", folder / STEM)
    return _installed(built / f"{STEM}-py3-none-any.whl", folder)


def _installed(wheel: Path, folder: Path) -> Place:
    """Install the wheel into a fresh environment that borrows the libraries of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # The path only: .pth files in there, such as that of the editable install, do not count.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Place(python, site / "llava_ollama")


def test_the_wheel_holds_exactly_these_files(built: Path):
    with zipfile.ZipFile(built / f"{STEM}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert (built / f"{STEM}-py3-none-any.whl").stat().st_size < 12e6
    assert names == (
        _package_files()
        | {f"llava_ollama/_data/{name}" for name in DATA}
        | {f"{STEM}.dist-info/{name}" for name in about}
    )


def test_the_sdist_holds_exactly_these_files(built: Path):
    with tarfile.open(built / f"{STEM}.tar.gz") as archive:
        names = {m.name.removeprefix(f"{STEM}/") for m in archive.getmembers() if m.isfile()}
    found = (*ROOT.glob("tests/**/*.py"), *ROOT.glob("tests/**/*.json"))
    tests = {path.relative_to(ROOT).as_posix() for path in found}
    assert names == _package_files() | DATA | TOP | tests


def test_the_data_files_are_found_and_render_where_the_package_landed(place: Place):
    where = place.run("-c", "import llava_ollama; print(llava_ollama.__file__)").strip()
    assert where == str(place.home / "__init__.py")
    find = "from llava_ollama import resources; [print(resources.find(n)) for n in {!r}]"
    found = place.run("-c", find.format(sorted(DATA))).split()
    assert [path.rpartition("/")[2] for path in found] == [Path(n).name for n in sorted(DATA)]
    for quant in ("int4", "f16"):
        text = place.run("-m", "llava_ollama", "render", "llava-llama3", "--quant", quant)
        committed = ROOT / "modelfiles" / f"OLLAMA_MODELFILE_{quant.upper()}"
        assert text == committed.read_text(encoding="utf-8")


def test_the_installed_wheel_has_its_program_and_its_weights(built: Path, tmp_path: Path):
    place = _installed(built / f"{STEM}-py3-none-any.whl", tmp_path / "fresh")
    program = Path(place.python).parent / "llava-ollama"
    done = subprocess.run([program, "render"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("FROM ./llava-llama-3-8b-v1_1-int4.gguf\n")
    files = place.run("-m", "llava_ollama", "download", "tiny-llava").splitlines()
    assert len(files) == 2
    assert all(line.startswith(str(place.home)) for line in files)
