"""What this process may use of its machine; no torch."""

import os
from collections.abc import Iterator
from pathlib import Path


def cores() -> int:
    """Processors: a SLURM or container limit counts."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that may still be taken without swapping: the least of what the machine has and of what each control group
    above this process leaves. None where nothing tells (not Linux)."""
    found = [*_of_machine(root), *(max(0, limit - held) for limit, held in _of_groups(root))]
    return min(found, default=None)


def whole_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the machine, or the least control group above this process, has in all; None where nothing tells."""
    return min([*_of_machine(root, "MemTotal:"), *(limit for limit, _ in _of_groups(root))], default=None)


def _of_machine(root: Path, what: str = "MemAvailable:") -> Iterator[int]:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith(what):
            yield int(line.split()[1]) * 1024


def _of_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit, and what is held of it."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        is_old = "memory" in controllers.split(",")  # cgroup 1; in 2 no controller is named
        if controllers and not is_old:
            continue
        top = root / "sys/fs/cgroup" / ("memory" if is_old else "")
        limit, usage = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_old else ("memory.max", "memory.current")
        )
        group = top / path.lstrip("/")
        # In a container the path may be the host's, and the group itself be mounted at the top.
        places = [place for place in (group, *group.parents) if place == top or top in place.parents]
        for place in places:
            if (most := _read(place / limit).strip()).isdecimal():
                held = int(_read(place / usage).strip() or 0) - _reclaimable(place)
                yield int(most), held


def _reclaimable(place: Path) -> int:
    """Files' pages that nobody has touched lately: they make way."""
    lines = [line.split() for line in _read(place / "memory.stat").splitlines()]
    found = {words[0]: int(words[1]) for words in lines if len(words) == 2}
    return found.get("total_inactive_file", found.get("inactive_file", 0))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
