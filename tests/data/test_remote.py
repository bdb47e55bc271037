"""Remote dataset folders, from real servers: every fault of the way is survived, or told in one line."""

import contextlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import xxhash

from scaletrain.data.cache import Cache, Wanted
from scaletrain.data.remote import RemoteFolder, Retry, is_url, open_remote
from scaletrain.errors import DataError
from scaletrain.runtime.files import hash_file
from tests.data.servers import (
    Faults,
    FaultyServer,
    Nginx,
    Store,
    cutting_proxy,
    faulty_server,
    free_port,
    nginx_server,
    s3_server,
    small_disk,
)

ROOT = Path(__file__).resolve().parents[2]
KB, MB = 1 << 10, 1 << 20
FAST = Retry(tries=4, damaged_tries=2, first_delay=0.01, longest_delay=0.02)


def write(root: Path, number: int = 0, size: int = 300 * KB) -> tuple[Wanted, bytes]:
    """A shard of random bytes in the folder `root`."""
    name, data = f"tokens-{number:05d}.npy", os.urandom(size)
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
    return Wanted(name, size, xxhash.xxh3_128_hexdigest(data)), data


def remote(url: str, cache: Path, limit: int | None = None, **options: Any) -> RemoteFolder:
    options = {"retry": FAST, "block_bytes": 64 * KB, **options}
    return RemoteFolder(url, Cache(cache, limit, grace_seconds=0), options.pop("storage_options", {}), **options)


def wait_until(condition: Any, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """A Python program with `folder`, a RemoteFolder made of url, cache and limit, and `files`, made of the rest."""
    head = """
import os, sys, time, xxhash
from pathlib import Path
from scaletrain.data.cache import Cache, Wanted
from scaletrain.data.remote import RemoteFolder, Retry
url, cache, limit, *rest = sys.argv[1:]
files = [Wanted(name, int(size), xxh3) for name, size, xxh3 in zip(rest[::3], rest[1::3], rest[2::3])]
own_cache = Cache(Path(cache), int(limit) or None, grace_seconds=0.2)
folder = RemoteFolder(url, own_cache, retry=Retry(4, 2, 0.01, 0.02), block_bytes=1 << 16)
"""
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def said(process: "subprocess.Popen[str]") -> str:
    """The next line that the program prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def named(file: Wanted) -> tuple[object, ...]:
    return file.name, file.bytes, file.xxh3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    with faulty_server(tmp_path / "served") as running:
        yield running


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with nginx_server(tmp_path_factory.mktemp("nginx")) as running:
        yield running


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3_server() as running:
        yield running


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


# Names and places


def test_a_url_is_told_from_a_path() -> None:
    for text in (
        "s3://b/d",
        "gs://b",
        "hf://datasets/a/b",
        "https://h/d",
        "file:///d",
        "memory://d",
        "zip://d::s3://b/z",
    ):
        assert is_url(text), text
    for text in ("data", "/data/a", "./a:b", "C:\\data", "a/b://c", ""):
        assert not is_url(text), text


def test_any_fsspec_place_serves_a_shard(tmp_path: Path) -> None:
    file, data = write(tmp_path / "served")
    fsspec.filesystem("memory").pipe(f"/served/{file.name}", data)
    with zipfile.ZipFile(tmp_path / "served.zip", "w") as archive:
        archive.writestr(f"inside/{file.name}", data)
    urls = ("memory://served", f"file://{tmp_path}/served/", f"zip://inside::file://{tmp_path}/served.zip")
    for number, url in enumerate(urls):
        folder = open_remote(url, tmp_path / str(number), None, {})
        assert folder.path(file).read_bytes() == data
        assert folder.read(file.name) == data


def test_nginx_serves_a_shard_with_one_request(nginx: Nginx, tmp_path: Path) -> None:
    file, data = write(nginx.root / "one", size=3 * MB)
    folder = remote(f"{nginx.url}/one", tmp_path)
    assert folder.path(file).read_bytes() == data
    assert folder.path(file) == folder.path(file)
    wait_until(lambda: nginx.gets(f"one/{file.name}"))
    assert nginx.gets(f"one/{file.name}") == ["-"]


def test_a_shard_cut_on_its_way_from_nginx_goes_on_where_it_was_cut(nginx: Nginx, tmp_path: Path) -> None:
    file, data = write(nginx.root / "cut", size=3 * MB)
    with cutting_proxy(nginx.url, after=1 * MB, cuts=2) as url:
        assert remote(f"{url}/cut", tmp_path).path(file).read_bytes() == data
    wait_until(lambda: len(nginx.gets(f"cut/{file.name}")) == 3)
    first, second, third = nginx.gets(f"cut/{file.name}")
    starts = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in (second, third)]
    assert first == "-"
    assert 0.9 * MB < starts[0] < 1.0 * MB < 1.8 * MB < starts[1] < 2.0 * MB


def test_s3_serves_a_shard_in_blocks(s3: Store, tmp_path: Path) -> None:
    file, data = write(tmp_path / "served", size=300 * KB)
    s3.put(f"data/{file.name}", data)
    folder = remote(f"{s3.url}/data", tmp_path / "cache", storage_options=s3.options)
    assert folder.path(file).read_bytes() == data


def test_s3_does_not_serve_what_was_replaced(s3: Store, tmp_path: Path) -> None:
    folder = remote(f"{s3.url}/replaced", tmp_path / "cache", storage_options=s3.options)
    s3.put("replaced/index.json", b"old")
    s3.put("replaced/tokenizer/tokenizer.json", b"old")
    assert folder.read("index.json") == b"old"
    old = folder.folder("tokenizer")
    s3.put("replaced/index.json", b"newer")
    s3.put("replaced/tokenizer/tokenizer.json", b"newer")
    s3.put("replaced/tokenizer/chat_template.jinja", b"more")
    assert folder.read("index.json") == b"newer"
    found = folder.folder("tokenizer")
    assert {file.name: file.read_bytes() for file in found.iterdir()} == {
        "tokenizer.json": b"newer",
        "chat_template.jinja": b"more",
    }
    assert (old / "tokenizer.json").read_bytes() == b"old"


def test_s3_says_what_is_missing(s3: Store, tmp_path: Path) -> None:
    folder = remote(f"{s3.url}/data", tmp_path, storage_options=s3.options)
    with pytest.raises(
        DataError, match="s3://bucket/data/nothing.npy does not exist: check the URL, or copy the whole"
    ):
        folder.path(Wanted("nothing.npy", 5, "0" * 32))
    with pytest.raises(DataError, match="s3://nowhere/index.json does not exist"):
        remote("s3://nowhere", tmp_path, storage_options=s3.options).read("index.json")


def test_a_name_that_leads_out_of_its_folder_is_refused(s3: Store, tmp_path: Path) -> None:
    s3.put("escape/tokenizer/../../evil", b"x")
    folder = remote(f"{s3.url}/escape", tmp_path / "cache", storage_options=s3.options)
    with pytest.raises(DataError, match="tokenizer/../../evil leads out of the folder tokenizer: remove it there"):
        folder.folder("tokenizer")
    assert not list(tmp_path.rglob("evil"))


# Small files


def test_a_folder_of_a_server_that_cannot_list_is_taken_by_name(server: FaultyServer, tmp_path: Path) -> None:
    served = server.root / "data/tokenizer"
    served.mkdir(parents=True)
    (served / "tokenizer.json").write_bytes(b"{}")
    (served / "tokenizer.model").write_bytes(b"pieces")
    (served / "other.txt").write_bytes(b"")
    folder = remote(f"{server.url}/data", tmp_path / "cache")
    found = folder.folder("tokenizer")
    assert {file.name: file.read_bytes() for file in found.iterdir()} == {
        "tokenizer.json": b"{}",
        "tokenizer.model": b"pieces",
    }
    assert sorted(file.name for file in folder.folder("tokenizer", files=["other.txt"]).iterdir()) == ["other.txt"]
    server.faults = Faults("tokenizer.json", errors=99)
    with pytest.raises(DataError, match="data/tokenizer/tokenizer.json cannot be read"):
        folder.folder("tokenizer")


def test_a_folder_under_a_key_is_fetched_once(server: FaultyServer, tmp_path: Path) -> None:
    served = server.root / "tokenizer"
    served.mkdir(parents=True)
    (served / "tokenizer.json").write_bytes(b"old")
    folder = remote(server.url, tmp_path / "cache")
    first = folder.folder("tokenizer", key="index 1")
    count = len(server.requests)
    (served / "tokenizer.json").write_bytes(b"new")
    assert folder.folder("tokenizer", key="index 1") == first
    assert len(server.requests) == count
    assert (folder.folder("tokenizer", key="index 2") / "tokenizer.json").read_bytes() == b"new"
    assert (first / "tokenizer.json").read_bytes() == b"old"


def test_a_folder_without_files_is_an_error(server: FaultyServer, tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    with pytest.raises(DataError, match=f"{url}/tokenizer has no files: copy the whole dataset there again"):
        remote(url, tmp_path / "cache").folder("tokenizer")
    with pytest.raises(
        DataError, match=f"{server.url}/tokenizer/tokenizer.json does not exist: check the URL, or copy"
    ):
        remote(server.url, tmp_path / "cache").folder("tokenizer")
    server.faults = Faults(errors=99, status=403)
    with pytest.raises(DataError, match=f"{server.url}/tokenizer/tokenizer.json may not be read .*: check the credent"):
        remote(server.url, tmp_path / "cache").folder("tokenizer")


# Faults of the network


def test_server_errors_are_tried_again(server: FaultyServer, tmp_path: Path) -> None:
    file, data = write(server.root)
    for status in (500, 503, 429):
        server.faults = Faults(errors=3, status=status)
        assert remote(server.url, tmp_path / f"cache-{status}").path(file).read_bytes() == data
        server.faults = Faults(errors=3, status=status)
        assert remote(server.url, tmp_path / "cache").read(file.name) == data


def test_a_server_that_never_recovers_is_named_after_all_tries(server: FaultyServer, tmp_path: Path) -> None:
    file, _ = write(server.root)
    server.faults = Faults(errors=99, status=503)
    folder = remote(server.url, tmp_path / "cache")
    for call in (lambda: folder.path(file), lambda: folder.read(file.name)):
        server.requests.clear()
        with pytest.raises(
            DataError, match=f"{server.url}/{file.name} cannot be read .*503.*; 4 tries.: check the network"
        ):
            call()
        assert len(server.requests) == 4
    assert list((tmp_path / "cache/shards").iterdir()) == []


def test_a_host_that_does_not_answer_is_named(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/data"
    with pytest.raises(DataError, match=f"{url}/index.json cannot be read .ClientConnectorError.*; 4 tries.: check"):
        remote(url, tmp_path).read("index.json")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "does not exist: check the URL, or copy the whole dataset there"),
        (403, "may not be read .*: check the credentials in the environment or data.storage_options"),
        (401, "may not be read .*: check the credentials"),
        (400, "cannot be read .*400.*: check the URL and data.storage_options"),
    ],
)
def test_what_no_further_try_can_mend_is_told_at_once(
    server: FaultyServer, tmp_path: Path, status: int, message: str
) -> None:
    file, _ = write(server.root)
    server.faults = Faults(errors=99, status=status)
    folder = remote(server.url, tmp_path / "cache")
    with pytest.raises(DataError, match=f"^{server.url}/{file.name} {message}"):
        folder.path(file)
    with pytest.raises(DataError, match=f"^{server.url}/{file.name} {message}"):
        folder.read(file.name)
    assert len(server.requests) == 2


def test_a_cut_shard_goes_on_where_it_was_cut(server: FaultyServer, tmp_path: Path) -> None:
    file, data = write(server.root)
    server.faults = Faults(cuts=7, cut_after=40 * KB)  # more cuts than tries, none of them brings a whole block ...
    with pytest.raises(DataError, match="4 tries"):
        remote(server.url, tmp_path / "a").path(file)
    server.requests.clear()
    server.faults = Faults(cuts=4, cut_after=70 * KB)  # ... and here each does
    assert remote(server.url, tmp_path / "b").path(file).read_bytes() == data
    starts = [int(wanted[6:-1] or 0) for wanted in server.gets(file.name)]
    assert starts == sorted(set(starts))
    assert len(starts) == 5
    assert starts[-1] > 200 * KB


def test_a_server_without_ranges_is_read_over_what_is_there(server: FaultyServer, tmp_path: Path) -> None:
    file, data = write(server.root)
    for length in (True, False):
        server.faults = Faults(ranges=False, length=length, cuts=2, cut_after=100 * KB)
        assert remote(server.url, tmp_path / f"cache-{length}").path(file).read_bytes() == data
    assert len(server.gets(file.name)) == 6


def test_an_answer_that_ends_early_without_saying_so_is_noticed(server: FaultyServer, tmp_path: Path) -> None:
    file, _ = write(server.root)
    server.faults = Faults(ranges=False, length=False, cuts=99, cut_after=100 * KB)
    with pytest.raises(DataError, match="the answer ended after 102400 of 307200 bytes; 4 tries.: check the network"):
        remote(server.url, tmp_path / "cache").path(file)


def test_a_stalled_answer_times_out_and_goes_on(server: FaultyServer, tmp_path: Path) -> None:
    file, data = write(server.root)
    server.faults = Faults(stalls=1, stall=30, cut_after=100 * KB)
    for client in ({"timeout": 0.3}, {"timeout": {"sock_read": 0.3}}):
        began = time.monotonic()
        folder = remote(server.url, tmp_path / str(client), storage_options={"client_kwargs": client})
        assert folder.path(file).read_bytes() == data
        assert time.monotonic() - began < 10
        server.faults = Faults(stalls=1, stall=30)
    assert len(server.gets(file.name)) == 4


def test_a_slow_answer_is_waited_for(server: FaultyServer, tmp_path: Path) -> None:
    file, data = write(server.root)
    server.faults = Faults(delay=0.2, piece_delay=0.1)
    folder = remote(server.url, tmp_path / "cache", storage_options={"client_kwargs": {"timeout": 0.5}})
    assert folder.path(file).read_bytes() == data
    assert len(server.requests) == 1


def test_delays_double_up_to_a_bound_and_are_drawn() -> None:
    retry = Retry()
    delays = [[retry.delay(failures) for _ in range(50)] for failures in range(1, retry.tries)]
    middles = [sum(drawn) / 50 for drawn in delays]
    assert 240 < sum(middles) < 360
    assert all(1.6 < later / sooner < 2.4 for sooner, later in itertools.pairwise(middles[:7]))
    assert max(map(max, delays)) <= 75
    assert all(len(set(drawn)) > 40 for drawn in delays)


# Faults of the content


@pytest.mark.parametrize("fault", ["another shard", "truncated", "too long", "no length"])
def test_a_wrong_shard_is_fetched_again(server: FaultyServer, tmp_path: Path, fault: str) -> None:
    file, data = write(server.root)
    wrong = {"truncated": data[:-KB], "too long": data + b"x"}.get(fault, data[::-1])
    server.faults = Faults(content=wrong, contents=1, length=fault != "no length")
    assert remote(server.url, tmp_path / "cache").path(file).read_bytes() == data
    assert server.gets(file.name) == ["", ""]


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("another shard", "the xxh3 [0-9a-f]{32}"),
        ("truncated", "306176 bytes"),
        ("too long", "(307201|more than 307200)"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "http without length", "file"])
def test_a_shard_that_stays_wrong_is_named(
    server: FaultyServer, tmp_path: Path, fault: str, found: str, scheme: str
) -> None:
    file, data = write(server.root)
    wrong = {"truncated": data[:-KB], "too long": data + b"x"}.get(fault, data[::-1])
    if scheme == "http without length" and fault == "truncated":
        found = "at most 306176 bytes"  # what is asked for after its end is refused
    (server.root / file.name).write_bytes(wrong)
    server.faults = Faults(length=scheme == "http")
    url = f"file://{server.root}" if scheme == "file" else server.url
    with pytest.raises(
        DataError,
        match=f"^{url}/{file.name} is damaged: it has {found}.*, the index says 307200 bytes and the xxh3 {file.xxh3} "
        ".2 tries.: copy the dataset there again$",
    ):
        remote(url, tmp_path / "cache").path(file)
    assert list((tmp_path / "cache/shards").iterdir()) == []


def test_a_shard_replaced_while_it_is_cut_is_noticed(server: FaultyServer, tmp_path: Path) -> None:
    file, data = write(server.root)
    server.faults = Faults(content=data[: 150 * KB] + bytes(150 * KB), contents=1, cuts=1, cut_after=200 * KB)
    assert remote(server.url, tmp_path / "cache").path(file).read_bytes() == data
    assert len(server.gets(file.name)) == 3


# Secrets and settings


def test_no_secret_reaches_a_message_or_the_log(
    server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Secrets are words, not digits: the server's port, which messages do name, may hold any digits.
    options = {"headers": {"X-Token": "hush-header"}, "client_kwargs": {"timeout": 5}}
    host = server.url.removeprefix("http://")
    url = f"http://hush-user:hush-password@{host}/data?signature=hush-query"
    folder = remote(url, tmp_path / "cache", storage_options=options)
    assert folder.url == f"{server.url}/data"
    file = Wanted("a.npy", 5, "0" * 32)
    texts = []
    for status in (500, 403, 404, 400):
        server.faults = Faults(errors=99, status=status)
        for call in (lambda: folder.path(file), lambda: folder.read("a.npy"), lambda: folder.folder("tokenizer")):
            with pytest.raises(DataError) as caught:
                call()
            assert caught.value.__suppress_context__
            texts.append(str(caught.value))
    assert "500" in texts[0]
    assert "tries" in caplog.text or "try" in caplog.text
    assert not any("hush" in text for text in [*texts, caplog.text, repr(folder)])
    assert {path for _, path, _ in server.requests if path.startswith("/data/a.npy")} == {
        "/data/a.npy?signature=hush-query"
    }


def test_an_option_repeated_by_a_back_end_is_struck_out(tmp_path: Path) -> None:
    options = {"key": "AKIA4711", "secret": "x", "endpoint_url": "not-a-url-hush"}
    folder = remote("s3://bucket", tmp_path, storage_options=options)
    with pytest.raises(
        DataError, match="bucket/index.json cannot be read .ValueError: .*: check the URL and"
    ) as caught:
        folder.read("index.json")
    assert "hush" not in str(caught.value)
    assert "***" in str(caught.value)


def test_a_back_end_that_is_not_installed_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(
        DataError, match=r"gs://b/index.json cannot be read, .* missing .*: pip install 'scaletrain\[gs\]'"
    ):
        remote("gs://b", tmp_path).read("index.json")
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(DataError, match=r"back end is missing .*adlfs.*: pip install the package that it names"):
        remote("abfs://b", tmp_path).read("index.json")
    with pytest.raises(
        DataError, match="cannot be read .ValueError: Protocol not known: nope.*: check the URL and data"
    ):
        remote("nope://b", tmp_path).read("index.json")


# Processes and threads


def test_threads_that_want_a_shard_at_once_fetch_it_once(server: FaultyServer, tmp_path: Path) -> None:
    file, data = write(server.root)
    server.faults = Faults(piece_delay=0.02)
    folder, found = remote(server.url, tmp_path / "cache"), []
    threads = [threading.Thread(target=lambda: found.append(folder.path(file).read_bytes())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [data] * 6
    assert len(server.requests) == 1


def test_processes_that_start_at_once_fetch_each_shard_once(server: FaultyServer, tmp_path: Path) -> None:
    files = [write(server.root, number)[0] for number in range(4)]
    server.faults = Faults(piece_delay=0.01)
    code = """
folder.prefetch(files)
print("ready", flush=True)
for file in files:
    print(xxhash.xxh3_128_hexdigest(folder.path(file).read_bytes()), flush=True)
"""
    arguments = [server.url, tmp_path / "cache", 0, *[x for file in files for x in named(file)]]
    processes = [start(code, *arguments) for _ in range(2)]
    expected = [file.xxh3 for file in files]
    for process in processes:
        assert [said(process) for _ in range(5)] == ["ready", *expected]
        assert process.wait(20) == 0
    assert sorted(path for _, path, _ in server.requests) == [f"/{file.name}" for file in files]


def test_a_process_killed_while_it_fetches_leaves_nothing_to_the_next(server: FaultyServer, tmp_path: Path) -> None:
    (file, data), (other, _) = write(server.root), write(server.root, 1)
    server.faults = Faults(stalls=2, stall=30, cut_after=200 * KB)
    code = "folder.prefetch(files[1:])\nfolder.path(files[0])"
    process = start(code, server.url, tmp_path / "cache", 0, *named(file), *named(other))
    shards = tmp_path / "cache/shards"
    wait_until(lambda: shards.exists() and sum(part.stat().st_size > 0 for part in shards.glob("*.part")) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(shards.iterdir())) == 2
    assert remote(server.url, tmp_path / "cache").path(file).read_bytes() == data
    assert [found.name for found in shards.iterdir()] == [file.xxh3]
    assert server.gets(file.name) == ["", ""]


def test_processes_share_a_cache_smaller_than_the_dataset(server: FaultyServer, tmp_path: Path) -> None:
    files = [write(server.root, number, 200 * KB)[0] for number in range(6)]
    code = """
order = files if os.getpid() % 2 else files[::-1]
for turn in range(2):
    for file, after in zip(order, order[1:] + order[:1]):
        folder.prefetch([file, after])
        with folder.path(file).open("rb") as opened:
            time.sleep(0.02)
            assert xxhash.xxh3_128_hexdigest(opened.read()) == file.xxh3
print("read all", flush=True)
"""
    limit, shards = 1000 * KB, tmp_path / "cache/shards"
    shards.mkdir(parents=True)
    arguments = [server.url, tmp_path / "cache", limit, *[x for file in files for x in named(file)]]
    processes = [start(code, *arguments) for _ in range(2)]
    sizes = []
    while any(process.poll() is None for process in processes):
        sizes.append(size_of(shards))
        time.sleep(0.005)
    assert [said(process) for process in processes] == ["read all"] * 2
    assert 4 * 200 * KB <= max(sizes) <= limit
    assert len(server.requests) > len(files)  # some had to leave


def size_of(folder: Path) -> int:
    """The bytes of a folder in which others make and remove files."""
    size = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size
    return size


def test_a_forked_process_fetches_and_fetches_ahead_by_itself(server: FaultyServer, tmp_path: Path) -> None:
    files = [write(server.root, number)[0] for number in range(5)]
    server.faults = Faults(delay=0.3)
    code = """
folder = RemoteFolder(url, own_cache, retry=Retry(tries=1))
folder.read(files[0].name)
folder.prefetch(files[:2])  # its threads are at work when the process forks
child = os.fork()
if child:
    sys.exit(os.waitpid(child, 0)[1] != 0)
folder.path(files[4])
folder.prefetch(files[2:4])
until = time.monotonic() + 10
while not all(own_cache.find(file) for file in files[2:4]):
    if time.monotonic() > until:
        os._exit(1)
    time.sleep(0.01)
os._exit(0)
"""
    process = start(code, server.url, tmp_path / "cache", 0, *[x for file in files for x in named(file)])
    assert process.wait(20) == 0


def test_memory_stays_small_for_a_large_shard(nginx: Nginx, tmp_path: Path) -> None:
    size = 160 * MB
    (nginx.root / "large").mkdir()
    path = nginx.root / "large/zeros.npy"
    path.touch()
    os.truncate(path, size)
    file = Wanted("zeros.npy", size, hash_file(path))
    code = """
import resource
folder.read("small")
folder = RemoteFolder(url, Cache(Path(cache), None))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder.path(files[0])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, flush=True)
"""
    (nginx.root / "large/small").write_bytes(b"x")
    for name, url in (("http", f"{nginx.url}/large"), ("file", f"file://{nginx.root}/large")):
        process = start(code, url, tmp_path / name, 0, *named(file))
        assert int(said(process)) < 48 * KB, name  # in KB
        process.wait()


# Fetching ahead


def test_fetching_ahead_is_silent_and_path_finds_what_it_brought(server: FaultyServer, tmp_path: Path) -> None:
    files = [write(server.root, number)[0] for number in range(6)]
    server.faults = Faults(delay=0.1)
    folder = remote(server.url, tmp_path / "cache", threads=2)
    folder.prefetch(files)
    assert not any(folder_holds(tmp_path, file) for file in files)
    wait_until(lambda: len(list((tmp_path / "cache/shards").iterdir())) == 6 and not parts(tmp_path))
    asked = [path for _, path, _ in server.requests]
    assert {*asked[:2]} == {"/tokens-00000.npy", "/tokens-00001.npy"}
    for file in files:
        folder.path(file)
    assert len(server.requests) == 6
    wait_until(lambda: "prefetch" not in [thread.name for thread in threading.enumerate()])


def parts(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


def test_a_newer_order_of_need_replaces_the_older(server: FaultyServer, tmp_path: Path) -> None:
    files = [write(server.root, number)[0] for number in range(6)]
    server.faults = Faults(delay=0.1)
    folder = remote(server.url, tmp_path / "cache", threads=1)
    folder.prefetch(files[:4])
    wait_until(lambda: server.requests)
    folder.prefetch([files[5], files[4]])
    wait_until(lambda: len(server.requests) == 3)
    wait_until(lambda: "prefetch" not in [thread.name for thread in threading.enumerate()])
    assert [path for _, path, _ in server.requests] == [f"/{files[i].name}" for i in (0, 5, 4)]


def test_what_failed_ahead_is_told_by_path(
    server: FaultyServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, _ = write(server.root)
    lost = Wanted("lost.npy", 5, "0" * 32)
    folder = remote(server.url, tmp_path / "cache", threads=1)
    folder.prefetch([lost, file])
    wait_until(lambda: folder_holds(tmp_path, file))
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(DataError, match="lost.npy does not exist"):
        folder.path(lost)


def folder_holds(folder: Path, file: Wanted) -> bool:
    return (folder / "cache/shards" / file.xxh3).exists()


def test_fetching_ahead_stays_within_the_cache_and_keeps_what_is_needed_first(
    server: FaultyServer, tmp_path: Path
) -> None:
    files = [write(server.root, number)[0] for number in range(6)]
    folder = remote(server.url, tmp_path / "cache", 1000 * KB, threads=2)
    folder.prefetch(files)
    wait_until(lambda: all(folder_holds(tmp_path, file) for file in files[:3]))
    wait_until(lambda: "prefetch" not in [thread.name for thread in threading.enumerate()])
    assert {path.name for path in (tmp_path / "cache/shards").iterdir()} == {file.xxh3 for file in files[:3]}
    folder.path(files[5])
    assert {path.name for path in (tmp_path / "cache/shards").iterdir()} == {files[i].xxh3 for i in (0, 1, 5)}


def test_closing_ends_the_threads_and_removes_what_was_half_fetched(server: FaultyServer, tmp_path: Path) -> None:
    files = [write(server.root, number)[0] for number in range(3)]
    folder = remote(server.url, tmp_path / "cache", threads=2)
    server.faults = Faults(piece_delay=0.3)
    folder.prefetch(files)
    wait_until(lambda: len(server.requests) == 2)
    folder.close()
    wait_until(lambda: "prefetch" not in [thread.name for thread in threading.enumerate()])
    folder.prefetch(files)
    assert list((tmp_path / "cache/shards").iterdir()) == []
    assert len(server.requests) == 2


def test_a_full_disk_is_relieved_while_a_shard_arrives(server: FaultyServer, tiny_disk: Path) -> None:
    files = [write(server.root, number, 400 * KB)[0] for number in range(5)]
    folder = remote(server.url, tiny_disk)
    for file in files:
        assert hash_file(folder.path(file)) == file.xxh3
    assert len(server.requests) == 5  # a full disk is no reason to fetch anew
    large, _ = write(server.root, 9, 2 * MB)
    with pytest.raises(
        DataError, match=f"the disk of the cache {tiny_disk} is full: tokens-00009.npy needs .* 2097152"
    ):
        folder.path(large)
