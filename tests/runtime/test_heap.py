"""Memory that training frees stays with the process, and the user's own settings stay."""

import ctypes
import os
import subprocess
import sys

import pytest

from scaletrain.runtime.heap import keep_freed_memory

PROBE = """
import resource, torch
from scaletrain.runtime.heap import keep_freed_memory
keep_freed_memory()

def step():
    blocks = [torch.ones(1 << 18) for _ in range(256)]  # of 1 MB

faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[2:]))
"""


def faults_of_later_steps(**environment: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_steps_take_the_memory_of_the_ones_before() -> None:
    assert faults_of_later_steps() < 2_000  # of 65,536 pages a step; 4,288 and more when the heap's top is given back
    assert faults_of_later_steps(MALLOC_TRIM_THRESHOLD_="1000000") > 30_000  # the user's choice


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: None) -> object:
        return object()

    for name in [*os.environ]:
        if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
            monkeypatch.delenv(name)  # with which nothing would be asked
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    keep_freed_memory()
