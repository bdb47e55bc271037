"""What a cache holds, and what it drops for something new."""

import contextlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaletrain.data.cache_part import PART
from scaletrain.runtime.locks import locked


@dataclass(frozen=True)
class Entry:
    """A whole file, named by its xxh3."""

    name: str
    bytes: int
    used: float  # seconds since the epoch


def survey(folder: Path) -> tuple[list[Entry], list[int]]:
    """The whole files, and the sizes of the parts that have a writer. What killed writers left is removed."""
    entries: list[Entry] = []
    parts: list[int] = []
    for found in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # dropped or finished meanwhile
            stat = found.stat()
            if not found.name.endswith(PART):
                entries.append(Entry(found.name, stat.st_size, stat.st_mtime))
                continue
            with locked(Path(found.path), block=False, make=False) as handle:
                if handle is None:
                    parts.append(stat.st_size)
                else:
                    Path(found.path).unlink()
    return entries, parts


def least_needed(
    entries: Sequence[Entry], missing: int, turns: Mapping[str, int], soonest_turn: float, grace_seconds: float
) -> list[Entry]:
    """What to drop for `missing` bytes, as far as there is anything: the least recently used, the needed last.

    `turns` says how soon a file is needed, 0 first. Those whose turn comes before `soonest_turn` stay, and those that
    were used within `grace_seconds`.
    """
    now = time.time()
    may_go = [
        entry
        for entry in entries
        if turns.get(entry.name, math.inf) >= soonest_turn and not 0 <= now - entry.used < grace_seconds
    ]
    chosen: list[Entry] = []
    for entry in sorted(may_go, key=lambda entry: (-turns.get(entry.name, math.inf), entry.used)):
        if missing <= 0:
            break
        chosen.append(entry)
        missing -= entry.bytes
    return chosen
