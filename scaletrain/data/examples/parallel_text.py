"""Records of two texts of equal lines: source and target."""

from collections.abc import Iterator
from itertools import zip_longest

from scaletrain.config.finetune_schema import FinetuneData
from scaletrain.data.examples.example import Fault
from scaletrain.data.examples.record import Record
from scaletrain.data.examples.text_file import read_lines
from scaletrain.errors import DataError

PAIR = "|"  # between the names of the two


def read_parallel(path: str, data: FinetuneData) -> Iterator[Record | Fault]:
    """A line of the first text with the same line of the second."""
    del data  # as the other readers
    first, second = path.split(PAIR)
    counts = [0, 0]
    for source, target in zip_longest(read_lines(first), read_lines(second)):
        counts[0] += source is not None
        counts[1] += target is not None
        if source is None or target is None:
            continue
        place = f"{path}:{source.number}"
        if problem := source.problem or target.problem:
            yield Fault(place, problem)
        else:
            yield Record({"source": source.text.rstrip("\r\n"), "target": target.text.rstrip("\r\n")}, place)
    if counts[0] != counts[1]:
        raise DataError(
            f"{first} has {counts[0]:,} lines and {second} {counts[1]:,}: each line of one should have its counterpart "
            "in the same line of the other; repair them"
        )
