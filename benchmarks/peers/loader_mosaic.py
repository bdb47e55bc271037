"""MosaicML Streaming: MDS shards read by StreamingDataset, shuffled by its default (py1e), through its own loader."""

from pathlib import Path

import numpy as np
import torch
from loader_measure import BATCH, CONTEXT, Batches, random_rows, run, split
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory


def make(folder: Path, samples: int) -> None:
    columns = {"tokens": f"ndarray:uint16:{CONTEXT + 1}"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for rows in random_rows(samples):
            for row in rows:
                writer.write({"tokens": row})


def stack(samples: list[dict[str, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    return split(np.stack([sample["tokens"] for sample in samples]))


def open_batches(folder: Path, samples: int, start: int) -> Batches:
    data = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=1, batch_size=BATCH)
    loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=0, collate_fn=stack, drop_last=True)
    if start:
        loader.load_state_dict({**data.state_dict(start, False), "epoch": 0})
    while True:
        yield from loader


if __name__ == "__main__":
    clean_stale_shared_memory()  # of an earlier process that was ended
    run(make, open_batches, ("mosaicml-streaming",))
