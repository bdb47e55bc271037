"""Training and validation: the same example always falls on the same side, and so does each copy of it."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
TENTHS = 1  # of the examples are held out


@dataclass(frozen=True)
class Split(Generic[Item]):
    train: list[Item]
    validation: list[Item]

    def sides(self) -> Iterator[tuple[str, list[Item]]]:
        yield "train", self.train
        yield "validation", self.validation


def split(items: Iterable[Item], content: Callable[[Item], str]) -> Split[Item]:
    """Held out is each item whose content, without regard to case and spaces, hashes (sha256) to 0 modulo 10.

    A further copy of an item is left out.
    """
    sides: Split[Item] = Split([], [])
    seen: set[str] = set()
    for item in items:
        if repr(item) not in seen:
            seen.add(repr(item))
            (sides.validation if is_held_out(content(item)) else sides.train).append(item)
    return sides


def is_held_out(content: str) -> bool:
    digest = hashlib.sha256(" ".join(content.casefold().split()).encode()).digest()
    return int.from_bytes(digest) % 10 < TENTHS


def drop_near_copies(texts: Iterable[Item], content: Callable[[Item], str], limit: float = 0.5) -> Iterator[Item]:
    """Without the items whose runs of four words are by more than `limit` those of one earlier item (Jaccard).

    Numbers do not count, since form letters differ in them. Of the runs a quarter is compared, chosen by their hashes.
    """
    holders: dict[int, list[int]] = {}
    sizes: list[int] = []
    for item in texts:
        runs = _sketch(content(item))
        shared: dict[int, int] = {}
        for run in runs:
            for holder in holders.get(run, ()):
                shared[holder] = shared.get(holder, 0) + 1
        if any(count > limit * (len(runs) + sizes[holder] - count) for holder, count in shared.items()):
            continue
        for run in runs:
            holders.setdefault(run, []).append(len(sizes))
        sizes.append(len(runs))
        yield item


def _sketch(text: str) -> set[int]:
    words = re.findall(r"[^\W\d_]+", text.casefold())
    runs = (" ".join(words[at : at + 4]) for at in range(max(1, len(words) - 3)))
    hashes = {int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest()) for run in runs}
    return {value for value in hashes if value % 4 == 0} or hashes  # a short text may have none of the quarter
