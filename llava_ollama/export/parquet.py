"""`parquet`: the columns of `jsonl`, for pandas, Polars and DuckDB. The owner of pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llava_ollama.errors import EngineUnavailable
from llava_ollama.export.doors import Table
from llava_ollama.export.interface import Format, Result, Rows
from llava_ollama.export.jsonl import COLUMNS, columns

_ROWS, _BYTES = 20_000, 32 << 20
"""Of a row group, which is held in memory; answers may be long."""


@dataclass(frozen=True)
class Parquet:
    """One file of row groups."""

    folder: Path
    format: Format = "parquet"

    def plan(self, rows: Rows) -> None:
        """See that pyarrow is here."""
        _library()
        self._table.plan(rows)

    def write(self, rows: Rows) -> Result:
        """Write the file."""
        return self._table.write(rows)

    @property
    def _table(self) -> Table:
        return Table(self.format, self.folder, _fill, b"PAR1")


def _fill(file: BinaryIO, rows: Rows) -> None:
    pa, pq = _library()
    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(rows):
            writer.write_table(pa.table(group, schema=schema))


def _groups(rows: Rows) -> Iterator[dict[str, list[Any]]]:
    group: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    size = 0
    for row in rows():
        for name, value in columns(row).items():
            group[name].append(_storable(value))
        size += len(row.text) + len(row.prompt)
        if len(group["path"]) == _ROWS or size > _BYTES:
            yield group
            group, size = {name: [] for name in COLUMNS}, 0
    if group["path"]:
        yield group


def _storable(value: Any) -> Any:
    """Return a text as Parquet takes it; a byte of a name that is not UTF-8 becomes an escape."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _library() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise EngineUnavailable(
            "`parquet` needs pyarrow, which is not installed",
            hint="Run `pip install 'llava-ollama[parquet]'`, or export `--format jsonl`",
        ) from exc
    return pa, pq
