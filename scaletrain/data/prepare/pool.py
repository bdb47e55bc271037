"""A pool of worker processes: hands out units in order, passes on progress, stops at the first fault."""

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scaletrain.data.prepare.units import Unit
from scaletrain.data.prepare.worker import Job
from scaletrain.errors import DataError

Worker = subprocess.Popen[bytes]


def run_units(
    job: Job,
    todo: Sequence[tuple[int, Unit]],
    workers: int,
    progress: Callable[[int, int], None],
    done: Callable[[Unit], None],
) -> None:
    """Makes the segment of every unit; `progress` gets bytes of text and tokens, `done` each finished unit.

    With fewer units than workers the processes share the spare ones as threads of the tokenizer.
    """
    if not todo:
        return
    processes = min(workers, len(todo))
    job = replace(job, threads=max(1, workers // processes))
    by_number = dict(todo)
    waiting = iter(todo)
    left = len(todo)
    with _started(job, processes) as pool:
        for worker in pool:
            _hand_out(worker, waiting)
        for worker, message in _messages(pool):
            if "progress" in message:
                progress(*message["progress"])
            elif "done" in message:
                left -= 1
                done(by_number[message["done"]])
                if not left:
                    return
                _hand_out(worker, waiting)
            else:
                raise DataError(message["error"])


@contextmanager
def _started(job: Job, processes: int) -> Iterator[list[Worker]]:
    pool: list[Worker] = []
    try:
        for _ in range(processes):
            pool.append(_start(job))  # noqa: PERF401  (each must be known at once, to be ended if the next fails)
        yield pool
    finally:
        for worker in pool:
            worker.kill()  # a segment is complete or absent at any moment, so nothing is lost
        for worker in pool:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue


def _start(job: Job) -> Worker:
    root = str(Path(__file__).parents[3])  # where this package is, installed or not
    threads = str(job.threads)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "RAYON_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false" if threads == "1" else "true",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",  # numpy would start a thread a core, never used here
    }
    command = [sys.executable, "-m", "scaletrain.data.prepare.worker"]
    worker = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    _send(worker, job.as_json())
    return worker


def _hand_out(worker: Worker, waiting: Iterator[tuple[int, Unit]]) -> None:
    item = next(waiting, None)
    if item is not None:
        _send(worker, json.dumps([item[0], asdict(item[1])]))


def _send(worker: Worker, line: str) -> None:
    assert worker.stdin is not None
    try:
        data = memoryview((line + "\n").encode())
        while data:  # unbuffered: a pipe may take less than all
            data = data[worker.stdin.write(data) :]
    except BrokenPipeError:
        raise _died(worker) from None


def _messages(pool: list[Worker]) -> Iterator[tuple[Worker, dict[str, Any]]]:
    """What the workers say, as it comes; a worker that ends is an error."""
    with selectors.DefaultSelector() as selector:
        for worker in pool:
            assert worker.stdout is not None
            selector.register(worker.stdout.fileno(), selectors.EVENT_READ, worker)
        held = {worker.pid: b"" for worker in pool}
        while True:
            for key, _ in selector.select():
                worker = key.data
                block = os.read(key.fd, 1 << 16)
                if not block:
                    raise _died(worker)
                *lines, held[worker.pid] = (held[worker.pid] + block).split(b"\n")
                for line in lines:
                    yield worker, json.loads(line)


def _died(worker: Worker) -> Exception:
    status = worker.wait()
    if status < 0:
        return DataError(
            f"a worker process was killed by signal {-status} (out of memory?): run the same command again, it goes on "
            "from what is finished; fewer --workers need less memory"
        )
    return RuntimeError(f"a worker process ended with status {status}: its traceback stands above")
