"""SLURM's short forms: n[1-3,7],m2 -> each host's name; 2(x3),1 -> the tasks on each node."""

import re
from itertools import product

from scaletrain.errors import ClusterError

_NAME = r"(?:[^\s,\[\]]|\[[^\[\]]*\])+"
_LIST = re.compile(rf"{_NAME}(?:,{_NAME})*")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand_hosts(text: str) -> list[str]:
    """Names in order, leading zeros kept: n[08-10]-ib is n08-ib, n09-ib, n10-ib."""
    if not _LIST.fullmatch(text):
        raise _not_hosts(text)
    hosts = []
    for name in re.findall(_NAME, text):
        literal_or_ranges = re.split(r"\[(.*?)\]", name)
        choices = [_numbers(part, text) if n % 2 else [part] for n, part in enumerate(literal_or_ranges)]
        hosts += ["".join(parts) for parts in product(*choices)]
    return hosts


def expand_counts(text: str) -> list[int]:
    """One number a node."""
    counts: list[int] = []
    for part in text.split(","):
        if (match := _COUNT.fullmatch(part)) is None:
            raise ClusterError(
                f"{text!r} is no list of task counts (such as 2(x3),1): it is SLURM's, so start the ranks with srun, "
                "or with torchrun, one a node"
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _numbers(ranges: str, text: str) -> list[str]:
    found = []
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise _not_hosts(text)
        first, last = match[1], match[2] or match[1]
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found


def _not_hosts(text: str) -> ClusterError:
    return ClusterError(f"{text!r} is no list of hosts (such as n[1-3,7],m2): set MASTER_ADDR to the host of rank 0")
