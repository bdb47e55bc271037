"""The lines of a text file, plain or compressed, with those that are not UTF-8 named."""

from collections.abc import Iterator
from typing import NamedTuple

from scaletrain.data.prepare.text_readers import open_bytes

_BOM = b"\xef\xbb\xbf"
NOT_UTF8 = "not UTF-8: save the file as UTF-8"


class Line(NamedTuple):
    """A line with its end, its number from 1, and what is wrong with its bytes, if anything."""

    number: int
    text: str
    problem: str = ""


def read_lines(path: str) -> Iterator[Line]:
    """Only a newline ends a line: texts may hold the other characters that Unicode breaks lines at."""
    with open_bytes(path) as file:
        for number, data in enumerate(file, 1):
            line = data.removeprefix(_BOM) if number == 1 else data
            try:
                yield Line(number, line.decode())
            except UnicodeDecodeError:
                yield Line(number, line.decode(errors="replace"), NOT_UTF8)
