"""What a run folder tells of its run so far: curves and events, followed while they grow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaletrain.runtime.run_files import EVENTS, METRICS
from scaletrain.track.curves import Curves
from scaletrain.track.tail import Tail


def time_of(event: Mapping[str, Any]) -> float | None:
    """Seconds since 1970; None where it does not tell a time that a calendar has."""
    value = event.get("time")
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e11 else None


class Recorded:
    """Empty until the first `refresh`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.curves = Curves()
        self.events: list[dict[str, Any]] = []
        self.texts: list[dict[str, Any]] = []  # events too: what the model wrote after evaluations
        self._metrics, self._events = Tail(folder / METRICS), Tail(folder / EVENTS)

    @property
    def unreadable(self) -> int:
        """Lines that hold no JSON object."""
        return self._metrics.unreadable + self._events.unreadable

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, as its last launch told them or an early stop set them."""
        told = None
        for event in self.events:
            told = event["step"] if event["event"] == "early_stop" else event.get("last_step", told)
        return told if isinstance(told, int) else None

    def refresh(self) -> None:
        """Reads what was written since the last time."""
        self._metrics.read(self._add_line, self._forget_curves)
        self._events.read(self._add_event, self._forget_events)

    def _add_line(self, line: dict[str, Any]) -> None:
        self.curves.add(line)

    def _forget_curves(self) -> None:
        self.curves = Curves()

    def _forget_events(self) -> None:
        self.events.clear()
        self.texts.clear()

    def _add_event(self, line: dict[str, Any]) -> None:
        if not (isinstance(line.get("event"), str) and isinstance(line.get("step"), int)):
            return
        if line["event"] != "texts":
            self.events.append(line)
        elif isinstance(line.get("texts"), list) and all(isinstance(one, dict) for one in line["texts"]):
            self.texts.append(line)
