"""What a run writes about itself: metrics, events and lines on the terminal; a full disk is told to all ranks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from scaletrain.runtime import dist
from scaletrain.track.progress import RunProgress
from scaletrain.track.sinks import Events, Sink, Value


@dataclass
class Records:
    """Only rank 0 writes: a file that it cannot write is kept as `fault` and told to all at the next step, so that no
    rank is left waiting."""

    sinks: Sequence[Sink]
    events: Events
    progress: RunProgress
    fault: OSError | None = None

    def metrics(self, step: int, values: Mapping[str, Value]) -> None:
        with self.noting_faults():
            for sink in self.sinks:
                sink.write(step, values)

    def event(self, name: str, step: int, **values: Any) -> None:
        with self.noting_faults():
            self.events.write(name, step, **values)

    def say(self, line: str) -> None:
        """One line on the terminal."""
        self.progress.say(line)

    def rewind(self, step: int) -> None:
        """Drops the metrics of later steps: the run goes back there."""
        with self.noting_faults():
            for sink in self.sinks:
                sink.rewind(step)

    @contextmanager
    def noting_faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.fault = self.fault or error

    def share_faults(self, faults: int) -> None:
        """Raises rank 0's fault on all ranks; `faults`: how many ranks have one."""
        if faults:
            with dist.together():
                if self.fault is not None:
                    raise self.fault

    def close(self) -> None:
        """Closes the sinks and the progress bar."""
        self.progress.close()
        for sink in self.sinks:
            sink.close()
