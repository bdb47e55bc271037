"""What a training process takes, sampled over hours: memory, open files, threads, and whether it stays flat."""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Bound = tuple[float, float]  # growth that still counts as flat: a share of the first value, and an amount

OVER_ALL: dict[str, Bound] = {  # from launch to launch
    "rss_mb": (0.25, 24.0),  # measured: the same program takes 406 to 491 MB, by how its first large blocks fall
    "open_files": (0.0, 6.0),
    "threads": (0.0, 3.0),
    "shm_mb": (0.0, 64.0),  # of the whole machine
    "checkpoints_mb": (0.25, 2.0),
}
IN_ONE: dict[str, Bound] = {**OVER_ALL, "rss_mb": (0.03, 8.0)}  # inside a launch; measured: 1.3 MB in 84 seconds


def of_process(process: int) -> dict[str, float] | None:
    """None when it has ended."""
    folder = Path(f"/proc/{process}")
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text(encoding="utf-8").splitlines())
        return {
            "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
            "threads": float(status["Threads"]),
            "open_files": float(len(list((folder / "fd").iterdir()))),
        }
    except (OSError, KeyError):
        return None


def size_mb(folder: Path) -> float:
    """Of all files below, with those that vanish meanwhile left out."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except OSError:
                continue
    return total / 2**20


def shm_mb() -> float:
    """Memory files of the whole machine."""
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize / 2**20


@dataclass
class Samples:
    """By configuration and launch, in the order of time."""

    taken: dict[str, dict[int, list[dict[str, float]]]] = field(default_factory=lambda: defaultdict(dict))

    def take(self, configuration: str, launch: int, processes: Iterable[int], run: Path) -> None:
        """One sample: the largest value of the processes, and what the run folder has grown to."""
        found = [sample for process in processes if (sample := of_process(process)) is not None]
        if not found:
            return
        largest = {name: max(sample[name] for sample in found) for name in found[0]}
        largest |= {"checkpoints_mb": size_mb(run / "checkpoints"), "shm_mb": shm_mb(), "run_mb": size_mb(run)}
        self.taken[configuration].setdefault(launch, []).append({"time": time.time(), **largest})

    def summary(self) -> dict[str, Any]:
        """Medians of the first and of the last quarter, a pair each.

        Over all launches of a configuration, and inside its longest one.
        """
        found: dict[str, Any] = {}
        for configuration, launches in sorted(self.taken.items()):
            every = [sample for samples in launches.values() for sample in samples]
            longest = max(launches.values(), key=len)
            found[configuration] = {
                "launches": len(launches),
                "over_all": {"samples": len(every), **_quarters(every)},
                "in_the_longest": {
                    "samples": len(longest),
                    "seconds": round(longest[-1]["time"] - longest[0]["time"]),
                    **_quarters(longest),
                },
            }
        return found

    def growths(self) -> list[str]:
        """What is not flat. A configuration of fewer than 40 samples is left out: too few for a median of a quarter."""
        found = []
        for configuration, summary in self.summary().items():
            for where, bounds in (("over_all", OVER_ALL), ("in_the_longest", IN_ONE)):
                for name, (share, amount) in bounds.items():
                    first, last = summary[where][name]
                    if summary[where]["samples"] >= 40 and last > first * (1 + share) + amount:
                        found.append(f"{configuration}: {name} grows from {first:g} to {last:g} ({where})")
        return found


def _quarters(samples: list[dict[str, float]]) -> dict[str, list[float]]:
    quarter = max(1, len(samples) // 4)
    return {
        name: [
            round(statistics.median(sample[name] for sample in part), 2)
            for part in (samples[:quarter], samples[-quarter:])
        ]
        for name in (*OVER_ALL, "run_mb")
    }
