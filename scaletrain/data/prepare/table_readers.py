"""Readers of parquet files and of datasets (a folder that save_to_disk wrote, or a hub name)."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from scaletrain.data.prepare.text_readers import missing_field
from scaletrain.data.prepare.units import Document, Findings, Reading, Source, Unit
from scaletrain.errors import DataError

HUB = "hf:"
_ROWS = 256  # rows in memory at once


def cut_parquet(sources: list[Source], reading: Reading, unit_bytes: int) -> Iterator[Unit]:
    """Consecutive row groups up to `unit_bytes` of file."""
    for source in sources:
        file = _parquet(source.name)
        if reading.field not in file.schema_arrow.names:
            raise missing_field(source.name, reading.field, file.schema_arrow.names)
        groups = file.metadata.num_row_groups
        each = max(1, source.bytes // max(1, groups))
        step = max(1, unit_bytes // each)
        for start in range(0, groups, step):
            stop = min(start + step, groups)
            yield Unit("parquet", (source.name,), start, stop, each * (stop - start))


def read_parquet(path: str, groups: tuple[int, int], reading: Reading, findings: Findings) -> Iterator[Document]:
    """A row a document; only the text column is read."""
    del findings  # parquet holds valid UTF-8 by definition; the library checks it
    batches = _parquet(path).iter_batches(_ROWS, range(*groups), columns=[reading.field])
    try:
        for batch in batches:
            yield from _texts(path, reading.field, batch.column(0).to_pylist())
    except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
        raise DataError(f"{path} is damaged ({str(error).splitlines()[0]}): copy it again") from error


def cut_datasets(sources: list[Source], reading: Reading, unit_bytes: int) -> Iterator[Unit]:
    """Ranges of rows of about `unit_bytes`."""
    for source in sources:
        rows = len(load_rows(source.name, reading.dataset_split, reading.field))
        step = max(1, unit_bytes * rows // max(1, source.bytes))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield Unit("datasets", (source.name,), start, stop, source.bytes * (stop - start) // rows)


def read_datasets(name: str, numbers: tuple[int, int], reading: Reading, findings: Findings) -> Iterator[Document]:
    """A row a document."""
    del findings
    rows = load_rows(name, reading.dataset_split, reading.field)
    first, stop = numbers
    for start in range(first, stop, _ROWS):
        batch = rows[start : min(start + _ROWS, stop)]
        yield from _texts(name, reading.field, batch[reading.field])


@lru_cache(maxsize=4)
def load_rows(name: str, split: str, field: str) -> Any:
    """The split's rows with the text column alone; opened once a process."""
    import datasets  # here: 0.6 s that no other input needs

    try:
        if name.startswith(HUB):
            path, _, config = name.removeprefix(HUB).partition(":")
            rows: Any = datasets.load_dataset(path, config or None, split=split)
        else:
            rows = datasets.load_from_disk(name)
    except (ValueError, OSError, KeyError) as error:  # names, splits, network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"datasets cannot load {name} (split {split!r}): {reason}") from error
    if isinstance(rows, dict):
        if split not in rows:
            raise DataError(f"{name} has no split {split!r}, it has {', '.join(rows)}: choose with --dataset-split")
        rows = rows[split]
    if field not in rows.column_names:
        raise missing_field(name, field, rows.column_names)
    return rows.select_columns([field])


def _parquet(path: str) -> Any:
    import pyarrow.parquet  # here: 0.1 s that no other input needs

    try:
        return pyarrow.parquet.ParquetFile(Path(path))
    except ValueError as error:
        raise DataError(f"{path} is no parquet file ({str(error).splitlines()[0]}): copy it again") from error


def _texts(name: str, field: str, values: list[Any]) -> Iterator[Document]:
    for value in values:
        if value is not None and not isinstance(value, str):
            raise DataError(f"{name} field {field!r} is a {type(value).__name__}, no text: choose with --field")
        yield Document((value or "",))
