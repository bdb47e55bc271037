"""Rank 0's ear for all ranks: who died, who failed, who keeps the others waiting."""

import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from scaletrain.runtime import pulse
from scaletrain.runtime.lines import Clock, Lines, Message
from scaletrain.runtime.processes import kill_here
from scaletrain.runtime.pulse import Mark, Peer

STACK_SECONDS = 2.0  # for all ranks to write their stacks
_DEATH_SECONDS = 0.2  # for the other deaths of the same moment
_FAIL_SECONDS = 1.0  # a failed rank may only have met a broken connection: the death that broke it is told first
_ALIKE_SECONDS = 3.0  # for the others to meet the same fault, after which the rank is alone with it
_GUEST_SECONDS, _GUEST_BYTES = 30.0, 1 << 16  # that a connection has to show the token
_DEAF_SECONDS = 1.0  # without a free file number


@dataclass(frozen=True)
class Watched:
    """A run that is watched: `say` tells a person one line, `leave` ends this process with 1.

    `hang_seconds` without progress are a hang; ranks speak every `interval` seconds; `logs` holds their files.
    """

    logs: Path
    hang_seconds: float
    say: Callable[[str], None]
    leave: Callable[[], None]

    @property
    def interval(self) -> float:
        return min(1.0, self.hang_seconds / 5)

    def death(self, peer: Peer, others: Sequence[Peer] = ()) -> str:
        also = f", and so did {', '.join(map(str, others))}" if others else ""
        return (
            f"{peer} died in or after {peer.place}{also}; its log is {self.log(peer)}; look for the cause on "
            f"{peer.host} (out-of-memory killer: dmesg; a limit or a failed node: the scheduler's log)"
        )

    def failure(self, peer: Peer, text: str) -> str:
        return f"{peer} failed in {peer.place}: {text}; the traceback is in its log, {self.log(peer)}"

    def hang(self, reason: str) -> str:
        return (
            f"no progress for guard.hang_seconds={self.hang_seconds:g}: {reason}; where each rank waits is in "
            f"{self.logs / 'stacks-rank-NNNNN.txt'}"
        )

    def log(self, peer: Peer) -> Path:
        return self.logs / f"rank-{peer.rank:05d}.log"


@dataclass(frozen=True)
class Failure:
    """What a rank said as it failed. `is_fault`: all may have met it, as one of the input."""

    when: float
    text: str
    is_fault: bool

    @property
    def patience(self) -> float:
        return _ALIKE_SECONDS if self.is_fault else _FAIL_SECONDS


class Hub:
    """Rank 0's thread: hears all `size` ranks and ends the run when one is lost."""

    def __init__(self, server: socket.socket, size: int, token: str, watched: Watched) -> None:
        self._server, self._size, self._token, self._watched = server, size, token, watched
        self._clock = Clock()
        self._guests: dict[Lines, float] = {}  # connections without a token so far, and when they came
        self._deaf_until = 0.0
        self._lines: dict[int, Lines] = {}
        self._peers: dict[int, Peer] = {}
        self._dead: list[tuple[float, int]] = []
        self._failed: dict[int, Failure] = {}
        self._alike = False
        self.closing = False
        self.thread = threading.Thread(target=self._watch, name="lifeline hub", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Says goodbye to all and waits, a second at most, until they have heard it."""
        self.closing = True
        for lines in list(self._lines.values()):
            lines.hurry()  # one who no longer reads must not keep the others from hearing it
        self._tell({"bye": True})
        self.thread.join(1.0)

    def _watch(self) -> None:
        beat = now = 0.0
        while not (self.closing and len(self._lines) <= 1):
            heard = [lines.socket for lines in [*self._guests, *self._lines.values()]]
            if now >= self._deaf_until:
                heard.append(self._server)
            ready = wait(heard, 0.1)  # select() takes no file number above 1023
            now = self._clock.now()
            for rank, lines in [item for item in self._lines.items() if item[1].socket in ready]:
                self._hear(rank, lines, now)
            for guest, came in list(self._guests.items()):  # after the ranks: who is admitted was read from just now
                if guest.socket in ready:
                    self._admit(guest, now)
                elif now - came > _GUEST_SECONDS:
                    self._refuse(guest)
            if self._server in ready:
                self._welcome(now)
            if self.closing:
                continue
            if now - beat >= self._watched.interval:
                beat = now
                self._tell({"beat": list(pulse.last_mark())})
            self._judge(now)

    def _tell(self, message: Message) -> None:
        for lines in list(self._lines.values()):
            lines.send(message)

    def _welcome(self, now: float) -> None:
        try:
            connection = self._server.accept()[0]
        except OSError:  # no file number is free, or the guest has gone again: ranks wait in the queue
            self._deaf_until = now + _DEAF_SECONDS
            return
        self._guests[Lines(connection, _GUEST_BYTES)] = now

    def _admit(self, guest: Lines, now: float) -> None:
        """A stranger's connection ends; a rank's first line holds the token."""
        messages = guest.read()
        if messages == []:
            return
        if messages and messages[0].get("token") == self._token:
            del self._guests[guest]
            guest.most_bytes = math.inf
            rank = int(messages[0]["rank"])
            self._lines[rank] = guest
            self._peers[rank] = Peer(**messages[0]["process"], heard=now, moved=now)
            self._take(rank, messages[1:], now)
        else:
            self._refuse(guest)

    def _refuse(self, guest: Lines) -> None:
        del self._guests[guest]
        guest.socket.close()

    def _hear(self, rank: int, lines: Lines, now: float) -> None:
        messages = lines.read()
        if messages is not None:
            self._take(rank, messages, now)
            return
        lines.socket.close()
        del self._lines[rank]
        if rank in self._peers:
            self._dead.append((now, rank))

    def _take(self, rank: int, messages: Sequence[Message], now: float) -> None:
        for message in messages:
            if "mark" in message and rank in self._peers:
                self._peers[rank].note(Mark(*message["mark"]), now)
            if "failed" in message:
                self._failed.setdefault(rank, Failure(now, message["failed"], message["is_fault"]))
            if "bye" in message:
                self._peers.pop(rank, None)

    def _judge(self, now: float) -> None:
        if self._alike:  # they end by themselves
            return
        if len(self._failed) == self._size and all(failure.is_fault for failure in self._failed.values()):
            self._alike = True
            self._tell({"alike": True})
            return
        deaths = [(when, rank) for when, rank in self._dead if rank not in self._failed]
        if deaths and now - deaths[0][0] >= _DEATH_SECONDS:
            self._end(self._watched.death(self._peers[deaths[0][1]], [self._peers[rank] for _, rank in deaths[1:]]))
        for rank, failure in self._failed.items():
            if not deaths and rank in self._peers and now - failure.when >= failure.patience:
                self._end(self._watched.failure(self._peers[rank], failure.text))
        hang = pulse.find_hang(self._peers.values(), now, self._watched.hang_seconds)
        if hang is not None and not deaths and not self._failed:
            self._tell({"stacks": True})
            time.sleep(STACK_SECONDS)
            self._end(self._watched.hang(hang.reason), hang.silent)

    def _end(self, text: str, silent: Sequence[Peer] = ()) -> None:
        if self.closing:
            return
        self._watched.say(text)
        kill = [[peer.host, peer.pid, peer.begun] for peer in silent]
        self._tell({"end": text, "kill": kill})
        kill_here(kill)
        waited = time.monotonic()
        while len(self._lines) > 1 and time.monotonic() - waited < 2:  # leaving with unread bytes would cut theirs off
            ready = wait([lines.socket for lines in self._lines.values()], 0.1)
            for rank, lines in [item for item in self._lines.items() if item[1].socket in ready]:
                self._hear(rank, lines, 0.0)
        self._watched.leave()
