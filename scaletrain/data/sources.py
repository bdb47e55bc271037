"""Rows of several sources as one: by the ids of a mixture, or one source after the other."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from scaletrain.data.mixture import SOURCE_SHIFT
from scaletrain.data.rows import Batch, Rows
from scaletrain.data.shuffle import Ids


class MixedRows:
    """The rows of a mixture: the upper bits of an id are its source's place among `parts`; None: no id names it."""

    def __init__(self, parts: Sequence[Rows | None]) -> None:
        self.parts = parts
        self._first = next(number for number, part in enumerate(parts) if part is not None)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts if part is not None)

    def fetch(self, ids: Ids) -> Batch:
        """As Rows.fetch, whichever sources the ids name."""
        batch: Batch = {}
        for part, places, rows in self._split(ids):
            found = part.fetch(rows)
            if len(places) == len(ids):
                return found
            where = torch.from_numpy(places)
            for name, values in found.items():
                if name not in batch:
                    batch[name] = values.new_empty(len(ids), *values.shape[1:])
                batch[name][where] = values
        return batch

    def _split(self, ids: Ids) -> Iterator[tuple[Rows, Ids, Ids]]:
        """Each source in use, the places of its samples, and their row numbers; padding goes to the first in use."""
        sources = ids >> SOURCE_SHIFT
        used = np.unique(sources[ids >= 0]).tolist() or [self._first]
        sources = np.where(ids < 0, used[0], sources)
        for source in used:
            places = np.flatnonzero(sources == source)
            rows = np.where(ids[places] < 0, -1, ids[places] & ((1 << SOURCE_SHIFT) - 1))
            part = self.parts[source]
            assert part is not None, "an id of a source that has left the mixture"
            yield part, places, rows


class JoinedRows:
    """The rows of all parts, one part after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._mixed = MixedRows(parts)
        self._firsts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def fetch(self, ids: Ids) -> Batch:
        return self._mixed.fetch(self._named(ids))

    def _named(self, ids: Ids) -> Ids:
        part = np.searchsorted(self._firsts, np.maximum(ids, 0), side="right") - 1
        return np.where(ids < 0, -1, (part << SOURCE_SHIFT) | (ids - self._firsts[part]))
