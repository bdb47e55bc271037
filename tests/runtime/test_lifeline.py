"""Who is named when a run does not go on, and what the connections between ranks carry."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scaletrain.runtime import hub as hub_module
from scaletrain.runtime import lifeline as lifeline_module
from scaletrain.runtime import pulse
from scaletrain.runtime.hub import Hub, Watched
from scaletrain.runtime.lifeline import Lifeline
from scaletrain.runtime.lines import Clock, Lines
from scaletrain.runtime.processes import kill_here, process_begun
from scaletrain.runtime.pulse import Mark, Peer, find_hang
from scaletrain.runtime.world import World
from tests.ranks import run_ranks


def peer(rank: int, phase: str, step: int, number: int = 9, *, heard: float = 100, moved: float = 0) -> Peer:
    return Peer(rank, f"node{rank}", 1000 + rank, "1", heard, moved, Mark(phase, step, number))


def test_while_one_rank_moves_and_all_speak_there_is_no_hang() -> None:
    assert find_hang([peer(0, "exchange", 7), peer(1, "data", 7, moved=99)], 100, 60) is None
    assert find_hang([peer(0, "exchange", 7, heard=50, moved=99), peer(1, "data", 7, moved=99)], 100, 60) is None
    assert find_hang([], 100, 60) is None


def test_the_silent_are_named_before_those_behind() -> None:
    found = find_hang([peer(0, "data", 3), peer(1, "exchange", 7, heard=80), peer(2, "exchange", 7)], 100, 60)
    assert found is not None
    assert found.reason.startswith(
        "nothing is heard of rank 1 on node1 (process 1001), last heard in phase exchange of"
    )
    assert [p.rank for p in found.silent] == [1]


def test_one_rank_silent_for_the_whole_time_is_a_hang_though_the_others_move() -> None:
    found = find_hang([peer(0, "data", 3, moved=99), peer(1, "start", 0, heard=40)], 100, 60)
    assert found is not None
    assert "rank 1 on node1 (process 1001), last heard in phase start: stopped, or cut off from the net" in found.reason


@pytest.mark.parametrize(
    ("marks", "reason"),
    [
        ([("exchange", 7, 1), ("data", 7, 0)], "rank 1 on node1 (process 1001) in phase data of step 7 for 100 s, "
         "while others wait in phase exchange of step 7"),
        ([("data", 7, 0), ("checkpoint", 6, 8)], "rank 1 on node1 (process 1001) in phase checkpoint of step 6 for "
         "100 s, while others wait in phase data of step 7"),
        ([("backward", 7, 3), ("backward", 7, 3)], "all ranks wait in phase backward of step 7 for 100 s"),
        ([("data", 1, 0)], "rank 0 on node0 (process 1000) waits in phase data of step 1 for 100 s"),
    ],
)  # fmt: skip
def test_those_furthest_behind_are_named(marks: list[tuple[str, int, int]], reason: str) -> None:
    found = find_hang([peer(rank, *mark) for rank, mark in enumerate(marks)], 100, 60)
    assert found is not None
    assert (found.reason, found.silent) == (reason, [])


def test_a_start_may_take_longer() -> None:
    ranks = [peer(0, "start", 0, heard=1799), peer(1, "exchange", 1, heard=1799)]
    assert find_hang(ranks, 1799, 60) is None
    found = find_hang(ranks, 1800, 60)
    assert found is not None
    assert found.reason.startswith("rank 0 on node0 (process 1000) in phase start for 1800 s, while others wait in")


def test_the_same_phase_marked_again_is_a_move() -> None:
    seen = Peer(0, "a", 1, "1", 0.0, 0.0)
    pulse.mark("data", 1)
    seen.note(pulse.last_mark(), 1.0)
    seen.note(pulse.last_mark(), 2.0)
    assert (seen.heard, seen.moved) == (2.0, 1.0)
    pulse.mark("data", 1)
    seen.note(pulse.last_mark(), 3.0)
    assert seen.moved == 3.0


def test_lines_arrive_whole_and_the_end_is_seen() -> None:
    left, right = socket.socketpair()
    sender, reader = Lines(left), Lines(right)
    sender.send({"a": "x\n"})
    left.sendall(b'{"b": ')
    assert reader.read() == [{"a": "x\n"}]
    left.sendall(b"1}\n")
    assert reader.read() == [{"b": 1}]
    left.close()
    assert reader.read() is None
    reader.send({"to": "nobody"})
    reader.send({"to": "nobody"})


def test_time_in_which_the_process_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 500.0, 501.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    clock = Clock()
    assert [clock.now(), clock.now(), clock.now()] == [1.0, 1.0, 2.0]


def test_only_the_very_process_on_this_host_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        begun = process_begun(process.pid)
        host = socket.gethostname()
        assert begun
        kill_here([[host, process.pid, "1"], ["elsewhere", process.pid, begun], [host, process.pid, ""]])
        time.sleep(0.2)
        assert process.poll() is None
        kill_here([[host, process.pid, begun]])
        assert process.wait(5) == -9
        assert process_begun(process.pid) == ""
    finally:
        process.kill()


def unreachable(folder: str) -> list[str]:
    """Rank 1 looks for rank 0 where nobody is."""
    told: list[str] = []
    rank = int(os.environ["RANK"])
    world = World(rank=rank, size=2, master_address="127.0.0.1" if rank == 0 else "no-such-host.invalid")
    line = Lifeline(world, Path(folder), 60, told.append, lambda: os._exit(1))
    line.fail(RuntimeError("returns at once: nobody hears"))
    line.close()
    return told


def test_ranks_that_cannot_connect_are_told_and_training_goes_on(tmp_path: Path) -> None:
    first, second = run_ranks(unreachable, 2, str(tmp_path), seconds=60)
    assert second == []
    assert first[0].startswith("note    ranks [1] cannot connect to rank 0 on 127.0.0.1: a rank that dies is noticed")


def reached_by_name(folder: str) -> list[str]:
    """A machine whose "localhost" is ::1 alone, and which has no IPv6."""
    look_up, told = socket.getaddrinfo, list[str]()

    def look_up_v6(host: str, *rest: Any) -> Any:
        return look_up("::1" if host == "localhost" else host, *rest)

    socket.getaddrinfo = look_up_v6  # type: ignore[assignment]
    socket.has_dualstack_ipv6 = lambda: False
    world = World(rank=int(os.environ["RANK"]), size=2, master_address="localhost")
    line = Lifeline(world, Path(folder), 60, told.append, lambda: os._exit(1))
    from scaletrain.runtime import dist

    dist.gather(None)
    line.close()
    return told


def test_localhost_is_reached_by_its_number(tmp_path: Path) -> None:
    assert run_ranks(reached_by_name, 2, str(tmp_path), seconds=60) == [[], []]


STRANGE = (
    b'{"token": "guess", "rank": 1}\n',
    b"GET / HTTP/1.0\n\n",
    b"[]\n",
    b"\xff\n",
    b"[" * 50_000 + b"\n",
    b"9" * 5_000 + b"\n",
)


def refusing_strangers(folder: str) -> bool:
    """A connection without the token is closed and disturbs nobody."""
    rank = int(os.environ["RANK"])
    line = Lifeline(World(rank=rank, size=2), Path(folder), 60, print, lambda: os._exit(1))
    refused = True
    if rank == 0:
        assert line._hub is not None
        port = line._hub._server.getsockname()[1]
        for text in (*STRANGE, b"\n" + b"x" * (1 << 17)):
            with socket.create_connection(("localhost", port), 5) as stranger:
                stranger.sendall(text)
                with contextlib.suppress(ConnectionError):  # closed before all was read
                    refused = refused and stranger.recv(10) == b""
        refused = refused and line._hub.thread.is_alive()
    from scaletrain.runtime import dist

    dist.gather(None)
    line.close()
    return refused


def test_a_stranger_is_refused(tmp_path: Path) -> None:
    assert run_ranks(refusing_strangers, 2, str(tmp_path), seconds=60) == [True, True]


class Ranks:
    """A hub, and a socket for each rank; what the hub says is in `said`."""

    def __init__(self, ranks: int, folder: Path) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        self.said: list[str] = []
        self.port = server.getsockname()[1]
        self.hub = Hub(server, ranks, "token", Watched(folder, 60, self.said.append, sys.exit))
        self.sockets = [self.connect() for _ in range(ranks)]
        for rank, line in enumerate(map(Lines, self.sockets)):
            process = {"rank": rank, "host": "node", "pid": 1000 + rank, "begun": "1"}
            line.send({"token": "token", "rank": rank, "process": process})
            line.send({"mark": ["data", 1, 0]})
        wait_for(lambda: [peer.mark.phase for peer in self.hub._peers.values()] == ["data"] * ranks)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 5)

    def close(self) -> None:
        for line in self.sockets:
            Lines(line).send({"bye": True})
            line.close()
        self.hub.close()


def wait_for(what: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_hub_does_not_wait_for_a_rank_that_it_has_just_admitted(tmp_path: Path) -> None:
    began = time.monotonic()
    ranks = Ranks(4, tmp_path)
    wait_for(lambda: ranks.hub._guests == {})
    line = Lines(ranks.sockets[3])
    line.send({"bye": True})
    wait_for(lambda: 3 not in ranks.hub._peers)
    assert time.monotonic() - began < 1
    ranks.close()


def test_a_stranger_who_says_nothing_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_GUEST_SECONDS", 0.3)
    ranks = Ranks(1, tmp_path)
    with ranks.connect() as silent:
        silent.settimeout(5)
        assert silent.recv(10) == b""
    assert ranks.hub._guests == {}
    ranks.close()


def test_a_hub_without_a_free_file_number_neither_ends_nor_spins(tmp_path: Path) -> None:
    ranks = Ranks(1, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    stranger = socket.socket()
    resource.setrlimit(resource.RLIMIT_NOFILE, (stranger.fileno() + 1, before[1]))
    try:
        blockers = []
        with contextlib.suppress(OSError):  # holes below
            while True:
                blockers.append(os.dup(0))
        used = time.process_time()
        stranger.connect(("127.0.0.1", ranks.port))
        time.sleep(0.5)
        assert time.process_time() - used < 0.2
        for blocker in blockers:
            os.close(blocker)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    stranger.sendall(b"[]\n")
    stranger.settimeout(5)
    assert stranger.recv(10) == b"", "it is heard later"
    stranger.close()
    ranks.close()


def test_ranks_that_no_longer_read_do_not_hold_up_the_end(tmp_path: Path) -> None:
    ranks = Ranks(6, tmp_path)
    for lines in ranks.hub._lines.values():
        lines.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                lines.socket.send(bytes(1 << 16))
        lines.socket.settimeout(1.0)
    began = time.monotonic()
    ranks.hub.close()
    assert time.monotonic() - began < 3
    ranks.close()


def failing(folder: str, faults: Sequence[str | None]) -> tuple[str, list[str], bool]:
    """Ranks that fail, each with its fault; what the first said, and what fail() gave."""
    rank, said = int(os.environ["RANK"]), list[str]()
    hub_module._ALIKE_SECONDS, lifeline_module._VERDICT_SECONDS = 0.5, 2.0
    line = Lifeline(World(rank=rank, size=2), Path(folder), 60, said.append, sys.exit)
    fault = faults[rank]
    alike = line.fail(OSError(28, "no space"), fault) if fault is not None else bool(time.sleep(2))
    if alike:
        line.close()
    return socket.gethostname(), said, alike


def test_a_fault_of_all_ranks_is_told_apart_from_that_of_one(tmp_path: Path) -> None:
    (_, said, alike), other = run_ranks(failing, 2, str(tmp_path), ["the disk is full", "the disk is full too"])
    assert (said, alike, other[1:]) == ([], True, ([], True))
    (host, said, alike), other = run_ranks(failing, 2, str(tmp_path), [None, "the disk is full"])
    (line,) = said
    assert line.startswith(f"error: rank 1 on {host} (process ")
    assert line.endswith(
        f") failed in phase start: the disk is full; the traceback is in its log, {tmp_path}/rank-00001.log"
    )
    assert (alike, other[1:]) == (False, ([], False))
