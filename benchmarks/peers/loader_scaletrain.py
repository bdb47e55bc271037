"""This project's loader: a dataset folder, the order of a run computed from its seed, a thread that reads ahead."""

from pathlib import Path

import numpy as np
from loader_measure import BATCH, CONTEXT, Batches, random_rows, run

from scaletrain.data.loader import Loader, token_steps
from scaletrain.data.order import Order, Share
from scaletrain.data.rows import split_rows
from scaletrain.data.shards import (
    DOCS_DTYPE,
    DTYPES,
    INDEX,
    Shard,
    TokenizerInfo,
    index_text,
    local_dataset,
    npy_header,
    open_dataset,
    shard_files,
)

TOKENIZER = TokenizerInfo("random ids", "none", 50_000, 0)
SHARD_SAMPLES = 1 << 16
SPARSE = 100_000_000  # samples from which on the ids are not written: a file of holes reads as zeros
SPARSE_SHARD_SAMPLES = 1 << 21


def make(folder: Path, samples: int) -> None:
    """A dataset that opens like a prepared one; its hashes are made up, nothing reads them here."""
    (folder / "tokenizer").mkdir()
    at_once = SPARSE_SHARD_SAMPLES if samples >= SPARSE else SHARD_SAMPLES
    shards = []
    for number, first in enumerate(range(0, samples, at_once)):
        count = min(at_once, samples - first)
        file, docs_file = shard_files("train", number)
        tokens = count * CONTEXT + 1
        (folder / docs_file).write_bytes(npy_header(DOCS_DTYPE, 1) + np.array([tokens], DOCS_DTYPE).tobytes())
        _write_tokens(folder / file, tokens, count, samples >= SPARSE)
        shards.append(Shard(file, docs_file, tokens, 1, tokens, f"{number:032x}", f"{number:032x}"))
    dataset = local_dataset(folder, "uint16", TOKENIZER, tuple(shards), ())
    (folder / INDEX).write_text(index_text(dataset, [], {}), encoding="utf-8")


def _write_tokens(path: Path, tokens: int, samples: int, is_sparse: bool) -> None:
    header = npy_header(DTYPES["uint16"], tokens)
    with path.open("wb") as file:
        file.write(header)
        if is_sparse:
            file.write(np.ones(1, np.uint16).tobytes())
            file.truncate(len(header) + tokens * 2)
            return
        for rows in random_rows(samples):
            file.write(rows[:, :CONTEXT].tobytes())
        file.write(np.ones(1, np.uint16).tobytes())


def open_batches(folder: Path, samples: int, start: int) -> Batches:
    rows = split_rows(open_dataset(folder), "train", CONTEXT)
    assert len(rows) == samples
    order = Order(rows.shard_rows, seed=1)
    for step in Loader(token_steps(rows, order, Share(0, 1, BATCH, 1), start=start), ahead=4):
        batch = step.batches[0]
        yield batch["input_ids"], batch["labels"]


if __name__ == "__main__":
    run(make, open_batches, ("scaletrain",))
