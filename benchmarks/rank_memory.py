"""The memory of one rank from its start to a checkpoint and on, for plan_memory.py. The libraries are loaded once, and
each case forks its ranks: what they hold above that is the case's."""

import multiprocessing
import os
import socket
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks import resident
from benchmarks.rank_steps import Steps, build_engine
from benchmarks.traffic import Collectives
from scaletrain.cluster.env import read_world
from scaletrain.engine.engine import prepare_process
from scaletrain.engine.patches import load_muon_as_it_is
from scaletrain.runtime import dist


def load_libraries() -> None:
    """What a run has loaded when it builds its engine; no tensor is made, for a process with threads must not fork."""
    prepare_process(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    load_muon_as_it_is()


def run_ranks(steps: Steps, ranks: int) -> dict[str, Any]:
    """The figures of a case: of the rank that held most, and what collectives were given in a step."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    receiver, sender = context.Pipe(duplex=False)
    processes = [context.Process(target=_rank, args=(steps, rank, ranks, port, sender)) for rank in range(ranks)]
    for process in processes:
        process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    finally:
        for process in processes:
            process.join()
    return found


def _rank(steps: Steps, rank: int, ranks: int, port: int, sender: Connection) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    found = measure(steps)
    if rank == 0:
        sender.send(found)


def measure(steps: Steps) -> dict[str, Any]:
    """Bytes above what the process held before: at most until each point, and `held` when all is freed that can be."""
    world = read_world(os.environ)
    dist.start(world)
    device = dist.device_of(world)
    dist.sum_numbers([1.0])
    torch.randn(512, 512, device=device).to(torch.bfloat16).square().sum()
    before = resident.begin(device)
    engine = build_engine(steps, device)
    ids = torch.randint(0, steps.vocab, (steps.samples, steps.context + 1))
    batch = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}

    def step() -> None:
        tokens = steps.samples * steps.accumulation * steps.context * dist.size()
        engine.train_step([batch] * steps.accumulation, 1e-4, tokens)

    found = {"built": resident.peak(device) - before}
    for _ in range(steps.steps):
        step()
    found["trained"] = resident.peak(device) - before
    with tempfile.TemporaryDirectory() as folder:
        engine.writer(copy=True)(Path(folder))
    with Collectives() as collectives:
        step()
    found["saved"] = resident.peak(device) - before
    found["held"] = resident.begin(device) - before
    return {**{name: max(dist.gather(size)) for name, size in found.items()}, "whole_bytes": dict(collectives.whole)}
