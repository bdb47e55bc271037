"""A run's records as others read them: while they grow, after roll-backs, and torn."""

import json
import math
from pathlib import Path

from scaletrain.track.recorded import Recorded
from scaletrain.track.sinks import JsonLines


def losses(run: Recorded) -> list[tuple[int, float]]:
    table = run.curves.training
    return list(zip(table.steps, table.values.get("loss", []), strict=True))


def test_only_what_was_appended_is_read_and_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    run, path = Recorded(tmp_path), tmp_path / "metrics.jsonl"
    run.refresh()
    assert losses(run) == []
    path.write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "lo')
    run.refresh()
    assert losses(run) == [(1, 5.0)]
    with path.open("r+") as file:
        file.write("#")  # read once already: nothing looks there again
        file.seek(0, 2)
        file.write('ss": 4.0}\n')
    run.refresh()
    run.refresh()
    assert losses(run) == [(1, 5.0), (2, 4.0)]
    assert run.unreadable == 0


def test_a_resume_that_writes_the_file_anew_is_followed(tmp_path: Path) -> None:
    run, sink = Recorded(tmp_path), JsonLines(tmp_path / "metrics.jsonl", resumed=0)
    for step in (1, 2, 3):
        sink.write(step, {"loss": float(step)})
    run.refresh()
    sink.rewind(1)
    sink.write(2, {"loss": 20.0})
    sink.write(3, {"loss": 30.0})
    run.refresh()
    sink.close()
    assert losses(run) == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_steps_that_appear_twice_count_as_they_were_last(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}, {"step": 3, "loss": 3.0},
        {"step": 2, "loss": 20.0}, {"step": 2, "eval_loss": 25.0, "eval_f1": 1}, {"step": 2, "eval_loss": 26.0},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = Recorded(tmp_path)
    run.refresh()
    assert losses(run) == [(1, 1.0), (2, 20.0)]
    assert list(run.curves.evaluations.steps) == [2]
    assert run.curves.evaluations.last("loss") == 26.0
    assert run.curves.evaluations.last("f1") is None


def test_values_that_are_not_finite_or_missing_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": "nan", "mfu": null}\n{"step": 2, "loss": 1, "mfu": 2}')
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('\n\xff\n[1]\n{"step": "3"}\n')
    run = Recorded(tmp_path)
    run.refresh()
    assert losses(run) == [(1, math.inf), (2, 1.0)]
    assert math.isnan(run.curves.training.values["mfu"][0])
    assert run.unreadable == 2


def test_an_event_behind_a_torn_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "chec{"event": "resume", "step": 3, "last_step": 9}\n{"a": 1}\n')
    run = Recorded(tmp_path)
    run.refresh()
    assert [event["event"] for event in run.events] == ["resume"]
    assert run.total_steps == 9


def test_seconds_of_training_are_the_steps_own(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 1, "step_seconds": 3.0}, {"step": 11, "loss": 1, "step_seconds": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = Recorded(tmp_path)
    run.refresh()
    assert list(run.curves.training_seconds()) == [3.0, 8.0]
