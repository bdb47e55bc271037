"""A probe on each node: started side by side, asked in JSON lines, each with a limit of time."""

import contextlib
import json
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from scaletrain.cluster.doctor.facts import Clock
from scaletrain.cluster.doctor.nodes import Place

MARK = "@scaletrain-doctor "  # a line without it is a shell's greeting
START_SECONDS = 30.0
_PINGS = 3


def tell(answer: Any) -> None:
    """What a probe answers, on its standard output."""
    print(f"{MARK}{json.dumps(answer)}", flush=True)


@dataclass(frozen=True)
class Silence:
    """Why a node gave no answer to a question."""

    question: str
    why: str


class Agent:
    """The probe on one node. Once it is silent it is asked no more."""

    def __init__(self, place: Place) -> None:
        self.name = place.name
        self.silence: Silence | None = None
        self._said: queue.Queue[str | None] = queue.Queue()
        self._complaints: deque[str] = deque(maxlen=20)
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                place.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, bufsize=1, errors="replace", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self.silence = Silence("start", f"{place.command[0]}: {error.strerror}")
            return
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._listen, self._note_complaints)]
        for reader in self._readers:
            reader.start()

    def ask(self, question: str, limit: float, /, **details: Any) -> Any:
        """The answer; a Silence where there is none in `limit` seconds, or ever."""
        if self.silence is not None:
            return self.silence
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"ask": question, **details}) + "\n")
            said = self._said.get(timeout=limit)
        except queue.Empty:
            self.silence = Silence(question, f"no answer in {limit:.0f} s")
            return self.silence
        except OSError:  # it has ended: what it said last tells why
            said = None
        if said is None:
            self.silence = Silence(question, self._last_words())
            return self.silence
        return json.loads(said)

    def clock(self) -> Clock | Silence:
        """By the quickest of a few questions for the time."""
        best: Clock | None = None
        for number in range(_PINGS):
            asked = time.time()
            told = self.ask("time", 5.0 if number else START_SECONDS)
            if isinstance(told, Silence):
                return told
            doubt = (time.time() - asked) / 2
            if best is None or doubt < best.doubt:
                best = Clock(float(told) - asked - doubt, doubt)
        assert best is not None
        return best

    def close(self) -> None:
        """Ends the probe: it leaves when nobody speaks to it any more."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(2.0 if self.silence is None else 0.1)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        assert self._process is not None
        for reader in self._readers:
            reader.join(1.0)
        if words := [line for line in self._complaints if line.strip()]:
            return words[-1].strip()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"the probe ended with exit code {self._process.wait(2.0)}"
        return "the probe closed its output"

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._said.put(line.removeprefix(MARK))
        self._said.put(None)

    def _note_complaints(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        self._complaints.extend(self._process.stderr)


class Agents:
    """The probes of all nodes."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._pool = ThreadPoolExecutor(len(places))
        self._agents = {agent.name: agent for agent in self._pool.map(Agent, places)}

    @property
    def names(self) -> list[str]:
        """Nodes that still answer."""
        return [name for name, agent in self._agents.items() if agent.silence is None]

    def silences(self) -> dict[str, Silence]:
        return {name: agent.silence for name, agent in self._agents.items() if agent.silence is not None}

    def clocks(self) -> dict[str, Clock]:
        found = zip(self._agents, self._pool.map(Agent.clock, self._agents.values()), strict=True)
        return {name: clock for name, clock in found if isinstance(clock, Clock)}

    def ask(
        self, question: str, limit: float, details: Mapping[str, Mapping[str, Any]] | None = None, /, **same: Any
    ) -> dict[str, Any]:
        """What the nodes answer, side by side: those in `details`, with their own, or all."""
        nodes = [name for name in (self.names if details is None else details) if name in self.names]

        def ask_one(name: str) -> Any:
            return self._agents[name].ask(question, limit, **same, **(details or {}).get(name, {}))

        answers = zip(nodes, self._pool.map(ask_one, nodes), strict=True)
        return {name: answer for name, answer in answers if not isinstance(answer, Silence)}

    def close(self) -> None:
        list(self._pool.map(Agent.close, self._agents.values()))
        self._pool.shutdown()
