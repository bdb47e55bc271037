"""Runs a function on several ranks, each a process of its own, joined over gloo."""

import multiprocessing as mp
import os
import queue
import traceback
from collections.abc import Callable
from typing import Any

from scaletrain.runtime.ports import free_port


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any, seconds: float = 120) -> list[Any]:
    """What `function(*args)` returned on each rank. It must be importable; a failure of any rank fails the test."""
    port = free_port()
    context = mp.get_context("spawn")
    results: Any = context.Queue()
    processes = [context.Process(target=_rank, args=(function, r, ranks, port, results, args)) for r in range(ranks)]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < ranks:
            rank, value, error = results.get(timeout=seconds)
            assert error is None, f"rank {rank}:\n{error}"
            found[rank] = value
    except queue.Empty:
        raise AssertionError(f"only ranks {sorted(found)} of {ranks} ended within {seconds} s") from None
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [found[rank] for rank in range(ranks)]


def _rank(function: Callable[..., Any], rank: int, ranks: int, port: int, results: Any, args: tuple[Any, ...]) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import torch

        torch.set_num_threads(1)
        from scaletrain.runtime import dist
        from scaletrain.runtime.world import World

        dist.start(World(rank=rank, size=ranks, local_rank=rank, local_size=ranks, master_port=port))
        results.put((rank, function(*args), None))
    except BaseException:  # noqa: BLE001  sent to the test, which fails with it
        results.put((rank, None, traceback.format_exc()))
    results.close()
    results.join_thread()
    os._exit(0)
