"""Batches ahead of need: a thread reads the next steps while the model computes this one."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scaletrain.data.order import SampleOrder, Share, fingerprints
from scaletrain.data.rows import Batch, Rows

_IDS_AT_ONCE = 4096  # samples whose ids are computed together: a call for each batch would cost more than the reading


@dataclass(frozen=True)
class Step:
    """This rank's micro-batches of one optimizer step.

    `digest`: which samples they are, see order.digest. `position`: what a live source needs to go on after this step.
    """

    batches: list[Batch]
    digest: int = 0
    position: dict[str, Any] | None = None


class Loader:
    """Steps of an endless source, made by a thread; at most `ahead` wait. An error there is raised by `next()`."""

    def __init__(self, steps: Iterator[Step], ahead: int) -> None:
        self._steps = steps
        # A SimpleQueue and a semaphore hand a step over in a third of the time that a bounded Queue takes.
        self._ready: queue.SimpleQueue[Step | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(ahead)
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        step = self._ready.get()
        if isinstance(step, BaseException):
            self._ready.put(step)  # for whoever asks again
            raise step
        self._room.release()
        return step

    def close(self) -> None:
        self._is_closed = True
        self._room.release()

    def _work(self) -> None:
        try:
            for step in self._steps:
                self._room.acquire()
                if self._is_closed:
                    return
                self._ready.put(step)
        except BaseException as error:  # noqa: BLE001  handed to the training thread, which raises it
            self._ready.put(error)


def token_steps(rows: Rows, order: SampleOrder, share: Share, *, start: int, pin: bool = False) -> Iterator[Step]:
    """This rank's steps from sample `start` of the run on."""
    batch = share.global_batch
    steps_at_once = max(1, _IDS_AT_ONCE // batch)
    while True:
        ids = order.ids(start, steps_at_once * batch)
        prints = fingerprints(np.arange(start, start + len(ids), dtype=np.int64), ids)
        for first in range(0, len(ids), batch):
            whole = slice(first, first + batch)
            batches = [pinned(share.part.of(rows.fetch(mine)), pin) for mine in share.of(ids[whole])]
            yield Step(batches, share.sum(prints[whole]))
        start += len(ids)


def pinned(batch: Batch, pin: bool) -> Batch:
    """The batch, in pinned memory if it goes to a GPU, and with what the host would have to wait for it to count."""
    if not pin:
        return batch
    if (documents := batch.get("documents")) is not None:
        batch = {**batch, "document_bounds": _document_bounds(documents)}
    return {name: values.pin_memory() for name, values in batch.items()}


def _document_bounds(documents_BT: torch.Tensor) -> torch.Tensor:
    """The first token of each document among the B * T, and B * T; int32."""
    is_first_BT = torch.ones(documents_BT.shape, dtype=torch.bool)
    is_first_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    firsts = is_first_BT.flatten().nonzero().flatten()
    return torch.cat([firsts, torch.tensor([documents_BT.numel()])]).int()
