"""Readers of text, JSON lines and CSV: line-based files, plain or compressed, cut at line ends or separators."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from scaletrain.data.prepare.units import (
    MAX_PLACES,
    Document,
    Findings,
    Reading,
    Source,
    Unit,
    clean_surrogates,
    decode_text,
    lines_before,
)
from scaletrain.errors import DataError

COMPRESSED = (".gz", ".zst")
_BLOCK = 1 << 22  # bytes of a large file in memory at once
_GROUP = 4096  # files in a unit at most
MAX_DOCUMENT = 1 << 28  # bytes of a line or stretch; beyond that a file has most likely no such line ends or separators
_BOM = b"\xef\xbb\xbf"


def open_bytes(path: str) -> IO[bytes]:
    """The file's bytes, decompressed where the name ends in .gz or .zst."""
    if path.endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    file = Path(path).open("rb")  # noqa: SIM115  (the caller closes what is returned, and this with it)
    if path.endswith(".zst"):
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True)
        return cast(IO[bytes], io.BufferedReader(reader, _BLOCK))
    return file


def cut_text(sources: list[Source], reading: Reading, unit_bytes: int) -> Iterator[Unit]:
    """Small files together, large plain files at separators if there are any, other large files alone."""
    return _cut(sources, reading.separator.encode() if reading.separator else None, unit_bytes)


def cut_lines(sources: list[Source], reading: Reading, unit_bytes: int) -> Iterator[Unit]:
    """Small files together, large plain files in byte ranges that end at line ends, large compressed files alone."""
    del reading
    return _cut(sources, b"\n", unit_bytes)


def cut_small(sources: list[Source], reading: Reading, unit_bytes: int) -> Iterator[Unit]:
    """CSV: a quoted field may hold newlines, so only a reader from the start knows where a row ends."""
    del reading
    return _cut(sources, None, unit_bytes)


def read_text(path: str, span: tuple[int, int], reading: Reading, findings: Findings) -> Iterator[Document]:
    """A file is one document, or one for each stretch between separators."""
    start, stop = span
    if reading.separator:
        with open_bytes(path) as file:
            if start:
                file.seek(start)
            limit = stop - start if stop else None
            for data, line in _stretches(file, path, reading.separator, limit):
                yield Document((decode_text(data, path, line, reading, findings, start),))
        return
    blocks = _blocks(path, reading, findings)
    first = list(islice(blocks, 2))
    if len(first) == 2:
        yield Document(chain(first, blocks), lambda: _measure(path, reading))
    else:
        yield Document(("".join(first),))


def read_jsonl(path: str, span: tuple[int, int], reading: Reading, findings: Findings) -> Iterator[Document]:
    """A JSON object a line, its text in the chosen field; blank lines are no documents."""
    start, stop = span
    with open_bytes(path) as file:
        if start:
            file.seek(start)
        place, number = start, 0
        while (not stop or place < stop) and (data := file.readline(MAX_DOCUMENT + 1)):
            place += len(data)
            number += 1
            if len(data) > MAX_DOCUMENT:
                line = number + lines_before(path, start)
                raise DataError(
                    f"{path}:{line} is longer than {MAX_DOCUMENT:,} bytes: give a text of that size a file of its own"
                )
            text = _json_text(data, path, number, start, reading, findings)
            if text is not None:
                yield Document((text,))


def read_csv(path: str, span: tuple[int, int], reading: Reading, findings: Findings) -> Iterator[Document]:
    """A row a document, its text in the chosen column; .tsv files are cut at tabs."""
    del span  # always the whole file
    csv.field_size_limit(MAX_DOCUMENT)
    with open_bytes(path) as file:
        lines = (
            decode_text(data.removeprefix(_BOM) if number == 1 else data, path, number, reading, findings)
            for number, data in enumerate(file, 1)
        )
        rows = csv.DictReader(lines, delimiter="\t" if ".tsv" in Path(path).suffixes else ",")
        if rows.fieldnames is not None and reading.field not in rows.fieldnames:
            raise missing_field(f"{path}:1", reading.field, list(rows.fieldnames))
        try:
            for row in rows:
                yield Document((row[reading.field] or "",))
        except csv.Error as error:
            raise DataError(f"{path}:{rows.line_num} is no CSV ({error}): repair the line") from error


def missing_field(place: str, field: str, found: list[str]) -> DataError:
    """The error for a text column that is not there; lists those that are."""
    return DataError(
        f"{place} has no field {field!r}, its fields are {', '.join(map(str, found))}: choose with --field"
    )


def _json_text(data: bytes, path: str, number: int, start: int, reading: Reading, findings: Findings) -> str | None:
    line = data.strip().removeprefix(_BOM)
    if not line:
        return None
    value: Any
    try:
        value = json.loads(decode_text(line, path, number, reading, findings, start))
        fault = "" if isinstance(value, dict) else f"it holds a {type(value).__name__}"
    except (ValueError, RecursionError) as error:
        fault = str(error)
    if not fault and isinstance(value.get(reading.field), str):
        return clean_surrogates(value[reading.field], path, number, reading, findings, start)
    place = f"{path}:{number + lines_before(path, start)}"
    if not fault:
        if reading.field not in value:
            raise missing_field(place, reading.field, list(value))
        if value[reading.field] is None:
            return ""
        kind = type(value[reading.field]).__name__
        raise DataError(f"{place} field {reading.field!r} is a {kind}, no text: choose with --field")
    if not reading.skip_bad_lines:
        raise DataError(f"{place} is no JSON object ({fault}): repair the line or use --skip-bad-lines")
    findings.bad_lines += 1
    if len(findings.bad_places) < MAX_PLACES:
        findings.bad_places.append(place)
    return None


def _cut(sources: list[Source], separator: bytes | None, unit_bytes: int) -> Iterator[Unit]:
    """Files up to `unit_bytes` in groups, larger ones by themselves: at separators, if there are any to be seen."""
    group: list[str] = []
    held = 0
    for source in sources:
        is_large = source.bytes > unit_bytes
        if group and (is_large or held + source.bytes > unit_bytes or len(group) == _GROUP):
            yield Unit(source.kind, tuple(group), 0, 0, held)
            group, held = [], 0
        if not is_large:
            group.append(source.name)
            held += source.bytes
        elif separator is None or source.name.endswith(COMPRESSED):
            yield Unit(source.kind, (source.name,), 0, 0, source.bytes)
        else:
            yield from _cut_ranges(source, separator, unit_bytes)
    if group:
        yield Unit(sources[0].kind, tuple(group), 0, 0, held)


def _cut_ranges(source: Source, separator: bytes, unit_bytes: int) -> Iterator[Unit]:
    """Ranges of at least `unit_bytes` that end just after a separator."""
    start = 0
    with Path(source.name).open("rb") as file:
        while start < source.bytes:
            stop = min(_after(file, separator, start + unit_bytes), source.bytes)
            yield Unit(source.kind, (source.name,), start, stop, stop - start)
            start = stop


def _after(file: IO[bytes], separator: bytes, place: int) -> int:
    """The place just after the first separator that begins at `place` or later; the file's end if there is none."""
    file.seek(place)
    held = b""
    while block := file.read(1 << 16):
        held += block
        found = held.find(separator)
        if found >= 0:
            return place + found + len(separator)
        dropped = max(0, len(held) - len(separator) + 1)
        held, place = held[dropped:], place + dropped
    return place + len(held)


def _stretches(file: IO[bytes], path: str, separator: str, limit: int | None) -> Iterator[tuple[bytes, int]]:
    """The bytes between separators, each with its first line's number, reading no more than `limit` bytes."""
    mark = separator.encode()
    held, line, searched = bytearray(), 1, 0
    is_first = True
    while block := file.read(_BLOCK if limit is None else min(_BLOCK, limit)):
        limit = None if limit is None else limit - len(block)
        held += block.removeprefix(_BOM) if is_first else block
        is_first, start = False, 0
        while (end := held.find(mark, max(start, searched))) >= 0:
            yield bytes(held[start:end]), line
            line += held.count(b"\n", start, end + len(mark))
            start = end + len(mark)
        del held[:start]
        searched = max(0, len(held) - len(mark) + 1)
        if len(held) > MAX_DOCUMENT:
            raise DataError(
                f"{path} has no separator {separator!r} in {MAX_DOCUMENT:,} bytes: choose another --separator, or none "
                "to make the file one document"
            )
    if held:  # nothing follows a last separator
        yield bytes(held), line


def _blocks(path: str, reading: Reading, findings: Findings) -> Iterator[str]:
    """A file's text in blocks that end at line ends, or between characters in a line longer than a block."""
    with open_bytes(path) as file:
        held, line = file.read(_BLOCK).removeprefix(_BOM), 1
        while held:
            block = file.read(_BLOCK)
            end = (held.rfind(b"\n") + 1) or _last_character(held) if block else len(held)
            yield decode_text(held[:end], path, line, reading, findings)
            line += held.count(b"\n", 0, end)
            held = held[end:] + block


def _measure(path: str, reading: Reading) -> int:
    """The UTF-8 bytes of a file's text: only a compressed one has to be read for it."""
    if not path.endswith(COMPRESSED):
        return Path(path).stat().st_size
    return sum(len(text.encode()) for text in _blocks(path, reading, Findings()))


def _last_character(data: bytes) -> int:
    """Where the last, perhaps unfinished character starts."""
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:
            return len(data) - back or len(data)
    return len(data)
