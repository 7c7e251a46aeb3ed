"""The header reader beside the `gguf` package, on damaged files, and within its bounds."""

from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gguf
import numpy as np
import pytest

from llava_ollama import resources
from llava_ollama.errors import GGUFError
from llava_ollama.gguf.layout import TENSOR_TYPES, Array
from llava_ollama.gguf.reader import Header, read
from tests.memory import peak

if TYPE_CHECKING:
    from collections.abc import Iterator

TINY = ("tiny-llava-f16.gguf", "tiny-llava-int4.gguf", "tiny-llava-mmproj-f16.gguf")
KINDS = gguf.GGUFValueType
RANGES = {
    KINDS.UINT8: (0, 2**8 - 1),
    KINDS.INT8: (-(2**7), 2**7 - 1),
    KINDS.UINT16: (0, 2**16 - 1),
    KINDS.INT16: (-(2**15), 2**15 - 1),
    KINDS.UINT32: (0, 2**32 - 1),
    KINDS.INT32: (-(2**31), 2**31 - 1),
    KINDS.UINT64: (0, 2**64 - 1),
    KINDS.INT64: (-(2**63), 2**63 - 1),
}
QUANTS = (
    gguf.GGMLQuantizationType.Q4_0,
    gguf.GGMLQuantizationType.Q4_K,
    gguf.GGMLQuantizationType.Q6_K,
    gguf.GGMLQuantizationType.Q8_0,
    gguf.GGMLQuantizationType.IQ4_XS,
    gguf.GGMLQuantizationType.BF16,
    gguf.GGMLQuantizationType.MXFP4,
)
DTYPES = (np.float32, np.float16, np.float64, np.int8, np.int16, np.int32, np.int64)


def same_as_package(path: Path) -> None:
    ours, theirs = read(path), gguf.GGUFReader(path)
    fields = {name: f.contents() for name, f in theirs.fields.items() if name[:5] != "GGUF."}
    mine = {k: list(v) if isinstance(v, Array) else v for k, v in ours.metadata.items()}
    assert mine == fields
    assert list(mine) == list(fields)
    assert {k: type(v) for k, v in mine.items()} == {k: type(v) for k, v in fields.items()}
    assert (ours.alignment, ours.data_offset) == (theirs.alignment, theirs.data_offset)
    assert [(t.name, t.shape, t.type, t.offset, t.size) for t in ours.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.data_offset, t.n_bytes)
        for t in theirs.tensors
    ]


@pytest.mark.parametrize("name", TINY)
def test_bundled_files_read_as_the_package_reads_them(name: str) -> None:
    same_as_package(resources.bundled(name))


def scalar(rng: random.Random, kind: gguf.GGUFValueType) -> Any:
    if kind == KINDS.STRING:
        return "".join(rng.choice("aé€𝄞 \n\0<|>") for _ in range(rng.randrange(1, 30)))
    if kind == KINDS.BOOL:
        return rng.random() < 0.5
    if kind == KINDS.FLOAT32:
        return float(np.float32(rng.uniform(-1e9, 1e9)))
    if kind == KINDS.FLOAT64:
        return rng.uniform(-1e99, 1e99)
    return rng.randint(*RANGES[kind])


def random_file(rng: random.Random, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    if rng.random() < 0.5:
        writer.add_custom_alignment(rng.choice((8, 32, 64, 4096)))
    scalars = [kind for kind in KINDS if kind != KINDS.ARRAY]
    for number in range(rng.randrange(30)):
        kind = rng.choice(scalars)
        if rng.random() < 0.4:
            values = [scalar(rng, kind) for _ in range(rng.randrange(1, 40))]
            writer.add_key_value(f"a.{number}é", values, KINDS.ARRAY, sub_type=kind)
        else:
            writer.add_key_value(f"k.{number}", scalar(rng, kind), kind)
    for number in range(rng.randrange(12)):
        shape = tuple(rng.randrange(1, 5) for _ in range(rng.randrange(1, 4)))
        if rng.random() < 0.5:
            writer.add_tensor(f"t.{number}", np.zeros(shape, dtype=rng.choice(DTYPES)))
            continue
        quant = rng.choice(QUANTS)
        _, width = gguf.GGML_QUANT_SIZES[quant]
        data = np.zeros((*shape, rng.randrange(1, 4) * width), dtype=np.uint8)
        writer.add_tensor(f"q.{number}", data, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_generated_files_read_as_the_package_reads_them(tmp_path: Path) -> None:
    rng = random.Random(1)
    for number in range(200):
        path = tmp_path / f"{number}.gguf"
        random_file(rng, path)
        same_as_package(path)
        path.unlink()


def test_sizes_of_tensor_types_are_the_package_s() -> None:
    table = TENSOR_TYPES
    package = {
        kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGML_QUANT_SIZES
    }
    assert {kind: package[kind] for kind in table} == table
    assert {package[kind][0] for kind in package.keys() - table.keys()} == {"Q8_1"}


# A small file made byte by byte, for what the package cannot write.


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, data: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + data


def info(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dims + struct.pack("<IQ", kind, offset)


def build(
    keys: list[bytes], infos: list[bytes] | None = None, data: int = 0, version: int = 3
) -> bytes:
    infos = infos or []
    start = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(keys))
    start += b"".join(keys) + b"".join(infos)
    return start + bytes(-len(start) % 32) + bytes(data)


ARCHITECTURE = key("general.architecture", 8, string("llama"))
SMALL = build(
    [
        ARCHITECTURE,
        *(key(f"n{kind}", kind, bytes(size)) for kind, size in ((0, 1), (5, 4), (7, 1), (12, 8))),
        key("words", 9, struct.pack("<IQ", 8, 3) + string("a") + string("") + string("ccc")),
        key("numbers", 9, struct.pack("<IQ", 3, 4) + bytes(8)),
    ],
    [info("one", (4, 2), 0, 0), info("two", (32,), 2, 32), info("new", (5,), 99, 64)],
    data=100,
)


def refused(path: Path) -> GGUFError:
    with pytest.raises(GGUFError) as caught:
        read(path)
    assert caught.value.message.startswith(f"`{path}` ")
    assert not caught.value.message.endswith(".")
    assert caught.value.hint
    return caught.value


def test_small_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(SMALL)
    header = read(path)
    words, numbers = header.array("words"), header.array("numbers")
    assert words is not None
    assert numbers is not None
    assert (words[2], words[-3], list(words[1:])) == ("ccc", "a", ["", "ccc"])
    assert (tuple(numbers), len(numbers), 0 in numbers) == ((0, 0, 0, 0), 4, True)
    assert (words.positions("ccc"), words.positions("c"), numbers.positions("a")) == ((2,), (), ())
    assert (repr(words), repr(numbers)) == ("<3 strings>", "<4 numbers>")
    assert [(t.type, t.size) for t in header.tensors] == [
        ("F32", 32),
        ("Q4_0", 18),
        ("type 99", 36),
    ]
    assert header.text("general.architecture") == "llama"
    assert (header.text("words"), header.integer("n7"), header.integer("n0")) == (None, None, 0)
    assert header.tensor("two") == header.tensors[1]
    assert header.tensor("three") is None


def test_version_2_is_the_same_and_empty_arrays_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    empty = [key(f"e{kind}", 9, struct.pack("<IQ", kind, 0)) for kind in (0, 8)]
    path.write_bytes(build([ARCHITECTURE, *empty], version=2))
    header = read(path)
    assert header.version == 2
    assert [list(header.array(name) or ()) for name in ("e0", "e8")] == [[], []]
    assert header.tensors == ()


NOT_GGUF = {
    "page": (b"\n<!DOCTYPE html><title>Sign in", "It is a web page that a server sent instead"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "It is a Git LFS pointer: run `git"),
    "json": (b'{"error":"not found"}', "It is JSON text, perhaps a server's error message"),
    "old": (b"tjgg\3\0\0\0", "It is of the format before GGUF: convert the model again"),
    "zip": (b"PK\3\4....", "It is a zip archive or a PyTorch checkpoint: a GGUF file is needed"),
    "tensors": (b'\x40\0\0\0\0\0\0\0{"__meta', "It is a safetensors file: a GGUF file is needed"),
    "other": (b"GGU\0abcd", "It starts with the bytes 47 47 55 00 61 62 63 64, not with GGUF"),
    "short": (b"GG", "It starts with the bytes 47 47, not with GGUF"),
}


@pytest.mark.parametrize("case", NOT_GGUF)
def test_what_is_not_gguf_is_named(tmp_path: Path, case: str) -> None:
    content, hint = NOT_GGUF[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    error = refused(path)
    assert error.message == f"`{path}` is not a GGUF file"
    assert (error.hint or "").startswith(hint)


LIMIT = struct.pack("<Q", 2**63)
DAMAGED = {
    "keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 10**15), "claims 1,000,000,000,000,000 keys"),
    "tensors": (b"GGUF" + struct.pack("<IQQ", 3, 10**6, 0), "and 1,000,000 tensors"),
    "twice": (build([ARCHITECTURE, ARCHITECTURE]), "has the key `general.architecture` twice"),
    "type": (build([key("k", 13, bytes(8))]), "the key `k` has the unknown type 13"),
    "nested": (build([key("k", 9, struct.pack("<IQ", 9, 1))]), "an array of the unknown type 9"),
    "strings": (build([key("k", 9, struct.pack("<IQ", 8, 2**50))]), "claims 1,125,899,906,842,624"),
    "many strings": (
        build([key("k", 9, struct.pack("<IQ", 8, (1 << 22) + 1) + bytes(34 << 20))]),
        "the key `k` claims 4,194,305 strings",
    ),
    "name": (build([LIMIT]), "key 1 has a name of 9,223,372,036,854,775,808 bytes"),
    "utf-8": (build([struct.pack("<Q", 1) + b"\xff"]), "the name of key 1 is not UTF-8"),
    "dimensions": (build([], [info("t", (1,) * 5, 0, 0)]), "the tensor `t` has 5 dimensions"),
    "rows": (build([], [info("t", (33,), 2, 0)], 64), "the tensor `t` is Q4_0 with rows of 33"),
    "offset": (build([], [info("t", (1,), 0, 4)], 64), "`t` is not aligned to 32 bytes"),
    "overlap": (
        build([], [info("t", (9,), 0, 0), info("u", (1,), 0, 32)], 64),
        "the tensors `t` and `u` overlap",
    ),
    "same": (
        build([], [info("t", (1,), 0, 0), info("t", (1,), 0, 32)], 64),
        "it has the tensor `t` twice",
    ),
    "alignment": (
        build([key("general.alignment", 4, struct.pack("<I", 48))]),
        "`general.alignment` is 48, not a power of two",
    ),
    "no alignment": (
        build([key("general.alignment", 8, string("32"))]),
        "`general.alignment` is `'32'`",
    ),
    "zero": (build([key("general.alignment", 4, bytes(4))]), "`general.alignment` is `0`"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    content, detail = DAMAGED[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    error = refused(path)
    assert error.message.startswith(f"`{path}` is damaged: ")
    assert detail in error.message
    assert error.hint == "Download the file again"


def test_truncated_files_say_how_much_is_there(tmp_path: Path) -> None:
    source = resources.bundled(TINY[0])
    path = tmp_path / "x.gguf"
    path.write_bytes(source.read_bytes()[:1_000_000])
    assert refused(path).message == (
        f"`{path}` is truncated: its tensors need {source.stat().st_size:,} bytes,"
        " the file has 1,000,000"
    )
    os.truncate(path, 5_000)
    assert "is truncated: its header needs at least 5," in refused(path).message
    os.truncate(path, 0)
    assert refused(path).message == f"`{path}` is empty"


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    # The last tensor's type is unknown: of its bytes only the beginning is known to be needed.
    needed = read_bytes(path, SMALL).tensors[2].offset
    for length in range(needed):
        path.write_bytes(SMALL[:length])
        refused(path)


def read_bytes(path: Path, content: bytes) -> Header:
    path.write_bytes(content)
    return read(path)


VERSIONS = {
    1: ("a GGUF file of version 1", "Convert the model again: versions 2 and 3 are supported"),
    4: ("a GGUF file of version 4", "Update llava-ollama: versions 2 and 3 are supported"),
    3 << 24: ("a big-endian GGUF file, which is not supported", "Convert it with gguf-convert-en"),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_other_versions_are_named(tmp_path: Path, version: int) -> None:
    message, hint = VERSIONS[version]
    path = tmp_path / "x.gguf"
    path.write_bytes(build([ARCHITECTURE], version=version))
    error = refused(path)
    assert error.message == f"`{path}` is {message}"
    assert (error.hint or "").startswith(hint)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert refused(tmp_path).message == f"`{tmp_path}` is a folder"
    assert refused(tmp_path / "x").message == f"`{tmp_path / 'x'}` does not exist"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert refused(pipe).message == f"`{pipe}` is not a regular file"
    below = tmp_path / "file" / "x"
    below.parent.write_bytes(SMALL)
    assert refused(below).message == f"`{below}` cannot be read: Not a directory"
    with pytest.raises(GGUFError, match="cannot be a path"):
        read(Path("a\0b"))


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user who may not read everything, also where the tests run as root."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(SMALL)
    path.chmod(0)
    with nobody():
        assert refused(path).message == f"`{path}` cannot be read: permission denied"


# Hostile bytes


def mutated(rng: random.Random, header: bytes) -> bytes:
    """Flip a byte, put a huge or odd number somewhere, or write a stretch of noise."""
    data, at = bytearray(header), rng.randrange(len(header))
    match rng.randrange(4):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at] = rng.randrange(256)
        case 2:
            edge = rng.choice((0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1, len(header)))
            data[at : at + 8] = struct.pack("<Q", edge)
        case _:
            data[at : at + 16] = rng.randbytes(16)
    return bytes(data[: len(header)])


def survives(path: Path) -> bool:
    """Read; whatever is accepted must lie inside the file."""
    try:
        header = read(path)
    except GGUFError:
        return False
    assert header.size == path.stat().st_size
    for tensor in header.tensors:
        assert tensor.offset >= header.data_offset
        assert tensor.offset + tensor.size <= header.size
    for value in header.metadata.values():
        assert not isinstance(value, Array) or len(tuple(value)) == len(value)
    return True


def large() -> bytes:
    """Return a file with as many words as Llama 3 has: a header of 7 MB."""
    words = {"tokens": 128_256, "merges": 280_147}
    arrays = [
        key(
            f"tokenizer.ggml.{name}",
            9,
            struct.pack("<IQ", 8, count)
            + b"".join(string(f"{name[0]}{number:06}") for number in range(count)),
        )
        for name, count in words.items()
    ]
    return build([ARCHITECTURE, *arrays], [info("one", (4, 2), 0, 0)], data=32)


class Survived(NamedTuple):
    accepted: int
    slowest: float
    """Seconds of this process for one file."""
    traced: int
    """Bytes that Python had at once; not measured of the large file."""
    peak: int
    """Bytes of the whole process."""


def read_mutants(name: str, rounds: int, seed: int, folder: str) -> Survived:
    """Read so many damaged headers of one file; for a process of its own, which it measures."""
    rng = random.Random(seed)
    path = Path(folder) / "x.gguf"
    made = {"small": lambda: SMALL, "large": large}
    whole = made[name]() if name in made else resources.bundled(name).read_bytes()
    header = whole[: read_bytes(path, whole).data_offset]
    accepted, slowest = 0, 0.0
    if name != "large":  # it would take ten times as long
        tracemalloc.start()
    for _ in range(rounds):
        length = len(whole) if rng.random() < 0.9 else rng.randrange(len(whole))
        os.truncate(path, length)
        with path.open("r+b") as file:
            file.write(mutated(rng, header)[:length])
        started = time.process_time()
        accepted += survives(path)
        slowest = max(slowest, time.process_time() - started)
    _, traced = tracemalloc.get_traced_memory()
    return Survived(accepted, slowest, traced, peak())


SOAK = pytest.mark.soak


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("small", 18_500),
        (TINY[2], 1_500),
        pytest.param("small", 90_500, marks=SOAK),
        pytest.param(TINY[2], 7_500, marks=SOAK),
        pytest.param(TINY[1], 2_000, marks=SOAK),
        pytest.param("large", 200, marks=SOAK),
    ],
    ids=str,
)
def test_mutated_headers_end_in_our_error(tmp_path: Path, name: str, rounds: int) -> None:
    seed = 7 if rounds < 20_000 else 8
    # What hangs in C code ends with the test's own time limit, which kills the process.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        done = pool.submit(read_mutants, name, rounds, seed, str(tmp_path)).result()
    # Both happen, or the test has gone blind.
    assert rounds // 50 < done.accepted < rounds * 9 // 10
    assert done.traced < 8 << 20
    assert done.peak < 200 << 20
    assert done.slowest < 1


HUGE = {
    "bytes": key("k", 9, struct.pack("<IQ", 0, 1 << 30)),
    "text": key("k", 8, struct.pack("<Q", 1 << 30)),
    "strings": key("k", 9, struct.pack("<IQQ", 8, 2, 1 << 30)),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_header_without_end_is_given_up(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(build([HUGE[case]]))
    os.truncate(path, 2 << 30)  # sparse: zeros without end, each eight of them an empty string
    started = time.process_time()
    assert refused(path).message == f"`{path}` is damaged: its header is larger than 64 MB"
    assert time.process_time() - started < 10


def test_a_text_inside_another_is_not_a_token(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    trap = string(string("<|eot_id|>").decode())
    words = key("words", 9, struct.pack("<IQ", 8, 1) + trap)
    array = read_bytes(path, build([words])).array("words")
    assert array is not None
    assert array.positions("<|eot_id|>") == ()
