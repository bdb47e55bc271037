"""Which sample a run reads when: a pure function of (seed, position), the same for any number of ranks."""

from dataclasses import dataclass

import numpy as np

from scaletrain.data.shuffle import Ids, permute


@dataclass(frozen=True)
class Order:
    """The endless sequence of sample ids of a run over `samples` samples, epoch after epoch."""

    samples: int
    seed: int
    shuffle: bool = True

    def ids(self, start: int, count: int) -> Ids:
        """Sample ids at positions start..start+count-1 of the run; O(count) wherever it starts."""
        positions = np.arange(start, start + count, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.samples)
        if not self.shuffle:
            return offsets
        ids = np.empty_like(offsets)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            inside = epochs == epoch
            ids[inside] = permute(offsets[inside], self.samples, self.seed, epoch)
        return ids


@dataclass(frozen=True)
class Share:
    """This rank's part of each global batch: `accumulation` micro-batches of `micro_batch` samples."""

    rank: int
    ranks: int
    micro_batch: int
    accumulation: int

    @property
    def global_batch(self) -> int:
        return self.ranks * self.micro_batch * self.accumulation

    def of(self, batch_ids: Ids) -> list[Ids]:
        """Splits a global batch's ids into this rank's micro-batches. Over all ranks each id is used once."""
        grid = batch_ids.reshape(self.accumulation, self.ranks, self.micro_batch)
        return list(grid[:, self.rank])
