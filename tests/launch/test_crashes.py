"""SIGKILL of a rank, of all ranks or of the launcher at random moments: no work is lost, and not a bit changes.

SCALETRAIN_KILLS is the number of kills of each of the eight runs (25: 200 in all, about half an hour on two cores),
SCALETRAIN_KILL_SEED draws other moments. `-k "stage-1 and behind"` picks a run.
"""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.engine import checkpoint
from scaletrain.track.sinks import read_lines
from tests.conftest import scaletrain, write_recipe
from tests.launches import Launch, begins, broken_promises, checkpoint_names, last_step, logged, send, wait_for

KILLS = int(os.environ.get("SCALETRAIN_KILLS", "25"))
SEED = int(os.environ.get("SCALETRAIN_KILL_SEED", "0"))
STEPS = 24 * KILLS
WHOM = {"rank": 50, "all ranks": 25, "launcher": 25}
AIM = {"saving": 50, "commit": 20, "training": 20, "start": 10}
END_SECONDS = 60  # torchrun sends SIGTERM, and SIGKILL 30 s later
ORPHAN_SECONDS = 30  # ranks without a launcher notice it as they meet or at their next step, save and end


def settings(stage: int, background: str) -> list[str]:
    return [
        f"deepspeed=ds_configs/zero{stage}.json", f"checkpoint.background={background}", f"train.max_steps={STEPS}",
        "checkpoint.every_steps=5", "evaluate.every_steps=25", "train.precision=bf16", "optim.lr=0.002",
    ]  # fmt: skip


def wait_until(aim: str, launch: Launch, run: Path, reach: int, draw: random.Random) -> None:
    """Returns at the moment that `aim` names, after step `reach`; at once when the launch ends before."""
    if aim == "start":
        wait_for(launch.is_over, draw.uniform(1.0, 4.5), 0.05)
        return
    before = begins(run)
    assert wait_for(lambda: begins(run) > before or launch.agent.poll() is not None, 90), launch.said()
    reach = max(reach, last_step(run) + 1)  # the lines of later steps are dropped before a resume is told
    wait_for(lambda: last_step(run) >= reach or launch.agent.poll() is not None, 120)
    if aim == "training":
        time.sleep(draw.uniform(0, 0.1))
    elif aim == "saving":
        wait_for(lambda: any(name.startswith(".unfinished-") for name in checkpoint_names(run)), 5, 0.0005)
        time.sleep(draw.uniform(0, 0.02))
    else:  # the rename; then `latest` is replaced and the oldest checkpoint removed
        names = {name for name in checkpoint_names(run) if name.startswith("step-")}
        wait_for(lambda: any(n.startswith("step-") and n not in names for n in checkpoint_names(run)), 5, 0.0002)
        time.sleep(draw.choice([0, 0, 0.001, 0.003]))


def kill(whom: str, launch: Launch, draw: random.Random) -> None:
    ranks = list(launch.ranks().values())
    draw.shuffle(ranks)
    victims = {"rank": ranks[:1], "all ranks": ranks, "launcher": [launch.agent.pid]}[whom]
    for process in victims or [launch.agent.pid]:  # no rank yet
        send(process, signal.SIGKILL)


def instant(launch: Launch, run: Path, before: int) -> str:
    """What the run is doing, from what its folder shows."""
    names = checkpoint_names(run)
    if any(name.startswith("latest.") for name in names):
        return "replacing latest"
    if any(name.startswith(".unfinished-") for name in names) and begins(run) > before:
        return "saving"
    return "training" if begins(run) > before else "start"


def end(launch: Launch, whom: str) -> float:
    """Waits until no process of the launch is left; how long that took."""
    began = time.monotonic()
    over = launch.wait(ORPHAN_SECONDS if whom == "launcher" else END_SECONDS)
    seconds, left = time.monotonic() - began, list(launch.processes())
    launch.kill_all()
    assert over, f"{left} are still there {seconds:.0f} s after SIGKILL of {whom}\n{launch.said()}"
    return seconds


def crash(launch: Launch, run: Path, number: int, draw: random.Random, counts: Counter[str]) -> bool:
    """One kill, and the promises that hold after it. False: the run had come to its end before."""
    whom = draw.choices(list(WHOM), list(WHOM.values()))[0]
    aim = draw.choices(list(AIM), list(AIM.values()))[0]
    last = STEPS * 4 // 5
    reach, before = draw.randint(last * number // KILLS, last * (number + 1) // KILLS), begins(run)
    wait_until(aim, launch, run, reach, draw)
    if launch.agent.poll() == 0 and last_step(run) == STEPS:  # the machine was too busy to aim: the run is through
        return False
    assert launch.agent.poll() is None, f"ended before kill {number + 1}, after step {last_step(run)}\n{launch.said()}"
    when = instant(launch, run, before)
    kill(whom, launch, draw)
    seconds = end(launch, whom)
    counts[whom] += 1
    counts[when] += 1
    counts[f"{whom}, {when}"] += 1
    left = checkpoint_names(run)
    counts["left an unfinished folder"] += any(name.startswith(".unfinished-") for name in left)
    broken = broken_promises(run)
    assert not broken, f"kill {number + 1} of {whom} ({aim}: {when}) after step {last_step(run)}: {broken}, {left}"
    counts[f"longest end of {whom}, in ms"] = max(counts[f"longest end of {whom}, in ms"], round(1000 * seconds))
    return True


def run_to_the_end(arguments: list[str], log: Path) -> None:
    launch = Launch(2, arguments, log)
    try:
        assert launch.wait(300), launch.said()
    finally:
        launch.kill_all()
    assert launch.agent.returncode == 0, launch.said()


def digests(run: Path) -> dict[str, tuple[int, str]]:
    """Samples and digest of each checkpoint that the events tell of."""
    lines = [line for line in read_lines(run / "events.jsonl") if line.get("event") == "checkpoint"]
    found = {(line["checkpoint"], line["samples_seen"], line["sample_digest"]) for line in lines}
    assert len(found) == len({name for name, _, _ in found}), "a step was saved twice with other samples"
    return {name: (samples, digest) for name, samples, digest in found}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3], ids="stage-{}".format)
@pytest.mark.parametrize("background", ["true", "false"], ids=["behind", "waiting"])
def test_a_run_killed_again_and_again_ends_as_if_never_killed(
    stage: int, background: str, dataset: Dataset, tmp_path: Path
) -> None:
    draw, counts, kills = random.Random(f"{SEED} {stage} {background}"), Counter[str](), 0
    whole = write_recipe(tmp_path, dataset, tmp_path / "whole")
    run_to_the_end([str(whole), *settings(stage, background)], tmp_path / "whole.txt")
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    arguments = [str(recipe), *settings(stage, background)]
    for number in range(KILLS):
        launch = Launch(2, arguments, tmp_path / f"launch-{number}.txt")
        try:
            if not crash(launch, run, number, draw, counts):
                break
            kills += 1
        finally:
            launch.kill_all()
    run_to_the_end(arguments, tmp_path / "last.txt")
    print(f"\nstage {stage}, background {background}: {kills} kills")
    for name in sorted(counts):
        print(f"  {counts[name]:5d}  {name}")
    assert kills > KILLS // 2
    names = ("loss", "grad_norm", "eval_loss", "samples", "skipped_steps")
    assert logged(run, *names) == logged(tmp_path / "whole", *names)
    mine, expected = digests(run), digests(tmp_path / "whole")  # a stop saves at other steps: the audit proves those
    assert {name: mine[name] for name in expected if name in mine}.items() <= expected.items()
    assert len(mine.keys() & expected.keys()) > STEPS // 20
    name = f"step-{STEPS:08d}"
    states = [checkpoint.read_manifest(folder / "checkpoints" / name)["state"] for folder in (run, tmp_path / "whole")]
    assert states[0] == states[1]
    assert not broken_promises(run)
    proven = scaletrain("audit", run)
    assert proven.code == 0, proven.out + proven.err
    assert f"proven: step {STEPS:,}" in proven.out
