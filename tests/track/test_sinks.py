"""Metrics and events on the disk."""

import json
import math
from pathlib import Path

from scaletrain.track.sinks import Events, JsonLines, TensorBoard, read_lines


def test_resuming_drops_later_lines_and_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path, resumed=0)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    second = JsonLines(path, resumed=2)
    second.write(3, {"loss": 30.0})
    second.close()
    assert [(line["step"], line["loss"]) for line in read_lines(path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert not list(tmp_path.glob(".*"))


def test_non_finite_values_stay_valid_json(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "m.jsonl", resumed=0)
    sink.write(1, {"loss": math.nan, "mfu": None})
    sink.close()
    line = json.loads((tmp_path / "m.jsonl").read_text())
    assert math.isnan(float(line["loss"]))
    assert line["mfu"] is None


def test_events_tell_rank_and_host_and_only_where_a_path_is_given(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    Events(path, rank=0).write("start", 0, ranks=2)
    Events(None, rank=1).write("start", 0)
    (line,) = read_lines(path)
    assert (line["event"], line["rank"], line["ranks"]) == ("start", 0, 2)
    assert line["host"]
    assert line["time"] > 0


def test_tensorboard_gets_the_numbers_and_a_resume_purges_the_later_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed, steps in ((0, (1, 2, 3)), (1, (2, 3))):
        sink = TensorBoard(tmp_path, resumed)
        for step in steps:
            sink.write(step, {"loss": step + resumed / 10, "mfu": None, "eval_loss": 9.0})
        sink.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, round(e.value, 3)) for e in found.Scalars("train/loss")] == [(1, 1.0), (2, 2.1), (3, 3.1)]
    assert found.Tags()["scalars"] == ["train/loss", "evaluate/loss"]
