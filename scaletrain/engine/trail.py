"""The events of a run, followed from launch to launch: what does not follow from the lines before is a fault."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaletrain.data.audit.fault import Fault
from scaletrain.data.mixture import MILLION
from scaletrain.engine.history import (
    PASSED_OVER,
    RESUMED,
    ROLLED_BACK,
    RUNNING,
    Detour,
    History,
    Launch,
    past_weights,
    shown,
)
from scaletrain.engine.state import RunState
from scaletrain.runtime.run_files import EVENTS

_COUNTERS = ("step", "samples_seen", "sample_digest")


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


def _state(event: Mapping[str, Any], before: RunState) -> RunState:
    """Of an event; `before`: what there was to count, where an older version did not tell the samples passed over."""
    counters = {name: event[name] for name in _COUNTERS}
    passed_over = event.get("passed_over", before.passed_over)
    return RunState.from_dict({**counters, "tokens_seen": 0, "passed_over": passed_over})


def _follow_start(history: History, where: str, event: Mapping[str, Any]) -> None:
    state = _state(event, RunState())
    if state != RunState():
        history.faults.append(Fault(where, "a start", shown(RunState()), shown(state)))
    if history.saved:
        history.notes.append(Fault(where, f"the run began anew, though {list(history.saved)[-1]} had been saved"))
        history.saved.clear()
    history.detours.clear()
    _begin(history, where, event, state)


def _follow_resume(history: History, where: str, event: Mapping[str, Any]) -> None:
    name = event["checkpoint"]
    before = history.saved.get(name)
    state = _state(event, before or _now(history))
    newer = [n for n, s in history.saved.items() if s.samples_seen > state.samples_seen and n not in history.damaged]
    if before is None:
        history.notes.append(Fault(where, f"{EVENTS} does not tell of {name} before (a kill just after the save)"))
    elif before != state:
        history.faults.append(Fault(where, f"resumed from {name}", shown(before), shown(state)))
    if newer:
        history.notes.append(
            Fault(where, f"resumed from {name}, though {newer[-1]} had been saved and not found damaged")
        )
    _stand_at(history, where, name, before or state)
    _begin(history, where, event, state)
    history.points.append((f"{where} (resume from {name})", history.launches[-1], state))


def _follow_roll_back(history: History, where: str, event: Mapping[str, Any]) -> None:
    name, from_step, launch = event["checkpoint"], int(event["from_step"]), _launch(history, ROLLED_BACK)
    before = history.saved.get(name)
    state = _state(event, before or launch.state)
    if before is None:
        history.faults.append(Fault(where, ROLLED_BACK, "to a checkpoint that the events tell of", name))
    elif before != state:
        history.faults.append(Fault(where, f"rolled back to {name}", shown(before), shown(state)))
    if from_step < max(launch.reached, state.step + 1):
        right = f"from step {max(launch.reached, state.step + 1):,} or a later one"
        history.faults.append(Fault(where, f"rolled back to {name}", right, f"from step {from_step:,}"))
    launch.reached = max(launch.reached, from_step)
    _stand_at(history, where, name, before or state)
    launch = _go_on(history, where, ROLLED_BACK, state)
    history.points.append((f"{where} (roll-back to {name})", launch, state))
    history.detours.append(Detour(where, state.samples_seen))


def _follow_pass_over(history: History, where: str, event: Mapping[str, Any]) -> None:
    first, samples, launch = int(event["first_sample"]), int(event["samples"]), _launch(history, PASSED_OVER)
    passed_over = launch.state.passed_over + samples
    state = _state(event, replace(launch.state, passed_over=passed_over))
    if not any(begun.kind in (RESUMED, ROLLED_BACK) for begun in history.launches):
        history.faults.append(Fault(where, PASSED_OVER, "after a roll_back or a resume", "none before"))
    if state.step < launch.saved:
        history.faults.append(Fault(where, PASSED_OVER, f"after step {launch.saved:,}", f"step {state.step:,}"))
    elif first != (position := _position(launch, state.step, first)):
        history.faults.append(Fault(where, PASSED_OVER, f"from {position:,} on, where the run stood", f"{first:,}"))
    if first + samples != state.samples_seen:
        history.faults.append(Fault(where, PASSED_OVER, f"up to {first + samples:,}", f"{state.samples_seen:,}"))
    _compare_passed_over(history, where, passed_over, state)
    launch.reached = max(launch.reached, state.step)
    launch = _go_on(history, where, PASSED_OVER, state)
    history.points.append((f"{where} (samples passed over)", launch, state))
    history.detours.append(Detour(where, first, state.samples_seen))


def _compare_passed_over(history: History, where: str, right: int, state: RunState) -> None:
    if state.passed_over != right:
        what = "samples passed over so far"
        history.faults.append(Fault(where, what, f"{right:,}, the sum of those told", f"{state.passed_over:,}"))


def _stand_at(history: History, where: str, name: str, state: RunState) -> None:
    """The run goes on from the checkpoint `name`: later ones count no more."""
    history.saved = {n: s for n, s in history.saved.items() if s.samples_seen <= state.samples_seen}
    history.saved[name], history.told[name] = state, where


def _position(launch: Launch, step: int, found: int) -> int:
    """How many samples the launch has seen after `step`. Before it has saved anything, how many there are in a step
    follows from how many are `found`."""
    steps, samples = step - launch.state.step, found - launch.state.samples_seen
    if steps and launch.batch is None:
        launch.batch = max(1, round(samples / steps))
    return launch.state.samples_seen + steps * (launch.batch or 0)


def _now(history: History) -> RunState:
    return history.launches[-1].state if history.launches else RunState()


def _launch(history: History, kind: str) -> Launch:
    if not history.launches:
        raise ValueError(f"{kind} before any start")
    return history.launches[-1]


def _go_on(history: History, where: str, kind: str, state: RunState) -> Launch:
    """The launch goes on at `state`, at another place than where it was: told as a launch of its own."""
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
    name = event["checkpoint"]
    if not history.launches:
        history.faults.append(Fault(where, f"{name} was saved before any start"))
        return
    launch = history.launches[-1]
    state = _state(event, launch.state)
    if state.step <= launch.saved:
        history.faults.append(Fault(where, f"{name} was saved", f"after step {launch.saved:,}", f"step {state.step:,}"))
        return
    _compare_passed_over(history, where, launch.state.passed_over, state)
    launch.saved = state.step
    position = _position(launch, state.step, state.samples_seen)
    assert launch.batch is not None
    if state.samples_seen != position:
        right = f"{position:,}, which is {launch.batch} a step"
        history.faults.append(Fault(where, f"samples of {name}", right, f"{state.samples_seen:,}"))
        return
    history.saved[name], history.told[name], history.batches[name] = state, where, launch.batch
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
