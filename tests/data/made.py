"""Datasets of documents of given lengths, written with numpy alone: what a test of the reading side needs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scaletrain.data.shards import (
    DOCS_DTYPE,
    DTYPES,
    INDEX,
    SPLITS,
    Dataset,
    Shard,
    TokenizerInfo,
    index_text,
    local_dataset,
    npy_header,
    open_dataset,
    shard_files,
)
from scaletrain.runtime.files import hash_file

TOKENIZER = TokenizerInfo("letters", "abc", 300, 0)
Lengths = Sequence[Sequence[int]]  # of the documents of each shard, their end-of-text token counted


def make(folder: Path, train: Lengths, validation: Lengths = (), text_bytes: int = 2) -> Dataset:
    """Each split's shards; the tokens are counted from 1 on within a document, which a 0 ends."""
    (folder / "validation").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    splits = {}
    for split, shards in zip(SPLITS, (train, validation), strict=True):
        found = []
        for number, lengths in enumerate(shards):
            file, docs_file = shard_files(split, number)
            tokens = np.concatenate([np.append(np.arange(1, length) % 299 + 1, 0) for length in lengths])
            ends = np.cumsum(lengths)
            for name, values, dtype in ((file, tokens, DTYPES["uint16"]), (docs_file, ends, DOCS_DTYPE)):
                (folder / name).write_bytes(npy_header(dtype, len(values)) + values.astype(dtype).tobytes())
            hashes = hash_file(folder / file), hash_file(folder / docs_file)
            found.append(Shard(file, docs_file, len(tokens), len(ends), text_bytes * len(tokens), *hashes))
        splits[split] = tuple(found)
    dataset = local_dataset(folder, "uint16", TOKENIZER, splits["train"], splits["validation"])
    (folder / INDEX).write_text(index_text(dataset, [], {}))
    return open_dataset(folder)
