"""Units of reading: what an input is cut into, how it is read, and what was found amiss on the way."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scaletrain.errors import DataError

_HEAD = 4096  # bytes by which a file is known as text
MAX_PLACES = 20  # faults named one by one in the summary; the rest are counted


@dataclass(frozen=True, slots=True)
class Source:
    """An input file or datasets folder; the stamp (mtime or fingerprint) tells whether it changed since."""

    name: str
    kind: str
    bytes: int
    stamp: str


@dataclass(frozen=True, slots=True)
class Unit:
    """Work for one process at a time: whole files, or the range start..stop (bytes, row groups or rows) of one."""

    kind: str
    paths: tuple[str, ...]
    start: int
    stop: int
    bytes: int


@dataclass(frozen=True)
class Reading:
    """How documents are taken out of files; part of what decides a dataset's content."""

    field: str = "text"
    separator: str | None = None
    encoding_errors: Literal["replace", "fail"] = "replace"
    skip_bad_lines: bool = False
    dataset_split: str = "train"


class Document(NamedTuple):
    """A text as a tuple of one part, or a large file in many parts, whose UTF-8 size `measure` finds."""

    parts: Iterable[str]
    measure: Callable[[], int] | None = None


@dataclass
class Findings:
    """What was met while reading: counted, and the first faults of each kind named by file and line."""

    empty_documents: int = 0
    encoding_errors: int = 0
    encoding_places: list[str] = field(default_factory=list)
    bad_lines: int = 0
    bad_places: list[str] = field(default_factory=list)

    def add(self, other: "Findings") -> None:
        self.empty_documents += other.empty_documents
        self.encoding_errors += other.encoding_errors
        self.bad_lines += other.bad_lines
        self.encoding_places = (self.encoding_places + other.encoding_places)[:MAX_PLACES]
        self.bad_places = (self.bad_places + other.bad_places)[:MAX_PLACES]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def decode_text(data: bytes, name: str, line: int, reading: Reading, findings: Findings, start: int = 0) -> str:
    """UTF-8 to text; invalid bytes become U+FFFD and are counted, or are a DataError if the reading says so.

    `line` is the first line's number in the file, or counted from byte `start` of it. What begins as UTF-16 does or
    holds zero bytes is no UTF-8 text at all: a DataError.
    """
    if start == 0 and line == 1:
        _check_is_text(data[:_HEAD], name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = line + lines_before(name, start) + data.count(b"\n", 0, error.start)
        found = f"{name}:{number} byte {data[error.start]:#04x}"
        _encoding_error(found, reading, findings)
        text = data.decode("utf-8", "replace")
        findings.encoding_errors += text.count("\ufffd") - data.count(b"\xef\xbf\xbd") - 1
        return text


def _check_is_text(head: bytes, name: str) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{name} begins as UTF-16 does: convert it (iconv -f UTF-16 -t UTF-8), or leave it out")
    if b"\0" in head:
        raise DataError(
            f"{name} holds zero bytes, which text in UTF-8 does not: convert it (iconv, from UTF-16 perhaps), or leave "
            "it out, if it is a program or a picture (--glob)"
        )


def clean_surrogates(text: str, name: str, line: int, reading: Reading, findings: Findings, start: int = 0) -> str:
    r"""JSON may hold half a character ("\ud800"), which no encoding can write: treated as an invalid byte."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError as error:
        found = f"{name}:{line + lines_before(name, start)} character {text[error.start]!r}"
        _encoding_error(found, reading, findings)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def lines_before(name: str, start: int) -> int:
    """Lines before a byte of a plain file: counted only once there is a fault to name."""
    if start == 0:
        return 0
    count = 0
    with Path(name).open("rb") as file:
        while start > 0 and (block := file.read(min(start, 1 << 22))):
            count += block.count(b"\n")
            start -= len(block)
    return count


def _encoding_error(found: str, reading: Reading, findings: Findings) -> None:
    if reading.encoding_errors == "fail":
        raise DataError(f"{found} is not UTF-8: convert the file, or use --encoding-errors replace")
    findings.encoding_errors += 1
    if len(findings.encoding_places) < MAX_PLACES:
        findings.encoding_places.append(found)
