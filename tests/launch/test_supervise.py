"""`scaletrain supervise`: a run that dies is started again, and only such a run."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from scaletrain.config.strict_yaml import parse_yaml
from scaletrain.data.shards import Dataset
from scaletrain.runtime.exit_report import EXIT_FILE
from scaletrain.runtime.locks import locked
from scaletrain.runtime.processes import own_processes
from scaletrain.track.sinks import read_lines
from tests.conftest import ROOT, Done, pretrain, run_program, scaletrain, write_recipe

SUPERVISE = (sys.executable, "-c", "from scaletrain.cli import main; main()", "supervise")
ENDLESS = ("train.max_steps=100000", "checkpoint.every_steps=null", "evaluate.every_steps=null")
PATIENCE = 120.0


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """What a test starts; ended with all its launches, if the test fails before it ends by itself."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def start(started: list[subprocess.Popen[str]], *arguments: str | Path) -> subprocess.Popen[str]:
    command = [*SUPERVISE, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(process)
    return process


def finish(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate(timeout=PATIENCE)
    return Done(process.returncode, out, err)


def supervise(started: list[subprocess.Popen[str]], *arguments: str | Path) -> Done:
    return finish(start(started, *arguments))


def shell(script: str, *arguments: str) -> str:
    """A --launch template that runs `script`; the program and its arguments follow in $@."""
    return shlex.join(["bash", "-c", script, "bash", *arguments])


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def losses(run: Path) -> list[tuple[int, float]]:
    path = run / "metrics.jsonl"
    return [(line["step"], line["loss"]) for line in read_lines(path) if "loss" in line] if path.is_file() else []


def events(run: Path, name: str) -> list[dict[str, object]]:
    return [line for line in read_lines(run / "events.jsonl") if line["event"] == name]


def living(recipe: Path, *variables: str) -> list[int]:
    """Processes of supervised launches of this recipe that were started with these variables."""
    found = []
    for folder in own_processes():
        try:
            words, env = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        values = env.decode(errors="replace").split("\0")
        if os.fsencode(recipe) in words and EXIT_FILE in env.decode(errors="replace") and set(variables) <= set(values):
            found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_a_rank_killed_twice_costs_nothing_but_the_time(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    settings = ["train.max_steps=240", "evaluate.every_steps=null", "train.max_restarts=1"]
    whole = write_recipe(tmp_path, dataset, tmp_path / "whole")
    done = pretrain(whole, *settings, ranks=2, launcher="torchrun")
    assert done.code == 0, done.err
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    process = start(started, recipe, *settings, "--ranks", "2")
    for number, step in enumerate((30, 90), start=1):
        wait_for(lambda step=step: (losses(run) or [(0, 0)])[-1][0] >= step, process)
        (rank,) = living(recipe, "RANK=1", "LOCAL_RANK=1")
        os.kill(rank, signal.SIGKILL)
        wait_for(lambda number=number: len(events(run, "restart")) == number, process)
    done = finish(process)
    assert done.code == 0, done.err
    assert losses(run) == losses(tmp_path / "whole")
    # Each launch saved new steps, so the count begins anew and one restart in a row is enough.
    assert done.out.count("restart 1 of 1 in 1 s on 2 ranks; it goes on from step ") == 2
    assert all("rank 1 on " in str(event["cause"]) for event in events(run, "restart")), events(run, "restart")
    assert done.out.count("done    240 steps") == 1
    audited = scaletrain("audit", run)
    assert audited.code == 0, audited.err
    assert "proven: step 240" in audited.out


def test_ranks_that_outlive_a_killed_launcher_save_and_are_started_again(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    settings = ["train.max_steps=200", "checkpoint.every_steps=null", "evaluate.every_steps=null"]
    process = start(started, recipe, *settings, "--launch", shell('setsid "$@" & wait -n', sys.executable))
    wait_for(lambda: len(losses(run)) >= 20, process)
    launcher = min(living(recipe))
    os.kill(launcher, signal.SIGKILL)
    done = finish(process)
    assert done.code == 0, done.err
    (restart,) = events(run, "restart")
    assert (restart["cause"], restart["number"]) == ("ended by SIGKILL", 1)
    assert int(str(restart["step"])) >= 20, "nothing was lost"
    assert "ended   what the launch had left, processes: 1" in done.out
    assert [step for step, _ in losses(run)] == list(range(1, 201))


def test_a_run_that_saves_no_new_step_is_given_up_with_its_last_error(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    launch = shell(f"echo started >> {tmp_path}/starts.log; echo 'error: the disk is gone' >&2; kill -9 $$")
    done = supervise(started, recipe, "train.max_restarts=2", "--launch", launch)
    assert done.code == 1
    assert done.out.splitlines() == [
        "died    before a step was logged: the disk is gone; restart 1 of 2 in 1 s on 1 rank; no step is saved yet",
        "died    before a step was logged: the disk is gone; restart 2 of 2 in 2 s on 1 rank; no step is saved yet",
    ]
    assert done.err.splitlines() == [
        *["error: the disk is gone"] * 3,
        "error: gave up before a step was logged: 3 launches in a row saved no new step (train.max_restarts=2); the "
        "last one: the disk is gone; no step is saved yet",
    ]
    assert (tmp_path / "starts.log").read_text().count("started") == 3
    assert [event["number"] for event in events(run, "restart")] == [1, 2]


def test_a_fault_of_the_input_that_torchrun_hides_is_not_tried_again(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = supervise(started, recipe, f"data.path={tmp_path / 'nowhere'}", "--ranks", "2")
    assert done.code == 2, done.err
    assert [line for line in done.err.splitlines() if line.startswith("error: ")] == [
        line for line in done.err.splitlines() if f"{tmp_path / 'nowhere'}" in line and line.startswith("error: ")
    ]
    assert "restart" not in done.out
    assert living(recipe) == []


def test_a_recipe_at_fault_is_told_before_anything_starts(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = supervise(started, recipe, "--ranks", "3", "--launch", shell(f"touch {tmp_path}/started"))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: train.global_batch_size=8 is not a multiple of 3 ranks")
    assert not (tmp_path / "started").exists()


def test_sigterm_to_the_supervisor_saves_on_all_ranks_and_ends_with_75(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    process = start(started, recipe, *ENDLESS, "--ranks", "2")
    wait_for(lambda: len(losses(run)) >= 3, process)
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.code == 75, done.err
    (stop,) = events(run, "stop")
    assert (run / "checkpoints" / f"step-{stop['step']:08d}" / "manifest.json").is_file()
    assert "run the same command to go on" in done.out
    assert done.out.rstrip().endswith(f"stopped on request; it goes on from step {stop['step']}, by the same command")
    assert not (run / "stop").exists()
    assert living(recipe) == []


def test_a_signal_while_the_program_still_starts_is_not_lost(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    process = start(started, recipe, *ENDLESS, "--launch", shell('sleep 1; exec "$@"', sys.executable))
    wait_for(lambda: living(recipe) != [], process)  # the program's clock starts later: the first stop file is too old
    process.send_signal(signal.SIGUSR1)
    done = finish(process)
    assert done.code == 75, done.err
    assert len(events(run, "stop")) == 1
    assert not (run / "stop").exists()


def test_a_second_signal_ends_everything_at_once(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    process = start(started, recipe, "--launch", shell("trap '' TERM; setsid sleep 1000 & wait; wait"))
    wait_for(lambda: living(recipe) != [], process)
    process.send_signal(signal.SIGTERM)
    time.sleep(3.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 128 + signal.SIGTERM
    assert living(recipe) == []


def test_two_fruitless_deaths_in_a_row_lead_to_fewer_ranks(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    launch = shell('[ "$1" = 1 ] || exit 7; shift; exec "$@"', "{ranks}", sys.executable)
    done = supervise(started, recipe, "train.min_ranks=1", "--ranks", "2", "--launch", launch)
    assert done.code == 0, done.err
    assert done.out.splitlines()[:3] == [
        "died    before a step was logged: ended with exit code 7; restart 1 of 3 in 1 s on 2 ranks; no step is saved "
        "yet",
        "ranks   1 from now on, micro-batch 4: 2 launches in a row on 2 ranks saved no new step",
        "died    before a step was logged: ended with exit code 7; restart 2 of 3 in 2 s on 1 rank; no step is saved "
        "yet",
    ]
    settled = parse_yaml((run / "recipe.yaml").read_text(), "recipe.yaml")
    assert settled["train"]["micro_batch_size"] == 4, "a rank holds no more than it held on two"
    assert [step for step, _ in losses(run)] == list(range(1, 13))


def test_a_run_that_goes_back_is_not_without_progress(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    root = run / "checkpoints"
    for step in (4, 8, 12):
        (root / f"step-{step:08d}").mkdir(parents=True)
        (root / f"step-{step:08d}" / "manifest.json").touch()
    launch = shell(
        f"cd {root}; newest=$(ls -d step-* | tail -1); "
        f'[ $newest = step-00000004 ] && {{ echo \'{{"event": "end"}}\' >> {run}/events.jsonl; exit 0; }}; '
        f'mv $newest rolled-back-$newest; echo \'{{"event": "roll_back"}}\' >> {run}/events.jsonl; exit 7'
    )
    done = supervise(started, recipe, "train.max_restarts=1", "--launch", launch)
    assert done.code == 0, done.err
    assert [line.partition("restart ")[2] for line in done.out.splitlines()] == [
        "1 of 1 in 1 s on 1 rank; it goes on from step 8",
        "1 of 1 in 1 s on 1 rank; it goes on from step 4",
    ]


def test_a_restart_waits_for_what_still_holds_the_run(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    run.mkdir()
    keep = f"setsid env -i $(which flock) {run}/.lock $(which sleep) 5 > /dev/null 2>&1"  # not found as of the launch
    hold = f"echo process 7 on here > {run}/.lock; {keep} & sleep 1; exit 1"
    train = f'flock -n {run}/.lock true || exit 2; echo \'{{"event": "end"}}\' > {run}/events.jsonl'
    done = supervise(started, recipe, "--launch", shell(f"if [ ! -e {run}/.lock ]; then {hold}; fi; {train}"))
    assert done.code == 0, done.err
    died, waited = done.out.splitlines()
    assert died.endswith("restart 1 of 3 in 1 s on 1 rank; no step is saved yet")
    assert waited == f"wait    process 7 on here still holds {run}: the restart waits for it, 600 s at most"


def test_a_holder_that_does_not_end_ends_the_supervisor(dataset: Dataset, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    run.mkdir()
    impatient = "from scaletrain.commands import supervise; supervise._HELD_SECONDS = 0.5; "
    with locked(run / ".lock") as handle:
        assert handle is not None
        os.write(handle, b"process 7 on here\n")
        done = run_program("-c", impatient + SUPERVISE[2], "supervise", recipe, "--launch", shell("exit 3"))
    assert done.code == 1
    assert done.err == (
        f"error: gave up before a step was logged: process 7 on here holds {run} for 0.5 s: end it, or restart its "
        "node if it cannot be killed; the last launch: ended with exit code 3; no step is saved yet\n"
    )


def test_a_stop_file_that_came_before_the_restart_is_obeyed(
    dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    done = supervise(started, recipe, "--launch", shell(f"mkdir -p {run}; touch {run}/stop; exit 1"))
    assert done.code == 75, done.err
    assert done.out.splitlines()[-1] == "stopped before restart 1; no step is saved yet"
    assert not (run / "stop").exists()


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGHUP])
def test_a_launch_that_dies_of_a_stop_is_not_started_again(
    asked: signal.Signals, dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    if signal.getsignal(asked) == signal.SIG_IGN:  # nohup pytest: it would be inherited
        signal.signal(asked, signal.SIG_DFL)
    process = start(started, recipe, "--launch", shell(f"until [ -e {run}/stop ]; do sleep 0.05; done; exit 3"))
    wait_for(lambda: living(recipe) != [], process)
    process.send_signal(asked)
    done = finish(process)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"error: the run was asked to stop ({asked.name}) and died: ended with exit code 3; no step is saved yet\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.min_ranks=3", "--ranks", "2"], "train.min_ranks=3 is more than the 2 ranks to start with: lower it"),
        (["--launch", "bash -c 'x"], "cannot be split into words (No closing quotation): quote it as for a shell"),
        (
            ["--launch", " "],
            "--launch is empty: give a command such as 'deepspeed --num_gpus {ranks}', or leave it out",
        ),
        (
            ["train.min_ranks=1", "--ranks", "2", "--launch", "deepspeed"],
            "--launch 'deepspeed' has no {ranks}, so train.min_ranks=1 cannot be followed: add it",
        ),
        (
            ["--launch", "/nowhere/srun"],
            "/nowhere/srun cannot be started (No such file or directory): give --launch a program that is on this "
            "machine",
        ),
    ],
)
def test_options_that_cannot_be_followed_are_told(
    arguments: Sequence[str], message: str, dataset: Dataset, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    done = supervise(started, write_recipe(tmp_path, dataset, tmp_path / "run"), *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(f"{message}\n")
    assert done.err.startswith("error: ")
