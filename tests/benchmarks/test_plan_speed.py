"""What plan_speed.py makes of runs: here made ones, so that the right answer is known."""

from pathlib import Path

import pytest

from benchmarks.cell import Run
from benchmarks.plan_speed import calibrated, cells_of, found_by_search, rows_of, verdict, workload
from scaletrain.config.hardware import cpu
from scaletrain.planner.effort import effort_of
from scaletrain.planner.time import Cluster, step_time

SIZES = [(2, 128, 64), (4, 128, 64)]


def test_sixteen_ways_and_two_stages_of_the_other_sizes_are_run() -> None:
    cells = cells_of(SIZES, 2, 4)
    assert len(cells["ways"]) == 16
    first = cells["ways"][0]
    assert (first.stage, first.checkpointing, first.micro_batch, first.samples) == (1, "none", 4, 4)
    assert [(cell.stage, cell.checkpointing, cell.micro_batch) for cell in cells["sizes"]] == [
        (1, "none", 4), (1, "full", 4), (1, "none", 1), (3, "none", 4), (3, "full", 4), (3, "none", 1)
    ]  # fmt: skip


def test_runs_that_are_as_the_planner_thinks_are_planned_right_and_the_best_is_chosen() -> None:
    groups = cells_of(SIZES, 1, 4)
    cells = [cell for group in groups.values() for cell in group]
    works = {cell.name: workload(cell, Path("data"), 512) for cell in cells}
    assert [work.micro_batch * work.accumulation for work in works.values()] == [4] * len(cells)
    cluster = Cluster(cpu(3e9, "made"), 1, 1, 0.0)
    runs = {}
    for name, work in works.items():
        time, effort = step_time(work, cluster, share=1.0, rest=0.01), effort_of(work)
        parts = {"forward": time.forward, "backward": time.backward + effort.host_seconds, "optimizer": time.update}
        seconds = {f"{part}_seconds": value for part, value in parts.items()}
        line = {**seconds, "step_seconds": time.seconds, "data_wait_seconds": 0.0}
        runs[name] = Run([line] * 6)
    ways = {cell.name for cell in groups["ways"]}
    rows = rows_of(works, [runs, runs], ways)
    assert [row["ratio"]["median"] for row in rows] == pytest.approx([1.0] * len(cells))
    first = cells[0]
    chosen = found_by_search(calibrated(works[first.name], runs[first.name]), first)
    assert (chosen.checkpointing, chosen.micro_batch) == ("none", 4)
    told = verdict(rows, chosen.name)
    assert (told["plans"], told["within_25_percent"]) == (21, 21)
    assert told["chosen_takes_times_the_fastest"] == pytest.approx(1.0, abs=0.011)
    wrong = [{**row, "ratio": {"median": 1.3}} if row["name"] not in ways else row for row in rows]
    assert verdict(wrong, chosen.name)["within_25_percent"] == 15
