"""Readers: files and memory are bounded for the process, and a cache may drop what they read."""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scaletrain.config.schema import Data
from scaletrain.data.budget import Budget
from scaletrain.data.cache import Cache, Wanted
from scaletrain.data.opening import open_data
from scaletrain.data.packed_rows import PackedRows
from scaletrain.data.reader import ShardReader
from scaletrain.data.remote import RemoteFolder
from scaletrain.data.remote_dataset import open_remote_dataset
from scaletrain.data.rows import CutRows
from scaletrain.errors import DataError
from tests.data.made import make


@pytest.fixture
def lowered() -> Iterator[int]:
    """This process may open 100 files more than it has open, or a little over."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(open_files()) + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}


def held(cache: Path) -> list[str]:
    """Files that were dropped from the cache and are still open here."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            links.append(str(entry.readlink()))
    return [link for link in links if link.startswith(str(cache)) and link.endswith("(deleted)")]


def first_tokens(reader: ShardReader, shard: int, count: int = 4) -> list[int]:
    out = np.empty(count, reader.dtype)
    reader.read(shard, 0, out.data.cast("B"))
    return out.tolist()


def test_a_budget_drops_what_was_used_longest_ago_whoever_keeps_it() -> None:
    budget = Budget(lambda: 10)
    one: dict[int, str] = {}
    two: dict[int, str] = {}
    budget.add(one, 1, "a", 4)
    budget.add(two, 1, "b", 4)
    budget.mark(one, 1)
    budget.add(one, 2, "c", 4)
    assert (one, two) == ({1: "a", 2: "c"}, {})
    budget.mark(two, 1)  # gone: nothing to mark
    budget.add(two, 5, "large", 100)
    assert (one, two) == ({}, {5: "large"})
    budget.add(two, 5, "smaller", 3)
    budget.add(one, 3, "d", 7)
    assert (one, two) == ({3: "d"}, {5: "smaller"})
    budget.drop("d".__eq__)
    assert (one, two) == ({}, {5: "smaller"})
    budget.add(one, 4, "e", 7)  # 3 of the 10 are left to the other
    assert (one, two) == ({4: "e"}, {5: "smaller"})


@pytest.mark.parametrize("packing", [False, True])
def test_readers_of_a_process_together_stay_within_its_open_files(lowered: int, packing: bool, tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", [[5, 6]] * 90)
    readers = [ShardReader(dataset, "train") for _ in range(4)]
    before = len(open_files())
    for reader in readers:
        if packing:
            rows: CutRows | PackedRows = PackedRows(reader, 4, tmp_path / "cache", document_mask=True)
        else:
            rows = CutRows(reader, 8, document_mask=True)
        assert len(rows.fetch(np.arange(len(rows)))["input_ids"]) == len(rows)
    assert 16 <= len(open_files()) - before <= max(16, lowered // 2)
    for reader in readers:
        reader.close()
    assert len(open_files()) == before


def test_a_reader_that_ends_closes_its_files(tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", [[5, 6]] * 20)
    before = open_files()
    reader = ShardReader(dataset, "train")
    for shard in range(20):
        first_tokens(reader, shard)
    assert len(open_files()) == len(before) + 20
    del reader
    assert open_files() == before


def test_too_many_open_files_are_told_as_that(lowered: int, tmp_path: Path) -> None:
    reader = ShardReader(make(tmp_path / "set", [[5, 6]]), "train")
    taken = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        rule = rf"cannot be opened \(Too many open files\): this process may have {lowered:,} files open; raise the"
        with pytest.raises(DataError, match=f"tokens-00000.npy {rule}"):
            first_tokens(reader, 0)
        with pytest.raises(DataError, match=f"docs-00000.npy {rule}"):
            reader.ends(0)
        with pytest.raises(DataError, match=r"the cache .* cannot be used \(Too many open files\): raise the limit"):
            Cache(tmp_path / "cache", None)
    finally:
        for descriptor in taken:
            os.close(descriptor)
    assert first_tokens(reader, 0) == [2, 3, 4, 5]


def test_document_ends_that_are_cut_or_gone_are_told(tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", [[5, 6]])
    docs = dataset.path / "docs-00000.npy"
    docs.write_bytes(docs.read_bytes()[:-8])
    with pytest.raises(DataError, match="docs-00000.npy ends too early: it was changed while in use; copy the dataset"):
        ShardReader(dataset, "train").ends(0)
    docs.unlink()
    with pytest.raises(DataError, match=r"docs-00000.npy cannot be opened \(No such file or directory\): copy the"):
        ShardReader(dataset, "train").ends(0)


def test_a_program_that_ends_with_open_files_is_silent(tmp_path: Path) -> None:
    make(tmp_path / "set", [[5, 6]])
    code = (
        "import sys; from scaletrain.data.reader import ShardReader; from scaletrain.data.shards import open_dataset\n"
        "reader = ShardReader(open_dataset(sys.argv[1]), 'train'); reader.read(0, 0, memoryview(bytearray(4)))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "set"], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_files_that_the_cache_dropped_are_let_go_when_another_is_opened(tmp_path: Path) -> None:
    dataset = make(tmp_path / "set", [[1000, 1000 + number] for number in range(8)])
    cache = tmp_path / "cache"
    remote = open_remote_dataset(RemoteFolder(f"file://{dataset.path}", Cache(cache, 13_000, grace_seconds=0)))
    one, two = ShardReader(remote, "train"), ShardReader(remote, "train")
    first_tokens(two, 0)  # and nothing more, like a validation split between two evaluations
    for shard in range(1, 8):
        first_tokens(one, shard)
        assert len(list((cache / "shards").iterdir())) <= 3
        assert len(held(cache)) <= 1
    assert first_tokens(two, 0) == [2, 3, 4, 5]


class Dropping(RemoteFolder):
    """What another process may do as soon as a file is there: drop it, the first `left` times."""

    left = 0

    def path(self, file: Wanted) -> Path:
        found = super().path(file)
        if self.left:
            self.left -= 1
            found.unlink()
        return found


def open_dropping(folder: Path, left: int) -> ShardReader:
    dataset = make(folder / "set", [[5, 6]])
    place = Dropping(f"file://{dataset.path}", Cache(folder / "cache", None))
    place.left = left
    return ShardReader(open_remote_dataset(place), "train")


def test_a_file_dropped_before_it_is_open_is_brought_again(tmp_path: Path) -> None:
    assert first_tokens(open_dropping(tmp_path / "a", left=3), 0) == [2, 3, 4, 5]
    assert open_dropping(tmp_path / "b", left=3).ends(0).tolist() == [5, 11]


def test_a_cache_that_drops_a_file_each_time_is_blamed(tmp_path: Path) -> None:
    reader = open_dropping(tmp_path, left=100)
    rule = "was dropped from the cache 5 times before it could be opened: raise data.cache.max_gb"
    with pytest.raises(DataError, match=f"tokens-00000.npy {rule}"):
        first_tokens(reader, 0)
    with pytest.raises(DataError, match=f"docs-00000.npy {rule}"):
        reader.ends(0)


@pytest.mark.parametrize("options", [{"packing": "best_fit"}, {"document_mask": True}, {}])
def test_document_ends_are_announced_where_they_are_read(options: dict[str, object], tmp_path: Path) -> None:
    data = Data.model_validate({"cache": {"dir": str(tmp_path / "cache")}, **options})
    remote = open_data(f"file://{make(tmp_path / 'set', [[5, 6]]).path}", data)
    assert remote.files.documents == bool(options)  # type: ignore[attr-defined]
