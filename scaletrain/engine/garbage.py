"""Python's garbage collector, kept off the training steps: it runs between two, on all ranks at the same one."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# What a step leaves to it are checkpointed graphs without their tensors: 0 to 170 small objects.
EVERY_STEPS = 50
# Objects that are frozen before anyone calls gc.freeze: Python 3.12 freezes 375 of its own, 3.11 and 3.13 none.
FROZEN_BY_PYTHON = 1000


@contextmanager
def held_off() -> Iterator[None]:
    """No collection begins by itself inside; at the end the collector is as it was, also after an exception.

    A full one takes half a second with 400,000 objects of torch and DeepSpeed, when it comes to one rank, and all
    others wait. Those that exist now are left out of later ones (gc.freeze), which then take a millisecond.
    """
    was_enabled, had_frozen = gc.isenabled(), gc.get_freeze_count() > FROZEN_BY_PYTHON
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not had_frozen:
            gc.unfreeze()
        if was_enabled:
            gc.enable()


@contextmanager
def let_in() -> Iterator[None]:
    """Around what is no step: the collector at its own rhythm, inside `held_off` too."""
    was_enabled = gc.isenabled()
    gc.enable()
    try:
        yield
    finally:
        if not was_enabled:
            gc.disable()


def collect_if_due(step: int) -> None:
    if step % EVERY_STEPS == 0:
        gc.collect()
