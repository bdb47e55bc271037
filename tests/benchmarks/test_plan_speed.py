"""What plan_speed.py makes of runs: here made ones, so that the right answer is known."""

from pathlib import Path

import pytest

from benchmarks.cell import Run
from benchmarks.plan_speed import cells_of, rows_of, verdict, workload
from scaletrain.config.hardware import cpu
from scaletrain.planner.time import Cluster, step_time

SIZES = [(2, 128, 64), (4, 128, 64)]


def test_twelve_ways_and_two_stages_of_the_other_sizes_are_run() -> None:
    cells = cells_of(SIZES, 2, 4)
    assert len(cells["ways"]) == 12
    assert (cells["ways"][0].stage, cells["ways"][0].checkpointing) == (1, "none")
    assert [(cell.stage, cell.checkpointing) for cell in cells["sizes"]] == [
        (1, "none"), (1, "full"), (3, "none"), (3, "full")
    ]  # fmt: skip


def test_runs_that_are_as_the_planner_thinks_are_planned_right_and_the_best_is_chosen() -> None:
    cells = [cell for group in cells_of(SIZES, 1, 4).values() for cell in group]
    works = {cell.name: workload(cell, Path("data"), 512) for cell in cells}
    cluster = Cluster(cpu(3e9, "made"), 1, 1, 0.0)
    runs = {}
    for name, work in works.items():
        time = step_time(work, cluster, share=1.0, rest=0.01)
        parts = {"forward": time.forward, "backward": time.backward, "optimizer": time.update}
        seconds = {f"{part}_seconds": value for part, value in parts.items()}
        line = {**seconds, "step_seconds": time.seconds, "data_wait_seconds": 0.0}
        runs[name] = Run([line] * 6)
    ways = {cell.name for cell in cells if cell.label == "gpt2 2x128"}
    rows = rows_of(works, [runs, runs], ways)
    assert [row["ratio"]["median"] for row in rows] == pytest.approx([1.0] * len(cells))
    told = verdict(rows)
    assert (told["plans"], told["within_25_percent"]) == (15, 15)
    assert told["chosen_takes_times_the_fastest"] == pytest.approx(1.0, abs=0.011)
    wrong = [{**row, "ratio": {"median": 1.3}} if row["name"] not in ways else row for row in rows]
    assert verdict(wrong)["within_25_percent"] == 11
