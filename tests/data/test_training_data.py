"""What a run reads: opened, bounded by its cache, numbered over resumes, announced to remote sources."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaletrain.config.schema import Data
from scaletrain.data.announce import announce
from scaletrain.data.audit.dataset import open_to_audit
from scaletrain.data.audit.order import Usage
from scaletrain.data.cache_need import check_cache
from scaletrain.data.mixture import SOURCE_SHIFT, MixtureOrder, Segment
from scaletrain.data.order import Order, Share
from scaletrain.data.packed_rows import PackedRows
from scaletrain.data.reader import ARRAYS, ArrayTokens, Ends, ShardReader
from scaletrain.data.remote_dataset import RemoteFiles
from scaletrain.data.rows import CutRows
from scaletrain.data.shards import DTYPES, Dataset, LocalFiles, Shard
from scaletrain.data.shuffle import Ids
from scaletrain.data.training_data import TrainingData, open_training_data
from scaletrain.errors import DataError
from tests.data.made import TOKENIZER, make


def opened(tmp_path: Path, **options: Any) -> TrainingData:
    cache = {"dir": str(tmp_path / "cache"), **options.pop("cache", {})}
    return open_training_data(Data.model_validate({"context_length": 8, "cache": cache, **options}), seed=1)


def remote(name: str, tokens: list[int], validation: tuple[int, ...] = (), documents: int = 1) -> Dataset:
    """A dataset at a URL that nobody asks for: shards of so many tokens."""
    shards = {
        split: tuple(Shard(f"t{n}", f"d{n}", count, documents, 1, "0" * 32, "1" * 32) for n, count in enumerate(counts))
        for split, counts in (("train", tokens), ("validation", validation))
    }
    files = RemoteFiles(None, DTYPES["uint16"], documents=False)  # type: ignore[arg-type]
    return Dataset(name, files, "uint16", TOKENIZER, Path("x"), shards["train"], shards["validation"], "f")


def checked(max_gb: float, *datasets: Dataset, **options: Any) -> None:
    check_cache(datasets, Data.model_validate({"path": "x", "cache": {"max_gb": max_gb}, **options}))


def test_a_cache_must_hold_two_windows_of_each_source_as_far_as_it_has_shards() -> None:
    large, small = remote("s3://a", [500_000_000] * 100), remote("s3://b", [5_000_000] * 10)
    checked(32.2, large, small, shuffle_window_shards=16)  # 32 GB, and the whole 0.1 GB of the other
    with pytest.raises(
        DataError,
        match=r"data.cache.max_gb=32 does not hold the 32.1 GB that two windows of data.shuffle_window_shards=16 shards"
        r" of each remote source take: raise it, or lower data.shuffle_window_shards",
    ):
        checked(32, large, small, shuffle_window_shards=16)
    checked(2.1, large, shuffle=False)
    with pytest.raises(DataError, match=r"data.shuffle_window_shards=1 shards of each remote source take: raise it$"):
        checked(1.9, large, shuffle=False)
    checked(0.001, replace(large, name="/a/folder", files=LocalFiles(Path("/a/folder"), DTYPES["uint16"])))


def test_a_full_shuffle_needs_a_cache_for_everything() -> None:
    dataset = remote("s3://a", [500_000_000] * 3)
    checked(3.1, dataset)
    with pytest.raises(
        DataError,
        match=r"data.cache.max_gb=2.9 is less than the 3 GB of s3://a, and a full shuffle reads all of it at once: set "
        "data.shuffle_window_shards, or raise data.cache.max_gb",
    ):
        checked(2.9, dataset)


def test_document_ends_take_room_in_a_cache_where_they_are_read() -> None:
    dataset = remote("s3://a", [1_000_000] * 2, documents=500_000)
    checked(0.0041, dataset)
    for options in ({"document_mask": True}, {"packing": "best_fit"}):
        checked(0.0121, dataset, **options)
        with pytest.raises(DataError, match="is less than the 0.012 GB of s3://a"):
            checked(0.0041, dataset, **options)


def test_a_cache_must_hold_the_largest_validation_shard() -> None:
    dataset = remote("s3://a", [1000] * 20, validation=(1000, 10_000_000))
    checked(0.021, dataset, shuffle_window_shards=2)
    with pytest.raises(
        DataError, match=r"max_gb=0.019 does not hold the largest validation shard of s3://a \(0.02 GB\): raise it"
    ):
        checked(0.019, dataset, shuffle_window_shards=2)


def test_the_check_is_made_when_a_run_opens_its_data(tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", [[9, 9]] * 4)
    with pytest.raises(DataError, match="and a full shuffle reads all of it at once"):
        opened(tmp_path, path=f"file://{dataset.path}", cache={"max_gb": 6e-7})


def test_what_no_source_needs_to_be_told_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    own = make(tmp_path / "set", [[9, 9]]).path
    for key, value in (("tokenizer", "gpt2"), ("dtype", "uint32")):
        for path in (str(own), f"file://{own}"):
            rule = f"data.{key}={value} has no effect: {path} carries its own {key}; remove data.{key}"
            with pytest.raises(DataError, match=rule):
                opened(tmp_path, path=path, **{key: value})
            with pytest.raises(DataError, match=rule):
                open_to_audit(path, Data.model_validate({"cache": {"dir": str(tmp_path / "cache")}, key: value}))
    (tmp_path / "other.bin").write_bytes(np.arange(9, dtype=np.uint16).tobytes())
    mixture = {"own": {"path": dataset.name}, "other": {"path": str(tmp_path / "other.bin")}}
    both = opened(tmp_path, mixture=mixture, tokenizer=str(dataset.tokenizer_folder), dtype="uint16")
    assert both.sources["other"].tokens("train") == 9


def test_bits_per_byte_need_the_bytes_of_every_source_and_a_token_to_predict(tmp_path: Path) -> None:
    known = str(make(tmp_path / "known", [[9, 9]], [[9, 9]]).path)
    unknown = str(make(tmp_path / "unknown", [[9, 9]], [[9, 9]], text_bytes=0).path)
    assert opened(tmp_path, path=known).bytes_per_target() == 36 / 17
    assert opened(tmp_path, path=unknown).bytes_per_target() is None
    both = {"a": {"path": known}, "b": {"path": unknown}}
    assert opened(tmp_path, mixture=both).bytes_per_target() is None
    nothing = str(make(tmp_path / "nothing", [[9, 9]], [[1, 1, 1]]).path)
    assert opened(tmp_path, path=nothing, document_mask=True).bytes_per_target() is None


def test_validation_shards_without_a_row_are_no_validation(tmp_path: Path) -> None:
    assert opened(tmp_path, path=str(make(tmp_path / "set", [[9]], [[1], [1]]).path)).validation_rows() is None


def test_a_source_with_more_rows_than_ids_is_refused(tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", [[9, 9]])
    data = opened(tmp_path, path=str(dataset.path))
    large = replace(dataset, train=(replace(dataset.train[0], tokens=8 * (1 << SOURCE_SHIFT) + 9),))
    with pytest.raises(
        DataError,
        match="the train split has 1,099,511,627,777 samples of 8 tokens, more than the 1,099,511,627,776 that get a "
        "number: raise data.context_length, or divide it among sources",
    ):
        len(replace(data, sources={"data": large}).train["data"])


def test_a_limit_of_epochs_is_taken_as_it_is_written(tmp_path: Path) -> None:
    data = opened(tmp_path, path=str(make(tmp_path / "set", [[801]]).path), max_epochs=0.29)
    assert len(data.train["data"]) == 100
    assert data.repeat_limit(data.reading({}, 0).order, 1000) == (29, "data")
    assert data.repeat_limit(data.reading({}, 0).order, 29) is None


def mixed(tmp_path: Path, **weights: float) -> TrainingData:
    return opened(tmp_path, mixture={name: {"path": str(tmp_path / name), "weight": w} for name, w in weights.items()})


def test_a_source_that_was_never_read_may_leave_and_no_other_moves(tmp_path: Path) -> None:
    for name in "abcd":
        make(tmp_path / name, [[90 + ord(name)]])
    began = mixed(tmp_path, a=1, b=0, c=1).reading({}, 0)
    assert began.record["sources"] == ["a", "b", "c"]
    gone = mixed(tmp_path, a=1, c=1).renumbered(began.record)
    now = gone.reading(began.record, 100)
    assert (now.record, now.is_changed) == (began.record, False)
    assert (now.order.ids(0, 3000) == began.order.ids(0, 3000)).all()
    assert set(now.planned(3000)) == {"a", "c"}
    batch = gone.rows("train").fetch(now.order.ids(0, 40))
    assert (
        batch["input_ids"] == mixed(tmp_path, a=1, b=0, c=1).rows("train").fetch(now.order.ids(0, 40))["input_ids"]
    ).all()
    assert (gone.rows("train").fetch(np.array([-1]))["labels"] < 0).all()

    later = mixed(tmp_path, d=1, a=1, c=1).renumbered(now.record)
    with_more = later.reading(now.record, 100)
    assert with_more.record["sources"] == ["a", "b", "c", "d"]
    assert set((with_more.order.ids(100, 900) >> SOURCE_SHIFT).tolist()) == {0, 2, 3}
    back = mixed(tmp_path, a=1, b=2, c=1, d=1).renumbered(with_more.record)
    assert back.numbered == ("a", "b", "c", "d")

    counts = gone.row_counts()
    assert (list(counts), counts["b"]) == (["a", "b", "c"], 0)
    usage = Usage(counts)
    usage.add(now.order.ids(0, 100))
    uses, faults = usage.finish()
    assert ([use.name for use in uses], faults) == (["a", "c"], [])
    assert sum(use.samples for use in uses) == 100


def test_a_source_that_was_read_stays(tmp_path: Path) -> None:
    for name in "ab":
        make(tmp_path / name, [[90 + ord(name)]])
    record = mixed(tmp_path, a=1, b=1).reading({}, 0).record
    gone = mixed(tmp_path, a=1).renumbered(record)
    with pytest.raises(
        DataError, match="data.mixture no longer names b, from which this run has read: keep it with weight 0"
    ):
        gone.reading(record, 100)
    assert gone.reading(record, 0).record["segments"] == [{"start": 0, "weights": {"a": 1_000_000}}]


class Asked(Order):
    """An order that notes how many ids it was asked for."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(np.array(rows), seed=1, window=2)
        self.counts: list[int] = []

    def ids(self, start: int, count: int) -> Ids:
        self.counts.append(count)
        return super().ids(start, count)


def test_a_small_source_is_told_of_two_epochs_however_often_it_is_read(tmp_path: Path) -> None:
    noted: list[int] = []

    class Noting(ShardReader):
        def prefetch(self, shards: list[int]) -> None:
            noted.extend(shards)

    rows = CutRows(Noting(make(tmp_path / "set", [[25, 25]] * 5), "train"), 8)
    own = Asked(rows.shard_rows.tolist())
    order = MixtureOrder({"tiny": own, "other": own}, [Segment(0, {"tiny": 500_000, "other": 500_000})], seed=1)
    announce(order, {"tiny": (rows, own)}, 5_000, 1 << 18)
    assert own.counts == [2 * len(rows)]
    assert sorted(noted) == [0, 1, 2, 3, 4]
    announce(order, {"tiny": (rows, own)}, 5_000, 4)
    assert own.counts[1:] == [order.used(5_004)["tiny"] - order.used(5_000)["tiny"]]
    announce(own, {"tiny": (rows, own)}, 3, 4)
    assert own.counts[-1] == 4


def test_a_remote_source_has_its_shards_before_they_are_read(tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", [[25, 25 + number] for number in range(6)])
    data = opened(tmp_path, path=f"file://{dataset.path}", shuffle_window_shards=2)
    next(data.steps(data.reading({}, 0), Share(0, 1, 1, 1), start=0, position=None, pin=False))  # one sample
    deadline = time.monotonic() + 10
    while len(list((tmp_path / "cache" / "shards").glob("?" * 32))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(list((tmp_path / "cache" / "shards").glob("?" * 32))) == 2  # of a window


class Slow(ArrayTokens):
    """Shards of one document, whose ends take a while to come; counts how often they are read."""

    def __init__(self, shards: int) -> None:
        super().__init__(np.arange(100, dtype=np.uint16), "a text")
        self.lengths = [100] * shards
        self.read_ends: list[int] = []
        self.announced: list[list[int]] = []
        self.under_way: set[int] = set()
        self.most_at_once = 0

    def ends(self, shard: int) -> Ends:
        self.read_ends.append(shard)
        self.under_way.add(shard)
        self.most_at_once = max(self.most_at_once, len(self.under_way))
        time.sleep(0.01)
        self.under_way.discard(shard)
        return np.array([20 + shard, 100], np.uint64)

    def documents_key(self, shard: int) -> str:
        return f"key{shard}"

    def prefetch_documents(self, shards: list[int]) -> None:
        self.announced.append(shards)


def test_each_shard_is_packed_once_for_all_that_start_together(tmp_path: Path) -> None:
    source, found = Slow(20), []
    threads = [threading.Thread(target=lambda: found.append(len(PackedRows(source, 64, tmp_path)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert sorted(source.read_ends) == list(range(20))
    assert source.most_at_once > 1, "nobody waits while there is another shard to pack"
    assert sorted(source.announced[0]) == list(range(20))
    assert not list((tmp_path / "packing").glob("*.lock"))
    source.announced.clear()
    PackedRows(source, 64, tmp_path)
    assert source.announced == []


def test_packing_a_remote_dataset_brings_its_document_ends_alone(tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", [[5, 6 + number] for number in range(5)])
    data = opened(tmp_path, path=f"file://{dataset.path}", packing="best_fit")
    assert len(data.train["data"]) == 10
    here = {path.name for path in (tmp_path / "cache" / "shards").iterdir()}
    assert here == {shard.docs_xxh3 for shard in dataset.train}


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_cannot_keep_a_packing_is_told(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = ArrayTokens(np.arange(9, dtype=np.uint16), "a text")
    with pytest.raises(
        DataError, match=r"the cache .* cannot be written \(.*\): free some space, or set data.cache.dir to another"
    ):
        PackedRows(source, 4, tmp_path / place)


def test_packings_beyond_the_memory_for_them_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ShardReader(make(tmp_path / "set", [[5 + number, 30] for number in range(6)]), "train")
    rows = PackedRows(reader, 8, tmp_path / "cache", document_mask=True)
    ids = np.random.default_rng(1).permutation(len(rows))
    whole = rows.fetch(ids)
    assert len(rows._packings) == 6
    monkeypatch.setattr(ARRAYS, "_most", lambda: 1)
    few = PackedRows(reader, 8, tmp_path / "cache", document_mask=True)
    assert all((values == whole[name]).all() for name, values in few.fetch(ids).items())
    assert len(few._packings) <= 1
