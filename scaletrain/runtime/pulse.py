"""Where each rank is: marks that the main thread sets, and who keeps the others waiting."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple


class Mark(NamedTuple):
    """The main thread entered `phase` of optimizer step `step`; `number` counts the marks of the step so far.

    All ranks make the same marks, so the one of the lowest step and number is behind.
    """

    phase: str
    step: int = 0
    number: int = 0

    @property
    def place(self) -> str:
        return f"phase {self.phase} of step {self.step}" if self.step else f"phase {self.phase}"


START = Mark("start")
START_SECONDS = 1800  # that a start may take at least: it may compile, fetch data and read a large checkpoint
_last = [START]  # one main thread a process


def mark(phase: str, step: int | None = None) -> None:
    """Notes what the main thread does from here on, in step `step` or the same one; costs about a microsecond."""
    last = _last[0]
    same = step is None or step == last.step
    _last[0] = Mark(phase, last.step, last.number + 1) if same or step is None else Mark(phase, step, 0)


def last_mark() -> Mark:
    return _last[0]


@dataclass
class Peer:
    """A rank as others see it: its process, its last mark, and when it was `heard` and when the mark `moved`.

    `begun` tells the process from a later one of the same number, see process_begun.
    """

    rank: int
    host: str
    pid: int
    begun: str
    heard: float
    moved: float
    mark: Mark = START

    def note(self, mark: Mark, now: float) -> None:
        self.heard = now
        if mark != self.mark:
            self.mark, self.moved = mark, now

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.pid})"

    @property
    def place(self) -> str:
        return self.mark.place


@dataclass(frozen=True)
class Hang:
    """What is wrong, in words, and the ranks that said nothing."""

    reason: str
    silent: list[Peer]


def _patience(peer: Peer, seconds: float) -> float:
    return max(seconds, START_SECONDS) if peer.mark.phase == "start" else seconds


def find_hang(peers: Collection[Peer], now: float, seconds: float) -> Hang | None:
    """Who keeps the run from going on: one rank silent for `seconds`, or none that speaks has moved for so long (in the
    start: START_SECONDS)."""
    speaking = [peer for peer in peers if now - peer.heard < min(seconds / 2, 10)]
    silent = [peer for peer in peers if peer not in speaking]
    stuck = bool(speaking) and all(now - peer.moved >= _patience(peer, seconds) for peer in speaking)
    if not stuck and not any(now - peer.heard >= seconds for peer in silent):
        return None
    if silent:
        names = ", ".join(f"{peer}, last heard in {peer.place}" for peer in silent)
        return Hang(f"nothing is heard of {names}: stopped, or cut off from the network", silent)
    order = {peer.rank: (peer.mark.step, peer.mark.number) for peer in speaking}
    behind = [peer for peer in speaking if order[peer.rank] == min(order.values())]
    if len(behind) == len(speaking):
        who = "all ranks wait" if len(behind) > 1 else f"{behind[0]} waits"
        return Hang(f"{who} in {behind[0].place} for {now - max(p.moved for p in speaking):.0f} s", [])
    others = max(speaking, key=lambda peer: order[peer.rank])
    names = ", ".join(f"{peer} in {peer.place}" for peer in behind)
    waited = now - max(peer.moved for peer in behind)
    return Hang(f"{names} for {waited:.0f} s, while others wait in {others.place}", [])
