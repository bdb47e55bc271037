"""What ranks tell each other."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from scaletrain.errors import DataError
from scaletrain.runtime import dist
from scaletrain.runtime.ports import free_port
from tests.ranks import run_ranks


def exchange() -> tuple[list[int], list[str], float]:
    rank = dist.rank()
    return (
        dist.sum_integers([rank + 1, 10]),
        dist.gather(f"rank {rank}"),
        float(dist.sum_tensors(torch.tensor(0.5 + rank))),
    )


def test_sums_and_gathers_are_the_same_on_every_rank() -> None:
    assert run_ranks(exchange, 3) == [([6, 30], ["rank 0", "rank 1", "rank 2"], 4.5)] * 3
    assert exchange() == ([1, 10], ["rank 0"], 0.5)


def sum_numbers() -> list[float]:
    return dist.sum_numbers([2**52 - dist.rank(), 0.5 + dist.rank(), float("nan") if dist.rank() else 1.0, True])


def test_sums_of_numbers_keep_large_integers_exact_and_each_to_itself() -> None:
    for sums in run_ranks(sum_numbers, 2):
        assert sums[:2] + sums[3:] == [2**53 - 1, 2.0, 2.0]
        assert sums[2] != sums[2]
    assert sum_numbers() == [2**52, 0.5, 1.0, 1.0]


def fail_on_one_rank() -> str:
    try:
        with dist.together():
            if dist.rank() == 1:
                raise DataError("shard 3 is damaged")
    except DataError as error:
        assert dist.is_shared(error)
        return str(error)
    return "no error"


def test_an_error_on_one_rank_is_raised_on_all() -> None:
    assert run_ranks(fail_on_one_rank, 2) == ["shard 3 is damaged"] * 2


def test_an_error_that_all_ranks_raise_is_told_from_that_of_one() -> None:
    with pytest.raises(OSError) as inner, dist.together(), dist.together():
        raise OSError("disk")
    assert dist.is_shared(inner.value)
    assert len(inner.value.__notes__) == 1
    with pytest.raises(DataError) as outer:
        try:
            raise inner.value
        except OSError as error:
            raise DataError("told in other words") from error
    assert dist.is_shared(outer.value)
    outer.value.__cause__ = None
    assert not dist.is_shared(outer.value), "raised while another was handled, by one rank alone"


def defect_on_one_rank() -> str:
    if dist.rank() == 1:
        return "left"
    with pytest.raises(ZeroDivisionError), dist.together():
        _ = 1 // 0
    return "raised"


def test_a_defect_ends_its_rank_at_once_without_waiting_for_the_others() -> None:
    assert run_ranks(defect_on_one_rank, 2, seconds=30) == ["raised", "left"]


ORPHAN = """
from scaletrain.runtime import dist
from scaletrain.runtime.world import World
dist.start(World(rank=1, size=2, local_rank=1, local_size=2, master_port=PORT))
"""


def test_a_rank_whose_torchrun_was_killed_before_it_came_ends_at_once_and_says_why() -> None:
    port = str(free_port())
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN.replace("PORT", port)],
        env={**os.environ, "TORCHELASTIC_USE_AGENT_STORE": "True"}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (
        f"ClusterError: rank 1 does not reach torchrun at 127.0.0.1:{port} (Connection refused): it was killed, or its "
        "node is out of reach; start the run again"
    ) in done.stderr


def test_a_port_that_another_run_has_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code = ORPHAN.replace("PORT", port).replace("rank=1", "rank=0")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    message = (
        rf"ClusterError: rank 0 cannot meet the others at 127.0.0.1:{port} \(.*\): is the port taken by another run"
    )
    assert re.search(message + r"\? Give another one \(--master_port; under srun MASTER_PORT\)", done.stderr), (
        done.stderr
    )


HANGS = """
import sys, time
from datetime import timedelta
import torch
from torch import distributed
from scaletrain.runtime import dist
from scaletrain.runtime.world import World
rank, port = int(sys.argv[1]), int(sys.argv[2])
dist.start(World(rank=rank, size=2, local_rank=rank, local_size=2, master_port=port), timedelta(seconds=3))
group = distributed.new_group()  # without a time, as DeepSpeed makes its own
if rank == 1:
    time.sleep(60)
began = time.monotonic()
try:
    distributed.all_reduce(torch.zeros(1), group=group)
except RuntimeError as error:
    print(f"{time.monotonic() - began:.1f}")
"""


def test_a_rank_that_does_not_come_is_waited_for_no_longer_than_the_timeout_in_every_group() -> None:
    port = free_port()
    commands = [[sys.executable, "-c", HANGS, str(rank), str(port)] for rank in (0, 1)]
    waits, hangs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        out, _ = waits.communicate(timeout=30)
    finally:
        for process in (waits, hangs):
            process.kill()
            process.wait()
    assert 2.5 < float(out) < 10


STOPPER = """
import time
from scaletrain.runtime.stop import StopRequest
stop = StopRequest()
stop.listen(watch_launcher=False)
print("ready", flush=True)
while True:
    time.sleep(0.05)
    if stop.reason:
        print(stop.reason, flush=True)
"""


def test_the_first_signal_is_noted_its_echo_ignored_and_a_later_one_ends_the_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPPER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGINT\n"
    process.send_signal(signal.SIGTERM)  # a launcher repeats Ctrl-C so
    time.sleep(0.3)
    assert process.poll() is None
    time.sleep(3)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=5) == 128 + signal.SIGINT
