"""Records of tables: CSV and TSV with a header row, and parquet."""

import csv
from collections.abc import Iterator
from pathlib import Path

from scaletrain.config.finetune_schema import FinetuneData
from scaletrain.data.examples.example import Fault
from scaletrain.data.examples.record import Record
from scaletrain.data.examples.text_file import NOT_UTF8, read_lines
from scaletrain.data.prepare.text_readers import MAX_DOCUMENT
from scaletrain.errors import DataError

_ROWS = 1024  # rows of parquet in memory at once, beside the examples


def read_csv(path: str, data: FinetuneData) -> Iterator[Record | Fault]:
    """A row a record; a place is the line where the row begins."""
    del data  # as the other readers
    return _read_rows(path, ",", is_quoted=True)


def read_tsv(path: str, data: FinetuneData) -> Iterator[Record | Fault]:
    """As CSV, with tabs. Some tools quote cells, some write quotes as they are: what gives fewer faults is right."""
    del data
    faults = _count_faults(path, is_quoted=True)
    return _read_rows(path, "\t", is_quoted=not faults or faults <= _count_faults(path, is_quoted=False))


def read_parquet(path: str, data: FinetuneData) -> Iterator[Record | Fault]:
    """A row a record; rows are counted from 0."""
    del data
    import pyarrow.parquet  # here: 0.1 s that no other format needs

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(Path(path)).iter_batches(_ROWS):
            for values in batch.to_pylist():
                yield Record(values, f"{path}:row {number}")
                number += 1
    except ValueError as error:  # ArrowInvalid is one
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is no parquet file or damaged ({reason}): copy it again") from error


def _count_faults(path: str, is_quoted: bool) -> int:
    return sum(isinstance(found, Fault) for found in _read_rows(path, "\t", is_quoted))


def _read_rows(path: str, delimiter: str, is_quoted: bool) -> Iterator[Record | Fault]:
    csv.field_size_limit(MAX_DOCUMENT)
    bad: set[int] = set()
    rows = csv.reader(
        _texts(path, bad),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
        strict=True,
    )
    header: list[str] | None = None
    while True:
        first = rows.line_num + 1
        place = f"{path}:{first}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Fault(place, f"no row of a table ({error})")
            continue
        if not row:
            continue  # a blank line
        if header is None:
            header = _header(row, path)
        elif not bad.isdisjoint(range(first, rows.line_num + 1)):
            yield Fault(place, NOT_UTF8)
        elif len(row) != len(header):
            yield Fault(place, f"{len(row)} cells, the header has {len(header)}")
        else:
            yield Record(dict(zip(header, row, strict=True)), place)


def _texts(path: str, bad: set[int]) -> Iterator[str]:
    """The lines; the numbers of those that are not UTF-8 are put into `bad`."""
    for number, text, problem in read_lines(path):
        if problem:
            bad.add(number)
        yield text


def _header(row: list[str], path: str) -> list[str]:
    names = [name.strip() for name in row]
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise DataError(f"{path}:1 names the column {twice[0]} twice: give each column a name of its own")
    return names
