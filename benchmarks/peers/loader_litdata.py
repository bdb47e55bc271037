"""LitData: chunks of tokens written by optimize, read by StreamingDataset with its TokensLoader.

Shuffles the order of chunks, and the samples within each chunk: the epoch is not fully shuffled. Resumes by the
loader's own state_dict.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize
from loader_measure import BATCH, CONTEXT, VOCABULARY, Batches, keep_state, kept_state, run

CHUNK_SAMPLES = 8192
BLOCK_SAMPLES = 1024


def random_block(number: int, samples: int) -> Iterator[torch.Tensor]:
    count = min(BLOCK_SAMPLES, samples - number * BLOCK_SAMPLES)
    ids = np.random.default_rng(number).integers(0, VOCABULARY, count * (CONTEXT + 1), dtype=np.uint16)
    yield torch.from_numpy(ids)


def make(folder: Path, samples: int) -> None:
    optimize(
        fn=partial(random_block, samples=samples),
        inputs=list(range(-(-samples // BLOCK_SAMPLES))),
        output_dir=str(folder),
        chunk_size=CHUNK_SAMPLES * (CONTEXT + 1),
        item_loader=TokensLoader(block_size=CONTEXT + 1),
        num_workers=1,
    )
    loader = open_loader(folder, samples)
    keep_state(folder, samples, iter(loader), loader.state_dict)


def stack(samples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.stack(samples).to(torch.int64)
    return ids[:, :-1], ids[:, 1:]


def open_loader(folder: Path, samples: int) -> StreamingDataLoader:
    item_loader = TokensLoader(block_size=CONTEXT + 1)
    data = StreamingDataset(str(folder), item_loader=item_loader, shuffle=True, seed=1, drop_last=True)
    assert len(data) == samples, (len(data), samples)
    return StreamingDataLoader(data, batch_size=BATCH, num_workers=0, collate_fn=stack, drop_last=True)


def open_batches(folder: Path, samples: int, start: int) -> Batches:
    loader = open_loader(folder, samples)
    if start:
        loader.load_state_dict(kept_state(folder))
    while True:
        yield from loader


if __name__ == "__main__":
    run(make, open_batches, ("litdata",))
