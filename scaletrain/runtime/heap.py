"""glibc's heap, told to keep what training frees: the next step takes as much again."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 32 << 20  # bytes: glibc takes no higher threshold on 64-bit machines


def keep_freed_memory() -> None:
    """By default glibc gives the heap's top back to the kernel when 64 MB of it are free, which activations always are
    at a step's end, and each page that is taken again is a fault (1 us): 5% of a step of a small GPT.

    The user's own settings stay; other C libraries are left as they are.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # macOS, musl
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, -1)  # never
