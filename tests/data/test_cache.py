"""The cache of remote files: one writer, bounded, what is needed stays, and a kill leaves nothing behind."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from scaletrain.data.cache import Cache, NoRoomError, Wanted, cache_at
from scaletrain.errors import DataError
from scaletrain.runtime.locks import locked
from tests.data.servers import small_disk

ROOT = Path(__file__).resolve().parents[2]
KB = 1 << 10


def content(number: int, size: int = 100 * KB) -> bytes:
    return bytes([number]) * size


def wanted(number: int, size: int = 100 * KB) -> Wanted:
    data = content(number, size)
    return Wanted(f"tokens-{number:05d}.npy", size, xxhash.xxh3_128_hexdigest(data))


def store(cache: Cache, number: int, patient: bool = True, size: int = 100 * KB) -> Path:
    file = wanted(number, size)
    with cache.writing(file, patient) as part:
        if part is not None:
            part.write(content(number, size))
    return cache.place(file)


def numbers(cache: Cache) -> set[int]:
    """Which of the files 1 to 9 are in the cache."""
    return {number for number in range(1, 10) if cache.place(wanted(number)).exists()}


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """A Python program that imports this module's names."""
    head = "import os, sys, time\nfrom pathlib import Path\nfrom tests.data.test_cache import *\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def said(process: "subprocess.Popen[str]") -> str:
    """The next line that the program prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def small(tmp_path: Path) -> Cache:
    """Holds three files of 100 KB."""
    return Cache(tmp_path / "cache", 320 * KB, grace_seconds=0)


@pytest.mark.parametrize(("xxh3", "size"), [("../../etc/passwd", 1), ("A" * 32, 1), ("0" * 31, 1), ("0" * 32, -1)])
def test_a_hash_that_is_none_never_becomes_a_file_name(xxh3: str, size: int) -> None:
    with pytest.raises(DataError, match=f"tokens.npy: {size} bytes with the xxh3 '{xxh3}' cannot be: .* prepare"):
        Wanted("tokens.npy", size, xxh3)


def test_a_stored_file_is_found_again_by_a_later_run(tmp_path: Path) -> None:
    path = store(Cache(tmp_path, None), 1)
    assert Cache(tmp_path, None).find(wanted(1)) == path
    assert path.read_bytes() == content(1)
    with Cache(tmp_path, None).writing(wanted(1), patient=True) as part:
        assert part is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000 * KB)
    with pytest.raises(KeyError), cache.writing(wanted(1), patient=True) as part:
        assert part is not None
        part.write(content(1)[:1000])
        raise KeyError
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_part_begun_again_holds_only_what_came_after(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    with cache.writing(wanted(1), patient=True) as part:
        assert part is not None
        part.write(content(2)[: 50 * KB])
        part.restart()
        part.write(content(1))
        assert (part.written, part.xxh3) == (100 * KB, wanted(1).xxh3)
    assert cache.place(wanted(1)).read_bytes() == content(1)


def test_a_file_whose_size_changed_on_the_disk_is_not_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    os.truncate(store(cache, 1), 5)
    assert cache.find(wanted(1)) is None
    assert store(cache, 1).read_bytes() == content(1)


def test_the_least_recently_used_file_leaves_first(small: Cache) -> None:
    for number in (1, 2, 3):
        store(small, number)
        time.sleep(0.01)
    assert small.find(wanted(1)) is not None
    store(small, 4)
    assert numbers(small) == {1, 3, 4}


def test_what_is_needed_leaves_last_and_what_is_needed_latest_before_it(small: Cache) -> None:
    for number in (1, 2, 3):
        store(small, number)
    small.need(7, [wanted(1).xxh3, wanted(2).xxh3])
    store(small, 4)
    assert numbers(small) == {1, 2, 4}
    store(small, 5)
    assert numbers(small) == {1, 2, 5}
    small.need(7, [wanted(number).xxh3 for number in (5, 1, 2)])
    store(small, 6)
    assert numbers(small) == {1, 5, 6}
    small.need(7, [])
    time.sleep(0.01)
    for number in (7, 8):
        store(small, number)
        time.sleep(0.01)
    assert numbers(small) == {6, 7, 8}


def test_fetching_ahead_drops_only_what_is_needed_later(small: Cache) -> None:
    for number in (1, 2, 3):
        store(small, number)
    small.need(7, [wanted(number).xxh3 for number in (1, 2, 4, 3)])
    store(small, 4, patient=False)
    assert numbers(small) == {1, 2, 4}
    for unplanned in (3, 5):
        with pytest.raises(NoRoomError):
            store(small, unplanned, patient=False)
    assert numbers(small) == {1, 2, 4}


def test_a_file_asked_for_a_moment_ago_stays_until_it_can_be_opened(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 150 * KB, grace_seconds=0.4)
    store(cache, 1)
    with pytest.raises(NoRoomError):
        store(cache, 2, patient=False)
    began = time.monotonic()
    store(cache, 2)
    assert time.monotonic() - began > 0.3
    assert numbers(cache) == {2}


def test_a_reader_keeps_an_evicted_file(small: Cache) -> None:
    with store(small, 1).open("rb") as file:
        for number in (2, 3, 4):
            store(small, number)
        assert numbers(small) == {2, 3, 4}
        assert file.read() == content(1)


def test_a_file_larger_than_the_whole_cache_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="may hold 99 bytes, tokens-00001.npy alone has 102400: raise data.cache.max_gb"
    ):
        store(Cache(tmp_path, 99), 1)
    assert list((tmp_path / "shards").iterdir()) == []


def test_room_that_a_writer_has_reserved_is_not_given_away(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 150 * KB, grace_seconds=0)
    second = threading.Thread(target=store, args=(cache, 2))
    with cache.writing(wanted(1), patient=True) as part:
        assert part is not None
        with pytest.raises(NoRoomError):
            store(cache, 3, patient=False)
        second.start()
        time.sleep(0.15)
        assert not cache.place(wanted(2)).exists()
        part.write(content(1))
    second.join(10)
    assert numbers(cache) == {2}


def test_a_part_becomes_a_file_while_nobody_counts(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 150 * KB)
    with cache.writing(wanted(1), patient=True) as part:
        assert part is not None
        part.write(content(1))
        counting = threading.Event()
        done = threading.Event()

        def count() -> None:
            with locked(tmp_path / "shards.lock"):
                counting.set()
                time.sleep(0.15)
                assert not cache.place(wanted(1)).exists()
                done.set()

        counter = threading.Thread(target=count)
        counter.start()
        assert counting.wait(10)
    assert done.is_set()
    counter.join(10)
    assert numbers(cache) == {1}


def test_one_writer_a_file_and_who_does_not_wait_is_told(tmp_path: Path) -> None:
    cache, found = Cache(tmp_path, None), []

    def wait() -> None:
        with Cache(tmp_path, None).writing(wanted(1), patient=True) as part:
            found.append(part)

    waiter = threading.Thread(target=wait)
    with cache.writing(wanted(1), patient=True) as part:
        assert part is not None
        with cache.writing(wanted(1), patient=False) as other:
            assert other is None
        waiter.start()
        time.sleep(0.1)
        assert not found
        part.write(content(1))
    waiter.join(10)
    assert found == [None]


def test_a_killed_writer_leaves_nothing_that_blocks_or_misleads(tmp_path: Path) -> None:
    code = """
cache = Cache(Path(sys.argv[1]), 320 * KB)
with cache.writing(wanted(1), patient=True) as part:
    part.write(content(1)[:99 * KB])
    print("writing", flush=True)
    time.sleep(60)
"""
    live = Cache(tmp_path, 320 * KB, grace_seconds=0)
    for repair in ("a new cache", "the next writer", "the next eviction"):
        process = start(code, tmp_path)
        assert said(process) == "writing"
        process.kill()
        process.wait()
        part = live.place(wanted(1)).with_suffix(".part")
        assert part.exists()
        if repair == "a new cache":
            Cache(tmp_path, None)
        elif repair == "the next writer":
            assert store(live, 1).read_bytes() == content(1)
            live.place(wanted(1)).unlink()
        else:
            store(live, 2)
        assert not part.exists(), repair
        assert live.find(wanted(1)) is None


def test_a_forked_child_does_not_keep_its_killed_parents_lock(tmp_path: Path) -> None:
    code = """
cache = Cache(Path(sys.argv[1]), None)
with cache.writing(wanted(1), patient=True) as part:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""
    process = start(code, tmp_path)
    child = int(said(process))
    try:
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        done = threading.Thread(target=store, args=(Cache(tmp_path, None), 1), daemon=True)
        done.start()
        done.join(5)
        assert numbers(Cache(tmp_path, None)) == {1}
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_another_process_uses_stays(small: Cache) -> None:
    for number in (1, 2, 3):
        store(small, number)
        time.sleep(0.01)
    code = "print(Cache(Path(sys.argv[1]), 320 * KB).find(wanted(1)), flush=True)"
    process = start(code, small.folder)
    assert said(process) == str(small.place(wanted(1)))
    process.wait()
    store(small, 4)
    assert numbers(small) == {1, 3, 4}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        DataError, match=f"cache {tmp_path} is on a file system without locks .*: set data.cache.dir to"
    ):
        Cache(tmp_path, None)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    with pytest.raises(
        DataError, match=f"the cache {folder} cannot be used .Not a directory.: set data.cache.dir to a"
    ):
        Cache(folder, None)


def test_a_folder_of_small_files_appears_whole(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    left = tmp_path / "folders" / "key.part"
    left.mkdir()
    (left / "tokenizer.json").write_bytes(b"half")
    assert cache.find_folder("key") is None
    path = cache.store_folder("key", {"tokenizer.json": b"{}", "more/a.txt": b"a"})
    assert path == cache.find_folder("key") == cache.store_folder("key", {"other": b""})
    assert (path / "tokenizer.json").read_bytes() == b"{}"
    assert (path / "more/a.txt").read_bytes() == b"a"
    left.mkdir()
    Cache(tmp_path, None)
    assert sorted(file.name for file in left.parent.iterdir()) == ["key"]


def test_datasets_of_a_process_share_the_cache_of_a_folder(tmp_path: Path) -> None:
    assert cache_at(tmp_path, 5) is cache_at(tmp_path, 5)
    assert cache_at(tmp_path, 5) is not cache_at(tmp_path, None)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


def test_a_full_disk_is_relieved_of_what_is_not_needed(tiny_disk: Path) -> None:
    cache = Cache(tiny_disk, None, grace_seconds=0)
    for number in (1, 2, 3):
        store(cache, number, size=300 * KB)
        time.sleep(0.01)
    cache.need(7, [wanted(1, 300 * KB).xxh3])
    assert store(cache, 4, size=300 * KB).read_bytes() == content(4, 300 * KB)
    left = {number for number in (1, 2, 3, 4) if cache.find(wanted(number, 300 * KB))}
    assert left == {1, 3, 4}
    cache.need(7, [wanted(number, 300 * KB).xxh3 for number in (1, 3, 4)])
    with pytest.raises(NoRoomError):
        store(cache, 5, patient=False, size=300 * KB)
    store(cache, 5, size=300 * KB)
    assert cache.find(wanted(4, 300 * KB)) is None


def test_a_disk_too_small_for_a_file_is_named_with_what_it_needs(tiny_disk: Path) -> None:
    cache = Cache(tiny_disk, None, grace_seconds=0)
    store(cache, 1)
    with pytest.raises(
        DataError,
        match=rf"disk of the cache {tiny_disk} is full: tokens-00002.npy needs \d+ more of its 2097152 bytes, \d+ are "
        "free and nothing is left to drop: free some space, or set data.cache.dir to a larger disk",
    ):
        store(cache, 2, size=2 << 20)
    assert list((tiny_disk / "shards").iterdir()) == []
    with pytest.raises(DataError, match=f"the disk of the cache {tiny_disk} is full: free some space, or set"):
        cache.store_folder("key", {"large": content(3, 2 << 20)})


def test_a_full_disk_is_waited_for_while_others_write(tiny_disk: Path) -> None:
    cache = Cache(tiny_disk, None, grace_seconds=0)
    second = threading.Thread(target=store, args=(cache, 2, True, 600 * KB))
    with cache.writing(wanted(1, 600 * KB), patient=True) as part:
        assert part is not None
        part.write(content(1, 600 * KB))
        second.start()
        time.sleep(0.2)
        assert second.is_alive()
    second.join(10)
    assert cache.find(wanted(2, 600 * KB)) is not None
