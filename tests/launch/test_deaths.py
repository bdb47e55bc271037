"""A rank that dies, stops or fails: it is named on the terminal, and no process stays."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.errors import EXIT_USER
from scaletrain.runtime.exit_report import EXIT_FILE, read_exits, settle_end
from scaletrain.runtime.ports import free_port
from tests.conftest import ROOT, Done, pretrain, run_program, write_recipe
from tests.launch.test_stops import ENDLESS, values

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
DEEPSPEED = ("-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus=2", f"--master_port={free_port()}")


class Launch:
    """Two ranks that train for ever; `output` holds what the terminal showed."""

    def __init__(self, recipe: Path, run: Path, launcher: tuple[str, ...], *settings: str) -> None:
        self.recipe, self.output = recipe, run.parent / "output.txt"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, "launch/pretrain.py", str(recipe), *ENDLESS, *settings],
                cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (run / "metrics.jsonl").is_file() or len(values(run, "loss")) < 3:
            assert self.process.poll() is None, (self.process.returncode, self.output.read_text())
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)
        time.sleep(1.5)  # ranks tell their phase once a second

    def ranks(self) -> dict[int, int]:
        """The process number of each living rank of this recipe."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                environment = (folder / "environ").read_bytes()
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            rank = re.search(rb"(?:^|\0)RANK=(\d+)", environment)
            if rank and fields[0] != "Z" and os.fsencode(self.recipe) in command:
                found[int(rank[1])] = int(folder.name)
        return found

    def line(self, seconds: float) -> str:
        """The one line of the lifeline, waited for."""
        deadline = time.monotonic() + seconds
        while not (lines := re.findall(r"^.*error: (?:rank \d|no progress).*$", self.output.read_text(), re.M)):
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)
        return lines[0]

    def check_ended(self, seconds: float) -> None:
        assert self.process.wait(seconds) != 0
        deadline = time.monotonic() + 5
        while left := self.ranks():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        text = self.output.read_text()
        assert len(re.findall("error: (?:rank|no progress)", text)) == 1, text
        assert "this is a defect" not in text

    def __enter__(self) -> "Launch":
        return self

    def __exit__(self, *_: object) -> None:
        for process in [self.process.pid, *self.ranks().values()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


@pytest.mark.parametrize(("rank", "launcher"), [(1, TORCHRUN), (0, TORCHRUN), (1, DEEPSPEED)])
def test_a_killed_rank_is_named_and_ends_the_others(
    rank: int, launcher: tuple[str, ...], dataset: Dataset, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    with Launch(recipe, run, launcher) as launch:
        process = launch.ranks()[rank]
        os.kill(process, signal.SIGKILL)
        line = launch.line(10)
        assert re.search(
            rf"error: rank {rank} on \S+ \(process {process}\) died in or after phase \w+ of step \d+; ", line
        )
        assert f"{run}/logs/rank-{rank:05d}.log" in line
        assert "dmesg" in line
        launch.check_ended(10)
    assert line in (run / "logs" / f"rank-{1 - rank:05d}.log").read_text()


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_stopped_rank_is_named_with_the_others_stacks_and_no_process_stays(
    rank: int, dataset: Dataset, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    with Launch(recipe, run, TORCHRUN, "guard.hang_seconds=5") as launch:
        process = launch.ranks()[rank]
        os.kill(process, signal.SIGSTOP)
        line = launch.line(15)
        assert f"guard.hang_seconds=5: nothing is heard of rank {rank} on " in line
        assert f"(process {process}), last heard in phase " in line
        launch.check_ended(15)
    stacks = (run / "logs" / f"stacks-rank-{1 - rank:05d}.txt").read_text()
    assert "trainer.py" in stacks


def run_changed(
    folder: Path, program: str, recipe: Path, *settings: str, launcher: tuple[str, ...] = (), **env: str
) -> Done:
    """Runs a program of a rank that changes the engine before it trains."""
    started = folder / "started.py"
    started.write_text(program)
    return run_program(*launcher, started, recipe, *settings, seconds=60, PYTHONPATH=str(ROOT), **env)


def test_a_rank_that_raises_is_named_with_its_error(dataset: Dataset, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    program = (
        "import os, sys\n"
        "from scaletrain.engine.engine import Engine\n"
        "from scaletrain.commands.train import main\n"
        "from scaletrain.runtime.log import leave\n"
        "train_step = Engine.train_step\n"
        "def broken(self, batches, lr, weight):\n"
        "    if os.environ['RANK'] == '1' and lr == 0.01:\n"
        "        raise RuntimeError('the device fell off the bus\\nsecond line')\n"
        "    return train_step(self, batches, lr, weight)\n"
        "Engine.train_step = broken\n"
        "leave(main('pretrain', sys.argv[1:]))\n"
    )
    done = run_changed(tmp_path, program, recipe, launcher=TORCHRUN)
    assert done.code == 1
    told = re.findall(r"error: (rank 1 on .* failed in phase exchange of step \d+: .*)", done.err)
    assert len(told) == 1
    assert "RuntimeError: the device fell off the bus; the traceback is in its log" in told[0]
    assert "this is a defect" not in done.err
    assert "in broken" in (run / "logs" / "rank-00001.log").read_text()


FULL = """
import errno, os, sys
from scaletrain.engine import trainer
from scaletrain.commands.train import main
from scaletrain.runtime.exit_report import report_exit
from scaletrain.runtime.log import leave
lr_at = trainer.lr_at
def broken(step, *rest):
    if step == 3 and os.environ['RANK'] in sys.argv[-1]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/local/cache')
    return lr_at(step, *rest)
trainer.lr_at = broken
leave(report_exit(main('pretrain', sys.argv[1:-1])))
"""


def test_a_full_disk_of_one_rank_alone_is_told_of_that_rank_and_is_worth_a_restart(
    dataset: Dataset, tmp_path: Path
) -> None:
    recipe, exits = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "exits"
    done = run_changed(tmp_path, FULL, recipe, "1", launcher=TORCHRUN, **{EXIT_FILE: str(exits)})
    told = re.findall("error: (?:rank|/).*", done.err)
    assert len(told) == 1, done.err
    assert re.match(r"error: rank 1 on \S+ \(process \d+\) failed in phase exchange of step 4: ", told[0])
    assert ": /local/cache: No space left on device: free space there and run the same command again; " in told[0]
    assert settle_end(done.code, read_exits(exits), is_finished=False) is None


def test_a_full_disk_of_all_ranks_is_told_once_and_is_the_users(dataset: Dataset, tmp_path: Path) -> None:
    recipe, exits = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "exits"
    done = run_changed(tmp_path, FULL, recipe, "01", launcher=TORCHRUN, **{EXIT_FILE: str(exits)})
    assert re.findall("error: (?:rank|/).*", done.err) == [
        "error: /local/cache: No space left on device: free space there and run the same command again; it goes on "
        "from the last checkpoint"
    ]
    assert settle_end(done.code, read_exits(exits), is_finished=False) == EXIT_USER


def test_one_rank_alone_that_hangs_is_ended(dataset: Dataset, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    program = (
        "import sys, time\n"
        "from scaletrain.engine.engine import Engine\n"
        "from scaletrain.commands.train import main\n"
        "Engine.train_step = lambda *arguments: time.sleep(60)\n"
        "sys.exit(main('pretrain', sys.argv[1:]))\n"
    )
    done = run_changed(tmp_path, program, recipe, "guard.hang_seconds=4")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert re.search(r"guard.hang_seconds=4: rank 0 on .* waits in phase exchange of step 1 for 4 s", line)
    assert "started.py" in (run / "logs" / "stacks-rank-00000.txt").read_text()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_ends_by_itself_says_nothing_of_it(ranks: int, dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = pretrain(recipe, "guard.hang_seconds=20", ranks=ranks, launcher="torchrun")
    assert (done.code, "error" in done.err, "lifeline" in done.err) == (0, False, False), done.err
    logs = tmp_path / "run" / "logs"
    assert not list(logs.glob("stacks-*"))
    assert not any("error: " in log.read_text() for log in logs.glob("rank-*.log"))
