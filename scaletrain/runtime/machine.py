"""What this process may use of its machine; no torch."""

import os


def cores() -> int:
    """Processors: a SLURM or container limit counts."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
