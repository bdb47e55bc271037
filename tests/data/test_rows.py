"""Rows and the loader over a real prepared dataset."""

import threading
import time

import numpy as np
import pytest

from scaletrain.data.loader import Loader
from scaletrain.data.order import Order, Share
from scaletrain.data.rows import IGNORED, TokenRows, split_rows
from scaletrain.data.shards import Dataset, open_tokens
from scaletrain.errors import DataError


def stream(dataset: Dataset, split: str) -> np.ndarray:
    return np.concatenate([open_tokens(dataset, s) for s in dataset.shards(split)])  # type: ignore[arg-type]


def test_rows_are_the_stream_cut_at_the_context_over_shard_ends(dataset: Dataset) -> None:
    assert len(dataset.train) > 1, "the fixture must have several shards"
    rows, tokens = split_rows(dataset, "train", 32), stream(dataset, "train")
    assert len(rows) == (len(tokens) - 1) // 32
    batch = rows.fetch(np.arange(len(rows)))
    used = len(rows) * 32
    assert (batch["input_ids"].numpy().reshape(-1) == tokens[:used]).all()
    assert (batch["labels"].numpy().reshape(-1) == tokens[1 : used + 1]).all()


def test_partial_rows_predict_each_validation_token_once(dataset: Dataset) -> None:
    tokens = stream(dataset, "validation")
    context = 1 + len(tokens) // 3
    rows = split_rows(dataset, "validation", context, partial=True)
    labels = rows.fetch(np.arange(len(rows)))["labels"].numpy()
    assert labels[labels != IGNORED].tolist() == tokens[1:].tolist()


def test_rows_of_arrays_in_memory_are_cut_over_their_ends() -> None:
    arrays = [np.array(ids, dtype=np.uint16) for ids in ([1], [2, 3, 4], [5])]
    batch = TokenRows(arrays, 3, "a text", partial=True).fetch(np.arange(2))
    assert batch["labels"].tolist() == [[2, 3, 4], [5, IGNORED, IGNORED]]
    with pytest.raises(DataError, match=r"a text has 5 tokens, fewer than the 9 that one sample of context_length=8"):
        TokenRows(arrays, 8, "a text")


def test_padding_row_bears_no_loss(dataset: Dataset) -> None:
    batch = split_rows(dataset, "train", 16).fetch(np.array([-1, 0]))
    assert (batch["labels"][0] == IGNORED).all()
    assert (batch["labels"][1] != IGNORED).all()


def test_a_split_shorter_than_one_sample_is_refused_with_the_numbers(dataset: Dataset) -> None:
    total = dataset.tokens("validation")
    with pytest.raises(DataError, match=rf"validation split has {total:,} tokens, fewer than the .* prepare more text"):
        split_rows(dataset, "validation", total * 10)


def make_loader(dataset: Dataset, start: int, ranks: int = 1, rank: int = 0) -> Loader:
    rows = split_rows(dataset, "train", 16)
    share = Share(rank, ranks, micro_batch=2, accumulation=2)
    return Loader(rows, Order(len(rows), seed=1), share, start=start, ahead=2, pin=False)


def test_loader_gives_the_batches_of_the_order_from_any_start(dataset: Dataset) -> None:
    rows = split_rows(dataset, "train", 16)
    order = Order(len(rows), seed=1)
    loader = make_loader(dataset, start=8)
    for step in range(3):
        wanted = rows.fetch(order.ids(8 + 4 * step, 4))["input_ids"].reshape(2, 2, 16)
        got = next(loader)
        assert [(g["input_ids"] == w).all().item() for g, w in zip(got, wanted, strict=True)] == [True, True]
    loader.close()


def test_ranks_together_read_the_batch_of_one_rank(dataset: Dataset) -> None:
    rows = split_rows(dataset, "train", 16)
    wanted = {tuple(r.tolist()) for r in rows.fetch(Order(len(rows), seed=1).ids(0, 8))["input_ids"]}
    got = set()
    for rank in range(2):
        loader = make_loader(dataset, start=0, ranks=2, rank=rank)
        got |= {tuple(r.tolist()) for micro in next(loader) for r in micro["input_ids"]}
        loader.close()
    assert got == wanted


def test_loader_passes_an_error_of_its_thread_on() -> None:
    class Broken:
        def __len__(self) -> int:
            return 100

        def fetch(self, ids: np.ndarray) -> dict:  # type: ignore[type-arg]
            raise DataError("shard 7 is gone")

    loader = Loader(Broken(), Order(100, 1), Share(0, 1, 1, 1), start=0, ahead=1, pin=False)
    with pytest.raises(DataError, match="shard 7 is gone"):
        next(loader)
    loader.close()


def test_closed_loader_ends_its_thread(dataset: Dataset) -> None:
    loader = make_loader(dataset, start=0)
    next(loader)
    loader.close()
    deadline = time.monotonic() + 5
    while any(t.name == "loader" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(t.name == "loader" for t in threading.enumerate())
