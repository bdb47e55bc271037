"""A run tells how fast its devices are: what was planned from what it reached is what it took."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from scaletrain.config.hardware import Hardware, cpu, hardware
from scaletrain.errors import ConfigError
from scaletrain.planner.calibration import Speed, at_speed, read_speed
from scaletrain.planner.effort import effort_of
from scaletrain.planner.fit import Room
from scaletrain.planner.plan import Plan
from scaletrain.planner.time import LINK_SHARE, Cluster, StepTime, step_time
from scaletrain.planner.workload import Workload
from tests.planner.made import workload

LINK = 40e9
TRUE = Hardware("t", 1, {"bf16": 3e12, "fp16": 3e12, "fp32": 3e12}, 20e9, LINK, LINK, "made", fp8_gain=2.0)


def write_run(folder: Path, work: Workload, rest: float = 0.0, *, lines: int = 9, **more: Any) -> StepTime:
    """A run whose steps take what the planner says of devices that are known; its first two steps take far longer."""
    time = step_time(work, Cluster(TRUE, 1, work.ranks, LINK), share=1.0, rest=rest)
    effort = effort_of(work)
    reducing = (effort.gradient_bytes + effort.awaited_bytes) / (LINK * LINK_SHARE) + effort.host_seconds
    values = {
        "forward_seconds": time.forward,
        "backward_seconds": time.backward + reducing,
        "optimizer_seconds": time.update + time.exposed + time.host - reducing,
        "step_seconds": time.seconds + 0.25,
        "data_wait_seconds": 0.25,
    }
    told = [{"step": n, **{k: v * (50 if n < 3 else 1) for k, v in values.items()}} for n in range(1, lines + 1)]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*told, {"eval_loss": 1.0}]))
    (folder / "plan.json").write_text(
        json.dumps({"effort": asdict(effort_of(work)), "ranks_of_node": 4, "device": "a GPU", **more})
    )
    return time


def one_after_another(stage: int, ranks: int) -> Workload:
    """Nothing of the network is hidden."""
    work = workload(stage, ranks=ranks)
    return replace(work, zero=replace(work.zero, overlaps=False))


@pytest.mark.parametrize(
    ("stage", "ranks", "more"),
    [
        (0, 1, {}),
        (1, 1, {}),
        (0, 4, {}),
        (1, 4, {}),
        (2, 4, {}),
        (1, 4, {"fp8": True}),
        (3, 4, {"device": "cpu"}),
        (3, 4, {"device": "cpu", "checkpointing": "none"}),
    ],
)
def test_what_a_run_reached_is_read_from_it(stage: int, ranks: int, more: dict[str, Any], tmp_path: Path) -> None:
    write_run(tmp_path / "run", replace(one_after_another(stage, ranks), **more), rest=0.5)
    found = read_speed(tmp_path / "run", LINK, TRUE)
    assert found.rate == pytest.approx(3e12, rel=1e-6)
    assert found.bandwidth == pytest.approx(20e9, rel=1e-6)
    assert (found.rest, found.ranks) == (pytest.approx(0.5, rel=1e-6), 4)


def test_another_recipe_is_planned_at_the_speed_of_the_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", workload(1, ranks=1))
    speed = read_speed(tmp_path / "run", LINK, TRUE)
    assert speed.bandwidth is not None
    other = workload(0, ranks=1, micro_batch=2, checkpointing="none")
    known = step_time(other, Cluster(TRUE, 1, 1, LINK), share=1.0)
    device = replace(TRUE, rates=dict.fromkeys(TRUE.rates, 6e12), bandwidth=speed.bandwidth)
    found = step_time(other, Cluster(device, 1, 1, LINK), share=speed.rate / 6e12, rest=speed.rest)
    assert found.seconds == pytest.approx(known.seconds, rel=1e-6)


@pytest.mark.parametrize(("reached", "share", "peak"), [(2e11, 0.5, 4e11), (6e11, 1.0, 6e11)])
def test_what_a_run_reached_is_no_more_than_its_machine(reached: float, share: float, peak: float) -> None:
    """A CPU's rate is measured in a moment, which others may have used."""
    work = workload(1, device="cpu", ranks=2)
    begun = Plan(work, Cluster(cpu(4e11, "now"), 1, 2, 1e9), Room(10**12, is_cpu=True), steps=10, keep_last=2)
    found = at_speed(begun, Speed(reached, 1e10, 0.0, ranks=2), "as a run reached")
    assert (found.share, found.cluster.hardware.rates["bf16"]) == (share, peak)
    assert found.time.forward == pytest.approx(effort_of(work).forward_flops / reached)


def test_an_update_elsewhere_tells_nothing_of_the_memory(tmp_path: Path) -> None:
    work = workload(2, zero={"offloads_optimizer": True})
    write_run(tmp_path / "run", work)
    assert read_speed(tmp_path / "run", LINK, TRUE).bandwidth is None


def test_time_is_never_taken_away_altogether(tmp_path: Path) -> None:
    """A link that is slower in the plan than in truth."""
    write_run(tmp_path / "run", one_after_another(1, ranks=4))
    found = read_speed(tmp_path / "run", 1.0, TRUE)
    assert isinstance(found, Speed)
    assert 0 < found.rate < float("inf")
    assert found.bandwidth is not None
    assert 0 < found.bandwidth < float("inf")


def test_a_run_that_does_not_tell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not tell what a step takes .FileNotFoundError.: give the run.dir"):
        read_speed(tmp_path / "none", LINK, TRUE)
    write_run(tmp_path / "short", workload(), lines=4)
    with pytest.raises(ConfigError, match="4 logged steps, 5 are needed .*log.every_steps=1"):
        read_speed(tmp_path / "short", LINK, TRUE)
    write_run(tmp_path / "old", workload(), effort={"forward_flops": 1.0})
    with pytest.raises(ConfigError, match="TypeError"):
        read_speed(tmp_path / "old", LINK, TRUE)
    with pytest.raises(
        ConfigError, match=r"metrics.jsonl cannot be read \(No such file or directory\): give the run.dir"
    ):
        write_run(tmp_path / "empty", workload())
        (tmp_path / "empty" / "metrics.jsonl").unlink()
        read_speed(tmp_path / "empty", LINK, TRUE)
    for value in ("x", float("inf"), -1.0, None):
        write_run(
            tmp_path / f"odd {value}", workload(), effort=asdict(effort_of(workload())) | {"forward_flops": value}
        )
        with pytest.raises(ConfigError, match="does not tell what a step takes"):
            read_speed(tmp_path / f"odd {value}", LINK, TRUE)
    write_run(tmp_path / "still", workload())
    line = dict.fromkeys(("forward_seconds", "backward_seconds", "optimizer_seconds", "data_wait_seconds"), 0.0)
    (tmp_path / "still" / "metrics.jsonl").write_text((json.dumps(line | {"step_seconds": 1.0}) + "\n") * 9)
    with pytest.raises(ConfigError, match="took no time"):
        read_speed(tmp_path / "still", LINK, TRUE)


def test_lines_that_were_torn_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run", workload(1, ranks=1))
    known = read_speed(tmp_path / "run", LINK, TRUE)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step_seconds": 0.0}\n{"step"')
    assert read_speed(tmp_path / "run", LINK, TRUE) == known


def test_a_run_on_other_devices_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run", workload(), device="NVIDIA H100 80GB HBM3")
    read_speed(tmp_path / "run", LINK, hardware("h100"))
    with pytest.raises(ConfigError, match="trained on NVIDIA H100 80GB HBM3, which is no h200: give --gpu h100, or"):
        read_speed(tmp_path / "run", LINK, hardware("h200"))
    write_run(tmp_path / "cpu", workload(), device="cpu")
    with pytest.raises(ConfigError, match="trained on cpu, which is no h100: give --gpu cpu, or a run"):
        read_speed(tmp_path / "cpu", LINK, hardware("h100"))
