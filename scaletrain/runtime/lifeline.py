"""A connection from each rank to rank 0, so that a rank that dies, fails or hangs is named and ends the others at once.

A launcher on another node does not see a death, and a collective waits for the dead until its time is over. Here a
connection that ends without a goodbye is a death, within milliseconds. Each rank's thread tells rank 0 once a second
where its main thread is (runtime/pulse.py); rank 0's hub answers each second.
"""

import faulthandler
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from scaletrain.runtime import dist, pulse
from scaletrain.runtime.hub import STACK_SECONDS, Hub, Watched
from scaletrain.runtime.lines import Clock, Lines, Message
from scaletrain.runtime.processes import kill_here, process_begun
from scaletrain.runtime.pulse import Mark, Peer
from scaletrain.runtime.world import World

_CONNECT_SECONDS = 10.0
_VERDICT_SECONDS = 10.0  # that a failed rank waits to be ended
_TEXT = 2000  # characters of an error that are told


class Lifeline:
    """This rank's end. `say` prints a line on the terminal, `leave` ends the process with 1."""

    def __init__(
        self, world: World, logs: Path, hang_seconds: float, tell: Callable[[str], None], leave: Callable[[], None]
    ) -> None:
        self._watched = Watched(logs, hang_seconds, self.say, leave)
        self._world, self._tell = world, tell
        self._clock, self._closed = Clock(), False
        self._hub: Hub | None = None
        self._told, self._alike = threading.Lock(), threading.Event()
        now = self._clock.now()
        mine = {"rank": world.rank, "host": socket.gethostname(), "pid": os.getpid()}
        self._process = {**mine, "begun": process_begun(os.getpid())}
        self.peers = [Peer(**process, heard=now, moved=now) for process in dist.gather(self._process)]
        self._lines = self._connect() if world.size > 1 else None
        unreached = [rank for rank, fault in enumerate(dist.gather(self._fault())) if fault]
        if unreached:  # training needs none of this
            self.close()
            if world.is_first:
                tell(
                    f"note    ranks {unreached} cannot connect to rank 0 on {world.master_address}: a rank that dies "
                    "is noticed only by the launcher or after guard.collective_timeout_seconds; let nodes reach each "
                    "other on all ports"
                )
            return
        target = self._watch if self._lines else self._watch_alone
        threading.Thread(target=target, name="lifeline", daemon=True).start()

    def close(self) -> None:
        """Says goodbye: this rank ends on purpose."""
        if self._closed:
            return
        self._closed = True
        if self._lines is not None:
            self._lines.send({"bye": True})
        if self._hub is not None:
            self._hub.close()

    def fail(self, error: BaseException, fault: str | None = None) -> bool:
        """Tells rank 0 of an error that ends this rank, and waits a little for the line that names the cause: that
        ends the process. Returns False where nobody hears.

        `fault`: what to tell of an error that all ranks may have met. Returns True once all of them have.
        """
        if self._world.size == 1:
            return fault is not None
        if self._lines is None or self._closed:
            return False
        _patiently(lambda: traceback.print_exception(error))  # into the log
        text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}" if fault is None else fault
        self._lines.send({"mark": list(pulse.last_mark()), "failed": text[:_TEXT], "is_fault": fault is not None})
        return self._alike.wait(_VERDICT_SECONDS)

    def say(self, text: str) -> None:
        """One line of this process on the terminal, whatever else is found; and in its log."""
        if self._told.acquire(blocking=False):
            self._tell(f"error: {text}")
            _patiently(lambda: print(f"error: {text}", file=sys.stderr, flush=True))

    def _connect(self) -> Lines | None:
        server, token = None, secrets.token_hex(16)
        if self._world.is_first:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=self._world.size)
        port, token = dist.gather((server.getsockname()[1] if server else 0, token))[0]
        if server is not None:
            self._hub = Hub(server, self._world.size, token, self._watched)
        address = self._world.master_address
        if self._world.is_first or address == "localhost":  # as a name it may mean ::1, where an IPv4 server is not
            address = "127.0.0.1"
        try:
            lines = Lines(socket.create_connection((address, port), _CONNECT_SECONDS))
        except OSError as error:
            print(f"lifeline: {address}:{port}: {error}", file=sys.stderr, flush=True)
            return None
        lines.send({"token": token, "rank": self._world.rank, "process": self._process})
        return lines

    def _fault(self) -> bool:
        return self._world.size > 1 and self._lines is None

    def _watch(self) -> None:
        assert self._lines is not None
        reported, first = -self._watched.interval, self.peers[0]
        while not self._closed:
            now = self._clock.now()
            if now - reported >= self._watched.interval:
                reported = now
                self._lines.send({"mark": list(pulse.last_mark())})
            ready = wait([self._lines.socket], max(0.0, reported + self._watched.interval - now))
            now = self._clock.now()
            messages = self._lines.read() if ready else []
            if messages is None:
                self._lost(self._watched.death(first))
                return
            for message in messages:
                self._obey(message, now)
            if now - first.heard >= self._watched.hang_seconds and not self._closed:
                self._dump_stacks()
                reason = f"nothing is heard of {first}, last heard in {first.place}: stopped, or cut off"
                self._lost(self._watched.hang(reason), [[first.host, first.pid, first.begun]])

    def _obey(self, message: Message, now: float) -> None:
        if "beat" in message:
            self.peers[0].note(Mark(*message["beat"]), now)
        if "alike" in message:
            self._alike.set()
        if "stacks" in message:
            self._dump_stacks()
        if "bye" in message and not self._world.is_first:
            self._closed = True
            assert self._lines is not None
            self._lines.socket.close()
        if "end" in message and not self._world.is_first:  # rank 0 leaves last, by its hub
            _patiently(lambda: print(f"error: {message['end']}", file=sys.stderr, flush=True))
            kill_here(message["kill"])
            self._watched.leave()

    def _lost(self, text: str, kill: Sequence[Sequence[Any]] = ()) -> None:
        """Without rank 0 the lowest living rank of each node speaks for the others."""
        if self._closed or self._world.is_first:
            return
        mine = self._process
        below = [peer for peer in self.peers[1 : self._world.rank] if peer.host == mine["host"]]
        if not any(process_begun(peer.pid) == peer.begun for peer in below):
            self.say(text)
        kill_here(kill)
        time.sleep(1)  # to be seen alive by the ranks above
        self._watched.leave()

    def _watch_alone(self) -> None:
        me = self.peers[0]
        while not self._closed:
            now = self._clock.now()
            me.note(pulse.last_mark(), now)
            hang = pulse.find_hang([me], now, self._watched.hang_seconds)
            if hang is not None and not self._closed:
                self._dump_stacks()
                self.say(self._watched.hang(hang.reason))
                self._watched.leave()
            time.sleep(self._watched.interval)

    def _dump_stacks(self) -> None:
        def dump() -> None:
            with (self._watched.logs / f"stacks-rank-{self._world.rank:05d}.txt").open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)

        _patiently(dump)


def _patiently(write: Callable[[], None]) -> None:
    """Writes a file, unless its disk is what hangs: then this rank ends all the same."""
    thread = threading.Thread(target=write, name="lifeline writer", daemon=True)
    thread.start()
    thread.join(STACK_SECONDS)
