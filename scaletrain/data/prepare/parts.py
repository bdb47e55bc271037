"""Parts: the units of one prepare shared out to several machines, so that each has nearly the same bytes to read."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from pathlib import Path

from scaletrain.data.prepare.units import Unit
from scaletrain.errors import DataError

_NAMED = 20  # parts named in an error line; the rest are counted


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, counted from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def read_part(text: str) -> Part:
    """The part that --part names."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return Part(int(match[1]), int(match[2]))
    raise DataError(f"--part {text} is not I/N with 1 <= I <= N: the first of sixteen parts is --part 1/16")


def share_out(units: Sequence[Unit], count: int) -> list[list[int]]:
    """The numbers of each part's units, ascending: the largest first, each to the part that has the fewest bytes.

    Parts differ by at most one unit's bytes. Units of one size go round in turn, so that a part has some of every input
    and no machine gets all that is slow to encode.
    """
    loads = [(0, part) for part in range(count)]
    heapify(loads)
    parts: list[list[int]] = [[] for _ in range(count)]
    for number in sorted(range(len(units)), key=lambda number: -units[number].bytes):
        load, part = loads[0]
        parts[part].append(number)
        heapreplace(loads, (load + units[number].bytes, part))
    return [sorted(numbers) for numbers in parts]


def is_unfinished(partial: Path, units: Sequence[Unit], missing: Collection[int], count: int) -> DataError:
    """The error for units that have no segment yet: names the parts that they belong to."""
    absent = set(missing)
    parts = [number for number, part in enumerate(share_out(units, count), 1) if absent.intersection(part)]
    return DataError(
        f"part {list_numbers(parts)} of {count} is not finished in {partial}: run the missing parts again (such as "
        f"--part {parts[0]}/{count}), then --merge"
    )


def list_numbers(numbers: Sequence[int]) -> str:
    """`3, 7, 8`, shortened where there are many."""
    named = ", ".join(map(str, numbers[:_NAMED]))
    return named if len(numbers) <= _NAMED else f"{named} and {len(numbers) - _NAMED} more"
