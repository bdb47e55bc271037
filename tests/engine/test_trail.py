"""The events of a run that went back: an honest trail has no fault, and each lie in it is a line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaletrain.config.schema import Recipe
from scaletrain.engine.audit import Run, _compare_with_windows
from scaletrain.engine.history import History
from scaletrain.engine.roll_back import FILE
from scaletrain.engine.state import RunState
from scaletrain.engine.trail import read_events
from scaletrain.errors import CheckpointError

Event = dict[str, Any]
BATCH = 8


def event(name: str, step: int, seen: int, passed_over: int = 0, **values: Any) -> Event:
    counted = {"samples_seen": seen, "sample_digest": f"{seen:016x}", "passed_over": passed_over}
    return {"event": name, "step": step, **counted, **values}


def saved(name: str, step: int, seen: int, passed_over: int = 0, **values: Any) -> Event:
    return event(name, step, seen, passed_over, checkpoint=f"step-{step:08d}", **values)


def passed(step: int, first: int, end: int, before: int = 0) -> Event:
    return event("pass_over", step, end, before + end - first, first_sample=first, samples=end - first)


WINDOWS = [{"start": 160, "end": 184, "reason": "a spike"}, {"start": 160, "end": 216, "reason": "a spike"}]


def honest() -> list[Event]:
    """Two spikes after one checkpoint, then a kill, and a resume from a checkpoint of before both."""
    return [
        event("start", 0, 0, ranks=1),
        saved("checkpoint", 10, 80),
        saved("checkpoint", 20, 160),
        saved("roll_back", 20, 160, from_step=23),  # line 4
        passed(20, 160, 184),
        saved("roll_back", 20, 160, from_step=24),
        passed(20, 160, 216),
        saved("checkpoint", 30, 296, 56),
        saved("resume", 10, 80, ranks=2),  # line 9
        saved("checkpoint", 15, 120),
        passed(20, 160, 216),
        saved("checkpoint", 25, 256, 56),
        {"event": "end", "step": 25},
    ]


def follow(folder: Path, events: list[Event], windows: list[Event] | None = None) -> History:
    history = History()
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    (folder / FILE).write_text(json.dumps(WINDOWS if windows is None else windows))
    read_events(folder / "events.jsonl", history)
    _compare_with_windows(folder, history)
    return history


def test_an_honest_trail_has_no_fault_and_tells_what_was_passed_over(tmp_path: Path) -> None:
    history = follow(tmp_path, honest())
    assert history.faults == []
    assert history.saved["step-00000025"].passed_over == 56
    without_first = [line for number, line in enumerate(honest(), start=1) if number != 10]
    assert follow(tmp_path, without_first).faults == [], "how many samples are in a step follows from the line itself"
    older = [{name: value for name, value in line.items() if name != "passed_over"} for line in honest()]
    history = follow(tmp_path, older)  # of a version that did not tell it
    assert history.faults == []
    assert history.saved["step-00000025"].passed_over == 56


def test_a_run_killed_while_it_went_back_has_a_window_of_which_no_event_tells(tmp_path: Path) -> None:
    events = honest()
    events[5] = saved("resume", 20, 160, ranks=1)
    assert follow(tmp_path, events).faults == []
    events[3] = saved("resume", 20, 160, ranks=1)
    assert follow(tmp_path, events).faults == []


def put(number: int, **values: Any) -> Callable[[list[Event]], None]:
    return lambda events: events[number - 1].update(values)


OVER, LINE = "passed over samples", "events.jsonl line"


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        pytest.param(
            put(5, first_sample=168, samples=16, passed_over=16),
            [f"{LINE} 5: {OVER}: expected from 160 on, where the run stood, found 168"],
            id="from elsewhere after a roll-back",
        ),
        pytest.param(
            put(11, first_sample=168, samples=48, passed_over=48),
            [
                f"{LINE} 11: {OVER}: expected from 160 on, where the run stood, found 168",
                f"{LINE} 12: samples passed over so far: expected 48, the sum of those told, found 56",
            ],
            id="from elsewhere some steps after a resume",
        ),
        pytest.param(
            put(5, samples=16),
            [
                f"{LINE} 5: {OVER}: expected up to 176, found 184",
                f"{LINE} 5: samples passed over so far: expected 16, the sum of those told, found 24",
            ],
            id="a sum that is none",
        ),
        pytest.param(
            put(8, passed_over=48),
            [f"{LINE} 8: samples passed over so far: expected 56, the sum of those told, found 48"],
            id="a checkpoint after others",
        ),
        pytest.param(
            put(7, samples=64, samples_seen=224, passed_over=64),
            [
                f"{LINE} 8: samples passed over so far: expected 64, the sum of those told, found 56",
                f"{LINE} 8: samples of step-00000030: expected 304, which is 8 a step, found 296",
                f"{LINE} 7: {OVER}: expected up to 216, as checkpoints/{FILE} says, found up to 224",
            ],
            id="more than the window",
        ),
        pytest.param(
            put(11, step=14),
            [f"{LINE} 11: {OVER}: expected after step 15, found step 14"],
            id="before the last checkpoint",
        ),
        pytest.param(
            put(4, samples_seen=152),
            [
                f"{LINE} 4: rolled back to step-00000020: expected step 20 with 160 samples and digest {160:016x}, "
                f"found step 20 with 152 samples and digest {160:016x}",
                f"{LINE} 5: {OVER}: expected from 152 on, where the run stood, found 160",
                f"{LINE} 4: samples to pass over: expected a window in checkpoints/{FILE} from 152 on, found none",
            ],
            id="a roll-back to elsewhere",
        ),
        pytest.param(
            put(6, checkpoint="step-00000021"),
            [f"{LINE} 6: rolled back: expected to a checkpoint that the events tell of, found step-00000021"],
            id="a roll-back to a checkpoint that never was",
        ),
        pytest.param(
            put(4, from_step=20),
            [f"{LINE} 4: rolled back to step-00000020: expected from step 21 or a later one, found from step 20"],
            id="a roll-back from where it went",
        ),
        pytest.param(
            put(9, passed_over=8),
            [
                f"{LINE} 9: resumed from step-00000010: expected step 10 with 80 samples and digest {80:016x}, found "
                f"step 10 with 80 samples (8 of them passed over) and digest {80:016x}",
            ],
            id="a resume",
        ),
    ],
)
def test_a_lie_is_told_with_its_line(change: Callable[[list[Event]], None], faults: list[str], tmp_path: Path) -> None:
    events = honest()
    change(events)
    found = [str(fault) for fault in follow(tmp_path, events).faults]
    assert found[: len(faults)] == faults
    assert len(found) >= len(faults)


def test_a_run_that_neither_went_back_nor_was_resumed_passes_over_nothing(tmp_path: Path) -> None:
    begin = [event("start", 0, 0, ranks=1), saved("checkpoint", 20, 160)]
    history = follow(tmp_path, [*begin, passed(20, 160, 184)])
    assert list(map(str, history.faults)) == [
        f"{LINE} 3: {OVER}: expected after a roll_back or a resume, found none before"
    ]
    history = follow(tmp_path, [passed(0, 0, 24), saved("roll_back", 0, 0, from_step=3)])
    assert list(map(str, history.faults)) == [
        f"{LINE} 1: cannot be read (ValueError: {OVER} before any start)",
        f"{LINE} 2: cannot be read (ValueError: rolled back before any start)",
    ]


def test_windows_that_are_not_those_of_the_events_are_told_with_the_lines_of_these(tmp_path: Path) -> None:
    file = f"checkpoints/{FILE}"
    assert list(map(str, follow(tmp_path, honest(), WINDOWS[:1]).faults)) == [
        f"{LINE} 6: samples to pass over: expected a window in {file} from 160 on, found none",
        f"{LINE} 7: {OVER}: expected up to 184, as {file} says, found up to 216",
        f"{LINE} 11: {OVER}: expected up to 184, as {file} says, found up to 216",
    ]
    assert len(follow(tmp_path, honest(), []).faults) == 5
    (fault,) = follow(tmp_path, honest(), [{"start": "here"}]).faults
    assert str(fault).startswith(f"{file}: ")
    assert "cannot be read" in str(fault)
    began_anew = [*honest(), event("start", 0, 0, ranks=1)]
    assert follow(tmp_path, began_anew, []).faults == [], "the windows go with the checkpoints"


def run_of(history: History, state: RunState) -> Run:
    return Run(Recipe.model_validate({"run": {"dir": "."}}), history, (), (), None, {}, state)


def test_a_step_that_was_taken_again_has_its_samples_of_each_time(tmp_path: Path) -> None:
    run = run_of(follow(tmp_path, honest()), RunState(25, 256))
    assert [launch.reached for launch in run.history.launches] == [23, 20, 24, 20, 30, 20, 25]
    assert run.samples_of(5) == [(32, BATCH)]
    assert run.samples_of(15) == [(112, BATCH)], "a resume reads the same again"
    assert run.samples_of(22) == [(168, BATCH), (192, BATCH), (224, BATCH)]
    assert run.samples_of(24) == [(208, BATCH), (240, BATCH)]
    assert run.samples_of(30) == [(288, BATCH)], "not taken again yet"
    with pytest.raises(CheckpointError, match="step 31 is not among those that the run has taken: its last is 30"):
        run.samples_of(31)
