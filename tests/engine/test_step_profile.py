"""What torch's profiler leaves of the steps that a recipe names."""

import json
from pathlib import Path

import pytest
import torch

from scaletrain.config.schema import Train, profiled
from scaletrain.engine.step_profile import StepProfile

CPU = torch.device("cpu")


def work(profile: StepProfile, steps: range) -> None:
    for step in steps:
        with profile.around(step):
            torch.ones(8, 8) @ torch.ones(8, 8)


def test_the_named_steps_leave_a_trace_and_the_dearest_operations(tmp_path: Path) -> None:
    profile = StepProfile(tmp_path / "profile", profiled(Train(profile_steps="2-3")), CPU)
    work(profile, range(1, 6))
    names = [event["name"] for event in json.loads((tmp_path / "profile/trace-2-3.json").read_text())["traceEvents"]]
    assert names.count("aten::mm") == 2, "of two steps"
    assert "aten::mm" in (tmp_path / "profile/operations-2-3.txt").read_text()
    assert len(list((tmp_path / "profile").iterdir())) == 2


def test_a_run_that_ends_or_fails_before_the_last_step_leaves_what_there_is(tmp_path: Path) -> None:
    ended = StepProfile(tmp_path / "ended", (2, 9), CPU)
    work(ended, range(1, 4))
    ended.close(3)
    failed = StepProfile(tmp_path / "failed", (1, 9), CPU)
    with pytest.raises(ValueError, match="step"), failed.around(1):
        raise ValueError("step")
    failed.close(1)
    assert [path.name for path in sorted(tmp_path.glob("*/trace*"))] == ["trace-2-3.json", "trace-1-1.json"]


def test_nothing_is_written_where_nothing_is_asked_for(tmp_path: Path) -> None:
    for steps in (None, (7, 8)):
        profile = StepProfile(tmp_path / "profile", steps, CPU)
        work(profile, range(1, 4))
        profile.close(3)
    assert not (tmp_path / "profile").exists()
    assert profiled(Train(profile_steps="4")) == (4, 4)
