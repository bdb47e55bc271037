"""Batches ahead of need: a thread reads the next steps while the model computes this one."""

import queue
import threading
from collections.abc import Iterator

from scaletrain.data.order import Order, Share
from scaletrain.data.rows import Batch, Rows
from scaletrain.data.shuffle import Ids

Step = list[Batch]


class Loader:
    """This rank's micro-batches, step after step, from position `start` (in samples) of the run on.

    An error in the thread is raised by the next `next()`. Memory: at most `ahead` + 1 steps of batches.
    """

    def __init__(self, rows: Rows, order: Order, share: Share, *, start: int, ahead: int, pin: bool) -> None:
        self._rows, self._order, self._share, self._pin = rows, order, share, pin
        self._position = start
        self._ready: queue.Queue[Step | BaseException] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        step = self._ready.get()
        if isinstance(step, BaseException):
            raise step
        return step

    def close(self) -> None:
        self._closed.set()

    def _work(self) -> None:
        try:
            while not self._closed.is_set():
                ids = self._order.ids(self._position, self._share.global_batch)
                self._position += self._share.global_batch
                self._put([self._fetch(part) for part in self._share.of(ids)])
        except BaseException as error:  # noqa: BLE001  handed to the training thread, which raises it
            self._put(error)

    def _fetch(self, ids: Ids) -> Batch:
        batch = self._rows.fetch(ids)
        return {k: v.pin_memory() for k, v in batch.items()} if self._pin else batch

    def _put(self, item: Step | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue
