"""A tracker as a sink of metrics: in a thread of its own, so that neither its network nor its faults reach the run."""

import math
import queue
import threading
from collections.abc import Callable, Mapping

from scaletrain.track.sinks import Value
from scaletrain.track.trackers import Tracker

_WAITING = 1000  # logged lines that wait to be sent; later ones are left out
_LAST_SECONDS = 20.0  # in which what waits at the end is sent


class TrackerSink:
    """`open_tracker` and all else that may wait for a network runs in the thread. The first fault is told once, and at
    the end how many lines were left out; metrics.jsonl holds them all."""

    def __init__(
        self,
        name: str,
        open_tracker: Callable[[], Tracker],
        say: Callable[[str], None],
        last_seconds: float = _LAST_SECONDS,
    ) -> None:
        self._name, self._open, self._say, self._last_seconds = name, open_tracker, say, last_seconds
        self._waiting: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_WAITING)
        self._lines = self._sent = 0
        self._fault, self._is_told = "", False
        self._thread = threading.Thread(target=self._send, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        self._lines += 1
        try:
            self._waiting.put_nowait((step, _numbers(values)))
        except queue.Full:
            self._fault = self._fault or f"it is {_WAITING:,} lines behind"
        self._tell()

    def rewind(self, step: int) -> None:
        """Trackers keep what they have: the steps that are taken again stand there twice."""

    def close(self) -> None:
        try:
            self._waiting.put(None, timeout=self._last_seconds)
            self._thread.join(self._last_seconds)
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._fault = self._fault or f"it had not sent all {self._last_seconds:g} s after the end"
        self._tell()
        if left := self._lines - self._sent:
            self._say(f"note    {left:,} of {self._lines:,} lines did not reach {self._name}; metrics.jsonl has them")

    def _tell(self) -> None:
        if self._fault and not self._is_told:
            self._is_told = True
            self._say(f"note    {self._name} takes no metrics: {self._fault}; training goes on without it")

    def _send(self) -> None:
        """The thread. Another's code may raise anything: it is counted, never passed on."""
        tracker: Tracker | None = None
        try:
            tracker = self._open()
        except Exception as error:  # noqa: BLE001
            self._fault = _line(error)
        while (line := self._waiting.get()) is not None:
            if tracker is None:
                continue
            try:
                tracker.log(*line)
                self._sent += 1
            except Exception as error:  # noqa: BLE001
                self._fault = self._fault or _line(error)
        if tracker is not None:
            try:
                tracker.finish()
            except Exception as error:  # noqa: BLE001
                self._fault = self._fault or _line(error)


def _numbers(values: Mapping[str, Value]) -> dict[str, float]:
    """Named as in TensorBoard: train/loss, evaluate/loss. What is not finite is left out, as some refuse it."""
    return {
        f"{'evaluate' if name.startswith('eval_') else 'train'}/{name.removeprefix('eval_')}": float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
