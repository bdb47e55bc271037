"""Rows and the loader over a real prepared dataset."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.data.loader import Loader, Step, pinned, token_steps
from scaletrain.data.mixture import SOURCE_SHIFT
from scaletrain.data.order import Order, Share, digest
from scaletrain.data.packed_rows import PackedRows
from scaletrain.data.reader import ArrayTokens, ShardReader
from scaletrain.data.rows import IGNORED, CutRows, split_rows
from scaletrain.data.shards import Dataset, open_tokens
from scaletrain.data.sources import JoinedRows, MixedRows
from scaletrain.errors import DataError
from scaletrain.model.documents import document_bounds, document_starts


def shard_tokens(dataset: Dataset, split: str) -> list[list[int]]:
    return [open_tokens(dataset, s).tolist() for s in dataset.shards(split)]  # type: ignore[arg-type]


def in_memory(lengths: list[int]) -> ArrayTokens:
    """Documents of these lengths; every token is a number of its own."""
    ends = np.cumsum(lengths).astype(np.uint64)
    return ArrayTokens(np.arange(1, ends[-1] + 1, dtype=np.uint16), "a text", ends)


documents = st.lists(st.integers(1, 30), min_size=1, max_size=20).filter(lambda lengths: sum(lengths) > 1)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_hold_every_token_of_every_shard_once(dataset: Dataset, split: str) -> None:
    assert len(dataset.train) > 1, "the fixture must have several shards"
    rows = split_rows(dataset, split, 32)  # type: ignore[arg-type]
    batch = rows.fetch(np.arange(len(rows)))
    shards = shard_tokens(dataset, split)
    labels = batch["labels"].numpy()
    assert labels[labels != IGNORED].tolist() == [token for shard in shards for token in shard[1:]]
    assert rows.targets == (labels != IGNORED).sum()
    inputs, first = batch["input_ids"].numpy(), 0
    for shard, count in zip(shards, rows.shard_rows.tolist(), strict=True):
        stream = inputs[first : first + count].reshape(-1)
        used = len(shard) - (len(shard) % 32 == 1)  # a last token that no row begins with is a label only
        assert stream[:used].tolist() == shard[:used]
        assert not stream[used:].any()
        first += count


@given(documents, st.integers(2, 17))
@settings(max_examples=100, deadline=None)
def test_under_a_document_mask_each_document_is_learned_by_itself(lengths: list[int], context: int) -> None:
    source = in_memory(lengths)
    rows = CutRows(source, context, document_mask=True)
    batch = rows.fetch(np.arange(len(rows)))
    inputs, labels, numbers = (batch[name].numpy() for name in ("input_ids", "labels", "documents"))
    ends = np.cumsum(lengths)
    real = inputs > 0
    document = np.searchsorted(ends, inputs - 1, side="right")  # tokens are numbered from 1 on
    assert rows.targets == (labels != IGNORED).sum() == sum(lengths) - len(lengths)
    assert (labels[labels != IGNORED] == inputs[labels != IGNORED] + 1).all()
    assert not np.isin(inputs[labels != IGNORED], ends).any()  # the last token of a document bears no loss
    for row in range(len(rows)):
        mine = document[row][real[row]]
        assert (numbers[row][real[row]] == mine - mine[0]).all()
        assert (numbers[row][~real[row]] > numbers[row][real[row]].max()).all() if (~real[row]).any() else True


@given(documents, st.integers(2, 17), st.booleans())
@settings(max_examples=100, deadline=None)
def test_packed_rows_hold_every_token_once_and_cut_no_short_document(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], context: int, mask: bool
) -> None:
    source = in_memory(lengths)
    rows = PackedRows(source, context, tmp_path_factory.mktemp("cache"), document_mask=mask)
    batch = rows.fetch(np.arange(len(rows)))
    inputs, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    assert sorted(inputs[inputs > 0].tolist()) == list(range(1, sum(lengths) + 1))
    assert (labels[labels != IGNORED] == inputs[labels != IGNORED] + 1).all()
    assert rows.targets == (labels != IGNORED).sum() == sum(lengths) - len(lengths)
    begins = np.cumsum(lengths) - lengths
    for begin, length in zip(begins.tolist(), lengths, strict=True):
        holding = np.flatnonzero(((inputs > begin) & (inputs <= begin + length)).any(axis=1))
        assert len(holding) == 1 or length > context
    report = rows.report()
    assert report.rows == len(rows)
    assert report.padding == pytest.approx((inputs == 0).mean())
    assert report.cut_documents == pytest.approx(np.mean([length > context for length in lengths]))


@given(documents, st.integers(2, 17))
@settings(max_examples=50, deadline=None)
def test_report_tells_padding_and_cut_documents(lengths: list[int], context: int) -> None:
    rows = CutRows(in_memory(lengths), context)
    inputs = rows.fetch(np.arange(len(rows)))["input_ids"].numpy()
    report = rows.report()
    assert report.padding == pytest.approx((inputs == 0).mean())
    ends = np.cumsum(lengths)
    cut = [(end - 1) // context != (end - length) // context for end, length in zip(ends, lengths, strict=True)]
    assert report.cut_documents == pytest.approx(np.mean(cut))


@pytest.mark.parametrize("numbers", [[[0, 0, 1, 1, 1], [4, 4, 4, 4, 9]], [[3, 3]], [[0], [0]], [[1, 2], [0, 0]]])
def test_a_batch_for_a_gpu_tells_where_documents_begin(
    numbers: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the model would find it there, and wait."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda values: values)  # takes a GPU
    documents = torch.tensor(numbers, dtype=torch.int32)
    batch = pinned({"documents": documents}, pin=True)
    expected = document_bounds(document_starts(documents))
    assert torch.equal(batch["document_bounds"], expected)
    assert batch["document_bounds"].dtype == expected.dtype
    assert pinned({"input_ids": documents}, pin=True).keys() == {"input_ids"}
    assert pinned({"documents": documents}, pin=False).keys() == {"documents"}


def test_padding_row_bears_no_loss(dataset: Dataset, tmp_path: Path) -> None:
    reader = ShardReader(dataset, "train")
    for rows in (CutRows(reader, 16), CutRows(reader, 16, document_mask=True), PackedRows(reader, 16, tmp_path)):
        batch = rows.fetch(np.array([-1, 0]))
        assert (batch["labels"][0] == IGNORED).all()
        assert (batch["labels"][1] != IGNORED).any()


def test_a_split_too_short_for_a_sample_is_refused() -> None:
    with pytest.raises(DataError, match="a text has 1 tokens, fewer than the 2 that a sample takes: prepare more text"):
        CutRows(ArrayTokens(np.array([1], np.uint16), "a text"), 8)


def test_a_split_without_documents_is_refused(tmp_path: Path) -> None:
    nothing = ArrayTokens(np.array([], np.uint16), "a text", np.array([], np.uint64))
    with pytest.raises(DataError, match="a text has no document: prepare more text"):
        PackedRows(nothing, 8, tmp_path)


def test_a_shard_that_shrinks_under_a_run_is_told(dataset: Dataset, tmp_path: Path) -> None:
    short = tmp_path / "short.npy"
    short.write_bytes(bytes(200))

    class Shrunk:
        def tokens(self, shard: object) -> tuple[Path, int]:
            return short, 128

    reader = ShardReader(dataset, "train")
    reader._files = Shrunk()  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"tokens-00000.npy ends too early: it was changed while in use; copy the"):
        CutRows(reader, 64).fetch(np.array([0]))
    short.unlink()
    reader.close()
    with pytest.raises(DataError, match=r"short.npy cannot be opened \(No such file or directory\): copy the dataset"):
        CutRows(reader, 64).fetch(np.array([0]))


def test_mixed_rows_are_those_of_the_source_that_an_id_names() -> None:
    parts = [CutRows(in_memory([40]), 8, document_mask=True), CutRows(in_memory([7, 90]), 8, document_mask=True)]
    ids = np.array([(1 << SOURCE_SHIFT) | 3, 2, -1, (1 << SOURCE_SHIFT) | 0, 0])
    batch = MixedRows(parts).fetch(ids)
    for place, (part, row) in enumerate([(1, 3), (0, 2), (0, -1), (1, 0), (0, 0)]):
        alone = parts[part].fetch(np.array([row]))
        assert all((batch[name][place] == alone[name][0]).all() for name in ("input_ids", "labels", "documents"))
    assert (MixedRows(parts).fetch(np.array([-1, -1]))["labels"] == IGNORED).all()


def test_joined_rows_are_all_rows_one_part_after_the_other() -> None:
    parts = [CutRows(in_memory([40]), 8), CutRows(in_memory([97]), 8)]
    joined = JoinedRows(parts)
    assert len(joined) == len(parts[0]) + len(parts[1])
    batch = joined.fetch(np.array([*range(len(joined)), -1]))
    apart = [part.fetch(np.arange(len(part)))["input_ids"] for part in parts]
    assert batch["input_ids"][:-1].tolist() == [row for rows in apart for row in rows.tolist()]
    assert (batch["labels"][-1] == IGNORED).all()


def open_loader(dataset: Dataset, start: int, ranks: int = 1, rank: int = 0) -> Loader:
    rows = split_rows(dataset, "train", 16)
    share = Share(rank, ranks, micro_batch=2, accumulation=2)
    return Loader(token_steps(rows, Order(rows.shard_rows, seed=1), share, start=start), ahead=2)


def test_loader_gives_the_batches_of_the_order_from_any_start(dataset: Dataset) -> None:
    rows = split_rows(dataset, "train", 16)
    order = Order(rows.shard_rows, seed=1)
    loader = open_loader(dataset, start=8)
    for step in range(3):
        wanted = rows.fetch(order.ids(8 + 4 * step, 4))["input_ids"].reshape(2, 2, 16)
        got = next(loader).batches
        assert [(g["input_ids"] == w).all().item() for g, w in zip(got, wanted, strict=True)] == [True, True]
    loader.close()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_read_and_count_the_batch_of_one_rank(dataset: Dataset, ranks: int) -> None:
    rows = split_rows(dataset, "train", 16)
    ids = Order(rows.shard_rows, seed=1).ids(4 * ranks, 4 * ranks)
    wanted = sorted(tuple(r.tolist()) for r in rows.fetch(ids)["input_ids"])
    got, total = [], 0
    for rank in range(ranks):
        loader = open_loader(dataset, start=4 * ranks, ranks=ranks, rank=rank)
        step = next(loader)
        got += [tuple(r.tolist()) for micro in step.batches for r in micro["input_ids"]]
        total += step.digest
        loader.close()
    assert sorted(got) == wanted
    assert total % 2**64 == digest(np.arange(4 * ranks, 8 * ranks), ids)


def test_loader_passes_an_error_of_its_thread_on() -> None:
    def broken() -> Iterator[Step]:
        raise DataError("shard 7 is gone")
        yield Step([])

    loader = Loader(broken(), ahead=1)
    with pytest.raises(DataError, match="shard 7 is gone"):
        next(loader)
    loader.close()


def test_closed_loader_ends_its_thread(dataset: Dataset) -> None:
    loader = open_loader(dataset, start=0)
    next(loader)
    loader.close()
    deadline = time.monotonic() + 5
    while any(t.name == "loader" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(t.name == "loader" for t in threading.enumerate())
