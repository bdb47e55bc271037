"""A hopeless run is refused before its model is built, and a run's end is held against its plan."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scaletrain.assemble import expectation
from scaletrain.assemble.pretraining import settle_pretraining
from scaletrain.data.shards import Dataset
from scaletrain.engine.plan import Plan
from scaletrain.engine.state import RunState
from scaletrain.errors import ConfigError
from scaletrain.planner.effort import Effort
from scaletrain.planner.fit import HOST_RESERVE, Room, with_micro_batch
from scaletrain.planner.memory import memory_of
from scaletrain.track.peak import Peak
from scaletrain.track.sinks import JsonLines
from tests.conftest import write_recipe


@pytest.fixture
def recipe(dataset: Dataset, tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return write_recipe(tmp_path, dataset, tmp_path / "run")


def test_what_is_expected_is_written_into_the_run_folder(recipe: Path, tmp_path: Path) -> None:
    settled = settle_pretraining(recipe, [], None)
    expected = expectation.begin(settled, force=False)
    expectation.write(expected, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "plan.json").read_text())
    known = {"peak_bytes", "moment", "parts", "process_bytes", "tokens_per_second"}
    assert set(found) == known | {"effort", "ranks_of_node", "device", "host_bytes", "host_moment"}
    assert Effort(**found["effort"]) == expected.effort
    assert found["ranks_of_node"] == 1
    assert sum(found["parts"].values()) == found["peak_bytes"] == expected.peak_bytes
    assert found["tokens_per_second"] is None  # a CPU's rate is not known


def test_a_hopeless_run_is_refused_and_can_be_forced(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = settle_pretraining(recipe, [], None)
    needed = expectation.begin(settled, force=False).peak_bytes
    monkeypatch.setattr(expectation, "available_memory", lambda: int(needed / 1.09))
    expectation.begin(settled, force=False)
    monkeypatch.setattr(expectation, "available_memory", lambda: int(needed / 1.11))
    with pytest.raises(ConfigError, match=r"run: a rank needs \d.* GB by plan, and has \d.* GB: .*--force goes on"):
        expectation.begin(settled, force=False)
    expectation.begin(settled, force=True)


def test_a_plan_near_to_what_there_is_is_a_warning(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = settle_pretraining(recipe, ["train.micro_batch_size=8"], None)
    expected = expectation.begin(settled, force=False)
    assert expectation.doubts(settled, expected) == []
    monkeypatch.setattr(expectation, "available_memory", lambda: int(expected.peak_bytes * 1.04))
    (finding,) = expectation.doubts(settled, expected)
    assert finding.severity == "warn"
    assert "GB by plan with its margin, and has" in finding.text


def test_a_refusal_names_a_change_that_fits(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = settle_pretraining(recipe, [], None)
    work = expectation.workload(settled)
    assert work is not None and work.micro_batch == 8
    smaller = memory_of(with_micro_batch(work, 4))
    room = Room(0, is_cpu=True).need(smaller)
    monkeypatch.setattr(expectation, "HOPELESS", 0.0)
    monkeypatch.setattr(expectation, "available_memory", lambda: room)
    with pytest.raises(ConfigError, match="GB: train.micro_batch_size=4 makes it fit, --force goes on"):
        expectation.begin(settled, force=False)


def test_a_refusal_for_host_memory_names_a_change_of_that(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = settle_pretraining(recipe, [], None)
    gpu = replace(settled, launch=replace(settled.launch, device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    work = expectation.workload(gpu)
    assert work is not None and work.copies_state
    without = memory_of(replace(work, copies_state=False)).host_peak.host
    monkeypatch.setattr(expectation, "available_memory", lambda: HOST_RESERVE + without)
    hopeless = replace(expectation.expect(gpu), host_bytes=10**12, host_moment="save")
    with pytest.raises(ConfigError, match="host memory at the save by plan, .*: checkpoint.background=false makes it"):
        expectation.check_room(gpu, hopeless, force=False)
    expectation.check_room(gpu, hopeless, force=True)


def test_a_cpus_speed_is_planned_once_its_rate_is_measured(recipe: Path) -> None:
    settled = settle_pretraining(recipe, [], None)
    expected = expectation.begin(settled, force=False)
    slow, fast = (expectation.at_peak(expected, settled, Peak(rate, "made")).tokens_per_second for rate in (1e9, 1e12))
    assert slow is not None and fast is not None
    assert 0 < slow < fast
    assert expectation.at_peak(expected, settled, Peak(None, "unknown")) == expected


@pytest.mark.parametrize(
    ("override", "libraries"),
    [
        ([], ()),
        (["optim.name=adamw_8bit"], ("bitsandbytes",)),
        (["log.trackers=[wandb, mlflow, wandb]"], ("wandb", "mlflow")),
    ],
)
def test_libraries_of_a_recipe_are_planned(override: list[str], libraries: tuple[str, ...], recipe: Path) -> None:
    work = expectation.workload(settle_pretraining(recipe, override, None))
    assert work is not None
    assert work.libraries == libraries


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (None, []),
        (10_000.0, []),
        (1000.0, ["time    about 2.5 hours, at 1,000 tokens/s by plan"]),
        (10.0, ["time    about 10 days, at 10 tokens/s by plan"]),
    ],
)
def test_a_long_run_is_told_at_its_start(rate: float | None, told: list[str], recipe: Path) -> None:
    expected = replace(expectation.expect(settle_pretraining(recipe, [], None)), tokens_per_second=rate)
    plan = Plan(total_steps=100, global_batch=100, micro_batch=1, tokens_per_sample=1000, total_samples=10_000)
    assert list(expectation.duration(expected, plan, RunState(step=10, samples_seen=1000))) == told
    assert list(expectation.duration(None, plan, RunState())) == []


def test_a_machine_that_does_not_tell_its_memory_refuses_nothing(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expectation, "available_memory", lambda: None)
    expectation.begin(settle_pretraining(recipe, [], None), force=False)


def test_the_end_tells_planned_beside_measured(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = settle_pretraining(recipe, [], None)
    effort = Effort(1.0, 2.0, 3.0, 0.0, 0.0)
    expected = expectation.Expected(900_000_000, "update", {}, 100_000_000, None, effort, 1, "cpu")
    monkeypatch.setattr(expectation, "peak_memory_bytes", lambda device: 800_000_000)
    line = "plan    a rank's memory: 1.00 GB planned, 0.80 GB measured (+25%)"
    assert expectation.compare(expected, settled) == line
    known = replace(expected, tokens_per_second=5000.0)
    assert expectation.compare(known, settled) == line  # no step was logged
    sink = JsonLines(tmp_path / "run" / "metrics.jsonl", 0)
    for step, rate in enumerate((10.0, 4000.0, 4100.0), start=1):
        sink.write(step, {"tokens_per_second": rate})
    sink.close()
    assert expectation.compare(known, settled) == f"{line}; tokens/s: 5,000 planned, 4,000 measured"
