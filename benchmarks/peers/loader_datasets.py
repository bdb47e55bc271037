"""Hugging Face datasets: parquet files read as a stream, shuffled in a buffer of 10,000 samples.

One file at a time feeds the buffer, so a sample stays near its neighbours: the epoch is not fully shuffled. The
library's default mixes ten files and is several times slower here. Resumes by the library's own state_dict, taken at
90% of the epoch when the data is made; the samples in the buffer are then lost.
"""

import logging
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import IterableDataset, load_dataset
from loader_measure import BATCH, CONTEXT, Batches, keep_state, kept_state, random_rows, run, split

BUFFER = 10_000
FILE_SAMPLES = 1 << 16


def make(folder: Path, samples: int) -> None:
    kind = pa.list_(pa.uint16(), CONTEXT + 1)
    schema = pa.schema({"tokens": kind})
    for number, first in enumerate(range(0, samples, FILE_SAMPLES)):
        path = folder / f"part-{number:05d}.parquet"
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for rows in random_rows(min(FILE_SAMPLES, samples - first), 1000):
                ids = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=kind)
                writer.write_table(pa.table([ids], schema=schema))
    stream = open_stream(folder)
    keep_state(folder, samples, iter(stream.iter(batch_size=BATCH)), stream.state_dict)


def open_stream(folder: Path) -> IterableDataset:
    files = sorted(map(str, folder.glob("*.parquet")))
    data = load_dataset("parquet", data_files=files, split="train", streaming=True)
    return data.with_format("arrow").shuffle(seed=1, buffer_size=BUFFER, max_buffer_input_shards=1)


def ids_of(table: pa.Table) -> np.ndarray:
    """(rows, CONTEXT + 1) uint16, straight from Arrow's memory: the quickest of the library's formats."""
    column = table["tokens"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), CONTEXT + 1)


def open_batches(folder: Path, samples: int, start: int) -> Batches:
    stream = open_stream(folder)
    if start:
        stream.load_state_dict(kept_state(folder))
    epoch = 0
    while True:
        stream.set_epoch(epoch)
        for table in stream.iter(batch_size=BATCH, drop_last_batch=True):
            yield split(ids_of(table))
        epoch += 1


if __name__ == "__main__":
    # The library sleeps 5 s at the end of an epoch, for its threads to end; that is left out of the figures.
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    logging.getLogger("datasets").setLevel(logging.ERROR)  # it says on each resume that the buffer is filled anew
    run(make, open_batches, ("datasets", "pyarrow"))
