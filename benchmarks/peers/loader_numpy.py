"""The plainest loader: one flat file of ids, memory-mapped, and a permutation of the rows, stored beside it."""

import mmap
from pathlib import Path

import numpy as np
from loader_measure import BATCH, CONTEXT, Batches, random_rows, run, split

SPARSE = 100_000_000  # samples from which on the ids are not written: a file of holes reads as zeros


def make(folder: Path, samples: int) -> None:
    with (folder / "tokens.bin").open("wb") as file:
        if samples >= SPARSE:
            file.truncate((samples * CONTEXT + 1) * 2)
            file.write(np.ones(1, np.uint16).tobytes())
        else:
            for rows in random_rows(samples):
                file.write(rows[:, :CONTEXT].tobytes())
            file.write(np.ones(1, np.uint16).tobytes())
    np.save(folder / "order.npy", np.random.default_rng(1).permutation(samples))


def open_batches(folder: Path, samples: int, start: int) -> Batches:
    tokens = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
    if samples >= SPARSE:  # holes are never cached: else the kernel reads up to megabytes around each row
        tokens._mmap.madvise(mmap.MADV_RANDOM)
    order = np.load(folder / "order.npy", mmap_mode="r")
    rows = np.empty((BATCH, CONTEXT + 1), dtype=np.uint16)
    while True:
        for first in range(start, samples - BATCH + 1, BATCH):
            for row, sample in enumerate(order[first : first + BATCH].tolist()):
                rows[row] = tokens[sample * CONTEXT : sample * CONTEXT + CONTEXT + 1]
            yield split(rows)
        start = 0


if __name__ == "__main__":
    run(make, open_batches, ())
