"""Who is named when a run does not go on, and what the connections between ranks carry."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaletrain.runtime import pulse
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


def refusing_strangers(folder: str) -> bool:
    """A connection without the token is closed and disturbs nobody."""
    rank = int(os.environ["RANK"])
    line = Lifeline(World(rank=rank, size=2), Path(folder), 60, print, lambda: os._exit(1))
    refused = True
    if rank == 0:
        assert line._hub is not None
        port = line._hub._server.getsockname()[1]
        for text in (b'{"token": "guess", "rank": 1}\n', b"GET / HTTP/1.0\n\n", b"[]\n"):
            with socket.create_connection(("localhost", port), 5) as stranger:
                stranger.sendall(text)
                refused = refused and stranger.recv(10) == b""
        refused = refused and line._hub.thread.is_alive()
    from scaletrain.runtime import dist

    dist.gather(None)
    line.close()
    return refused


def test_a_stranger_is_refused(tmp_path: Path) -> None:
    assert run_ranks(refusing_strangers, 2, str(tmp_path), seconds=60) == [True, True]
