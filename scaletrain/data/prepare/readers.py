"""READERS: how each kind of input is cut into units and read; the order of documents never depends on the cut."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

import zstandard

from scaletrain.data.prepare.table_readers import cut_datasets, cut_parquet, read_datasets, read_parquet
from scaletrain.data.prepare.text_readers import cut_lines, cut_small, cut_text, read_csv, read_jsonl, read_text
from scaletrain.data.prepare.units import Document, Findings, Reading, Source, Unit
from scaletrain.errors import DataError

# Units balance the load and bound what a kill loses; too many cost more in files than they bring.
_MIN_UNIT, _USUAL_UNIT = 1 << 19, 8 << 20
_MIN_UNITS, _MAX_UNITS = 64, 16384


class Reader(NamedTuple):
    """How one kind of input is cut, and how one path of a unit is read in a range (0, 0: the whole of it)."""

    cut: Callable[[list[Source], Reading, int], Iterator[Unit]]
    read: Callable[[str, tuple[int, int], Reading, Findings], Iterator[Document]]


READERS: dict[str, Reader] = {
    "text": Reader(cut_text, read_text),
    "jsonl": Reader(cut_lines, read_jsonl),
    "csv": Reader(cut_small, read_csv),
    "parquet": Reader(cut_parquet, read_parquet),
    "datasets": Reader(cut_datasets, read_datasets),
}


def cut_units(sources: list[Source], reading: Reading, unit_bytes: int | None = None) -> list[Unit]:
    """The sources in order as units of work; a pure function of their sizes and content."""
    total = sum(source.bytes for source in sources)
    if unit_bytes is None:
        unit_bytes = max(_MIN_UNIT, min(_USUAL_UNIT, total // _MIN_UNITS), total // _MAX_UNITS)
    units: list[Unit] = []
    for kind, run in groupby(sources, key=lambda source: source.kind):
        try:
            units += READERS[kind].cut(list(run), reading, unit_bytes)
        except OSError as error:
            raise DataError(f"input {error.filename} cannot be read: {error.strerror or error}") from error
    return units


def read_documents(unit: Unit, reading: Reading, findings: Findings) -> Iterator[Document]:
    """The unit's documents in order, the empty and blank ones left out and counted."""
    read = READERS[unit.kind].read
    for name in unit.paths:
        try:
            for document in read(name, (unit.start, unit.stop), reading, findings):
                if isinstance(document.parts, tuple) and not document.parts[0].strip():
                    findings.empty_documents += 1
                else:
                    yield document
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise DataError(f"input {name} is damaged or not what its name says ({error}): copy it again") from error
        except OSError as error:
            raise DataError(f"input {error.filename or name} cannot be read: {error.strerror or error}") from error
