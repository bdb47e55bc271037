"""What a run's events tell, followed from launch to launch: what does not follow from the lines before is a fault."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scaletrain.data.audit.fault import Fault
from scaletrain.data.mixture import MILLION
from scaletrain.engine.state import RunState

EVENTS = "events.jsonl"
_COUNTERS = ("step", "samples_seen", "sample_digest")


RUNNING = "killed, or still at work"


@dataclass
class Launch:
    """One start of the program: where it began, on how many ranks, how many samples a step, and how it ended."""

    where: str
    kind: str
    state: RunState
    ranks: int
    batch: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)  # of the mixture that it read by
    saved: int = 0  # the step of its last checkpoint
    reached: int = 0  # the last step that an event tells of
    end: str = RUNNING


@dataclass
class History:
    """What the events tell. `saved`: the checkpoints from which the training that counts went on, by name."""

    launches: list[Launch] = field(default_factory=list)
    points: list[tuple[str, Launch, RunState]] = field(default_factory=list)
    saved: dict[str, RunState] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)


def past_weights(record: Mapping[str, Any], samples: int) -> list[tuple[int, dict[int, int]]]:
    """What a mixture's record decides of the first `samples`: where each segment begins, and the sources' weights."""
    numbers = {name: number for number, name in enumerate(record.get("sources", []))}
    return [
        (part["start"], {numbers[name]: weight for name, weight in part["weights"].items() if weight})
        for part in record.get("segments", [])
        if part["start"] < samples
    ]


def read_events(path: Path, history: History) -> None:
    """Follows the events from launch to launch; what does not follow from those before is a fault."""
    if not path.is_file():
        history.faults.append(Fault(EVENTS, "the file is missing", "the events of the run", "no file"))
        return
    *lines, torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        where = f"{EVENTS} line {number}"
        # A line that a kill or a power cut tore has no end: the next launch's first event stands on the same line.
        whole = line[max(0, line.rfind('{"event"')) :]
        if whole != line:
            history.notes.append(Fault(where, "its beginning was torn off by a kill"))
        try:
            event = json.loads(whole)
            step = int(event["step"])
            if (follow := _FOLLOW.get(event["event"])) is not None:
                follow(history, where, event)
            for launch in history.launches[-1:]:
                launch.reached = max(launch.reached, step)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            history.faults.append(Fault(where, f"cannot be read ({type(error).__name__}: {error})"))
    if torn:
        history.notes.append(Fault(f"{EVENTS} line {len(lines) + 1}", "its end was torn off by a kill"))


def _state(event: Mapping[str, Any]) -> RunState:
    return RunState.from_dict({**{name: event[name] for name in _COUNTERS}, "tokens_seen": 0})


def shown(state: RunState) -> str:
    return f"step {state.step:,} with {state.samples_seen:,} samples and digest {state.sample_digest:016x}"


def _follow_start(history: History, where: str, event: Mapping[str, Any]) -> None:
    state = _state(event)
    if state != RunState():
        history.faults.append(Fault(where, "a start", shown(RunState()), shown(state)))
    if history.saved:
        history.notes.append(Fault(where, f"the run began anew, though {list(history.saved)[-1]} had been saved"))
        history.saved.clear()
    _begin(history, where, event, state)


def _follow_resume(history: History, where: str, event: Mapping[str, Any]) -> None:
    name, state = event["checkpoint"], _state(event)
    before = history.saved.get(name)
    newer = [n for n, s in history.saved.items() if s.samples_seen > state.samples_seen and n not in history.damaged]
    if before is None:
        history.notes.append(Fault(where, f"{EVENTS} does not tell of {name} before (a kill just after the save)"))
    elif before != state:
        history.faults.append(Fault(where, f"resumed from {name}", shown(before), shown(state)))
    if newer:
        history.notes.append(
            Fault(where, f"resumed from {name}, though {newer[-1]} had been saved and not found damaged")
        )
    history.saved = {n: s for n, s in history.saved.items() if s.samples_seen <= state.samples_seen}
    history.saved[name] = before or state
    _begin(history, where, event, state)
    history.points.append((f"{where} (resume from {name})", history.launches[-1], state))


def _follow_roll_back(history: History, where: str, event: Mapping[str, Any]) -> None:
    name, state = event["checkpoint"], _state(event)
    before = history.saved.get(name)
    if before is not None and before != state:
        history.faults.append(Fault(where, f"rolled back to {name}", shown(before), shown(state)))
    history.saved = {n: s for n, s in history.saved.items() if s.samples_seen <= state.samples_seen}
    history.saved[name] = before or state
    for launch in history.launches[-1:]:
        launch.reached = max(launch.reached, int(event["from_step"]))
    _go_on(history, where, "rolled back", state)


def _follow_pass_over(history: History, where: str, event: Mapping[str, Any]) -> None:
    state, first, samples = _state(event), int(event["first_sample"]), int(event["samples"])
    if first + samples != state.samples_seen:
        history.faults.append(
            Fault(where, "samples passed over", f"up to {first + samples:,}", f"{state.samples_seen:,}")
        )
    launch = _go_on(history, where, "passed over samples", state)
    history.points.append((f"{where} (samples passed over)", launch, state))


def _go_on(history: History, where: str, kind: str, state: RunState) -> Launch:
    """The launch goes on at `state`, at another place than where it was: told as a launch of its own."""
    if not history.launches:
        raise ValueError(f"{kind} before any start")
    before = history.launches[-1]
    before.end = kind
    history.launches.append(
        replace(before, where=where, kind=kind, state=state, saved=state.step, reached=state.step, end=RUNNING)
    )
    return history.launches[-1]


def _begin(history: History, where: str, event: Mapping[str, Any], state: RunState) -> None:
    if history.launches and history.launches[-1].end == RUNNING:
        history.launches[-1].end = "killed"  # one run at a time holds the folder
    history.launches.append(Launch(where, event["event"], state, int(event["ranks"]), saved=state.step))


def _follow_data(history: History, where: str, event: Mapping[str, Any]) -> None:
    record = {name: event[name] for name in ("sources", "segments") if name in event}
    past = past_weights(record, sys.maxsize)
    if past and (past[0][0] != 0 or any(sum(weights.values()) != MILLION for _, weights in past)):
        raise ValueError("segments do not begin at 0, or have weights that are no whole")
    if history.launches:
        history.launches[-1].record = record


def _follow_checkpoint(history: History, where: str, event: Mapping[str, Any]) -> None:
    name, state = event["checkpoint"], _state(event)
    if not history.launches:
        history.faults.append(Fault(where, f"{name} was saved before any start"))
        return
    launch = history.launches[-1]
    steps, samples = state.step - launch.state.step, state.samples_seen - launch.state.samples_seen
    if state.step <= launch.saved:
        history.faults.append(Fault(where, f"{name} was saved", f"after step {launch.saved:,}", f"step {state.step:,}"))
        return
    launch.saved, launch.batch = state.step, launch.batch or max(1, round(samples / steps))
    if samples != steps * launch.batch:
        right = f"{launch.state.samples_seen + steps * launch.batch:,}, which is {launch.batch} a step"
        history.faults.append(Fault(where, f"samples of {name}", right, f"{state.samples_seen:,}"))
        return
    history.saved[name], history.batches[name] = state, launch.batch
    history.damaged.discard(name)
    history.points.append((f"{where} ({name})", launch, state))


def _follow_damage(history: History, where: str, event: Mapping[str, Any]) -> None:
    history.damaged.add(event["checkpoint"])


def _follow_end(history: History, where: str, event: Mapping[str, Any]) -> None:
    if not history.launches:
        history.faults.append(Fault(where, f"{event['event']} before any start"))
        return
    launch = history.launches[-1]
    launch.end = f"stopped ({event['reason']})" if event["event"] == "stop" else "done"
    if event["step"] != launch.saved:
        history.faults.append(Fault(where, "the step at the end", f"that of its last checkpoint, {launch.saved:,}",
                                    f"{event['step']:,}"))  # fmt: skip


_FOLLOW: dict[str, Callable[[History, str, Mapping[str, Any]], None]] = {
    "start": _follow_start,
    "resume": _follow_resume,
    "data": _follow_data,
    "mixture": _follow_data,
    "checkpoint": _follow_checkpoint,
    "bad_checkpoint": _follow_damage,
    "roll_back": _follow_roll_back,
    "pass_over": _follow_pass_over,
    "stop": _follow_end,
    "end": _follow_end,
}
