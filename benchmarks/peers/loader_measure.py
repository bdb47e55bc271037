"""Times a loader in this process and prints one JSON line; each loader_*.py beside this file hands it one loader.

    python loader_NAME.py FOLDER --samples N --make            # writes the loader's own form of N random samples
    python loader_NAME.py FOLDER --samples N --seconds 4       # from the start: first batch, tokens/s, memory
    python loader_NAME.py FOLDER --samples N --resume          # from 90% of the first epoch on: first batch, memory

Needs numpy and torch alone, so that a loader can run in a virtual environment of its own. Linux only (/proc).
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

CONTEXT = 1024
BATCH = 32
VOCABULARY = 50_000
WARM_UP_SECONDS = 0.5
_SAMPLE_SECONDS = 0.2  # between two looks at the memory

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]  # inputs and labels, (BATCH, CONTEXT) int64 each, without end


def random_rows(samples: int, at_once: int = 8192) -> Iterator[np.ndarray]:
    """Rows of CONTEXT + 1 random ids, (at most at_once, CONTEXT + 1) uint16 at a time."""
    rng = np.random.default_rng(1)
    for first in range(0, samples, at_once):
        yield rng.integers(0, VOCABULARY, (min(at_once, samples - first), CONTEXT + 1), dtype=np.uint16)


def split(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of (BATCH, CONTEXT + 1) ids: views of one int64 array."""
    ids = torch.from_numpy(rows.astype(np.int64))
    return ids[:, :-1], ids[:, 1:]


def resume_sample(samples: int) -> int:
    """Where a resumed epoch goes on: at 90% of it, between two batches."""
    return samples * 9 // 10 // BATCH * BATCH


def keep_state(folder: Path, samples: int, batches: Iterator[object], state: Callable[[], object]) -> None:
    """Reads the first epoch up to `resume_sample` and writes down where the library says it is then."""
    for _ in range(resume_sample(samples) // BATCH):
        next(batches)
    (folder / "resume.json").write_text(json.dumps(state()), encoding="utf-8")


def kept_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "resume.json").read_text(encoding="utf-8"))
    return state


def run(
    make: Callable[[Path, int], None], open_batches: Callable[[Path, int, int], Batches], packages: tuple[str, ...]
) -> None:
    """Reads the command line, then writes the data or measures `open_batches(folder, samples, start)`.

    `start` is the first sample: 0 or `resume_sample`.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--make", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.make:
        args.folder.mkdir(parents=True)
        began = time.perf_counter()
        make(args.folder, args.samples)
        found: dict[str, object] = {"make_seconds": time.perf_counter() - began}
    else:
        start = resume_sample(args.samples) if args.resume else 0
        found = _measure(lambda: open_batches(args.folder, args.samples, start), args.seconds)
        found["versions"] = {name: version(name) for name in ("numpy", "torch", *packages)}
    print(json.dumps(found), flush=True)
    os._exit(0)  # threads of a loader that is not at its end must not hold the process up


def _measure(open_batches: Callable[[], Batches], seconds: float) -> dict[str, object]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: imports do not count
    before = _memory()
    began = time.perf_counter()
    batches = open_batches()
    inputs, labels = next(batches)
    first_batch_seconds = time.perf_counter() - began
    for ids in (inputs, labels):
        assert (tuple(ids.shape), ids.dtype) == ((BATCH, CONTEXT), torch.int64), (ids.shape, ids.dtype)
    assert torch.equal(inputs[:, 1:], labels[:, :-1])
    most = _memory()
    count, spent, busy = 0, 0.0, 0.0
    if seconds:
        _read_for(batches, WARM_UP_SECONDS, most)
        busy = time.process_time()
        count, spent = _read_for(batches, seconds, most)
        busy = time.process_time() - busy
    last = _memory()
    return {
        "first_batch_seconds": first_batch_seconds,
        "tokens_per_second": count * BATCH * CONTEXT / spent if spent else None,
        "tokens_per_core_second": count * BATCH * CONTEXT / busy if busy else None,  # all threads, system time too
        "peak_bytes": last["VmHWM"] - before["VmRSS"],
        "anonymous_bytes": max(most["RssAnon"], last["RssAnon"]) - before["RssAnon"],
        "file_bytes": max(most["RssFile"], last["RssFile"]) - before["RssFile"],
        "shared_bytes": max(most["RssShmem"], last["RssShmem"]) - before["RssShmem"],
    }


def _read_for(batches: Batches, seconds: float, most: dict[str, int]) -> tuple[int, float]:
    """Batches read in at least `seconds`, and the seconds that it took; keeps the greatest memory seen in `most`."""
    count, look = 0, time.perf_counter() + _SAMPLE_SECONDS
    began = now = time.perf_counter()
    while now - began < seconds:
        next(batches)
        count += 1
        now = time.perf_counter()
        if now > look:
            look = now + _SAMPLE_SECONDS
            for name, size in _memory().items():
                most[name] = max(most[name], size)
    return count, now - began


def _memory() -> dict[str, int]:
    """Bytes by name, from the kernel: VmRSS is the sum of the three Rss parts, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    pairs = (line.split(":") for line in lines if line.startswith(("VmHWM", "VmRSS", "Rss")))
    return {name: int(size.split()[0]) * 1024 for name, size in pairs}
