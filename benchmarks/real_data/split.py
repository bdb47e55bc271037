"""Training and validation: the same example always falls on the same side, and so does each copy of it."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
SHARE = 10  # one of so many distinct contents is held out


@dataclass(frozen=True)
class Split(Generic[Item]):
    train: list[Item]
    validation: list[Item]

    def sides(self) -> Iterator[tuple[str, list[Item]]]:
        yield "train", self.train
        yield "validation", self.validation


def split(items: Iterable[Item], content: Callable[[Item], str]) -> Split[Item]:
    """Items in their order, each once. Held out is the tenth of the distinct contents whose sha256 come first.

    Contents that differ in case or spaces only count as one.
    """
    distinct = {repr(item): item for item in items}.values()
    hashed = [(_hash(content(item)), item) for item in distinct]
    hashes = sorted({digest for digest, _ in hashed})
    held_out = set(hashes[: len(hashes) // SHARE])
    return Split(
        [item for digest, item in hashed if digest not in held_out],
        [item for digest, item in hashed if digest in held_out],
    )


def _hash(content: str) -> str:
    return hashlib.sha256(" ".join(content.casefold().split()).encode()).hexdigest()


def drop_near_copies(items: Iterable[Item], content: Callable[[Item], str], limit: float = 0.5) -> Iterator[Item]:
    """Without the items that share more than `limit` of their runs of four words with an earlier one (Jaccard).

    Numbers do not count: form letters differ in them. Of the runs a quarter is compared, chosen by hash.
    """
    holders: dict[int, list[int]] = {}  # run -> the kept items that have it
    sizes: list[int] = []
    for item in items:
        runs = _runs(content(item))
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


def _runs(text: str) -> set[int]:
    words = re.findall(r"[^\W\d_]+", text.casefold())
    runs = {" ".join(words[at : at + 4]) for at in range(max(1, len(words) - 3))}
    hashes = {int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest()) for run in runs}
    return {value for value in hashes if value % 4 == 0} or hashes  # a short text may have none in that quarter
