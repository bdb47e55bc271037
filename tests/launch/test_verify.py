"""`scaletrain verify` as a whole program: it passes here, finds planted faults and names them, refuses bad options."""

import sys
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.engine.checkpoint import read_manifest
from scaletrain.track.sinks import read_lines
from tests.conftest import Done, run_program, write_recipe

CLI = ("-c", "from scaletrain.cli import main; main()")
# Runs the script that verify appends, with a fault planted in the launches of the run "resumed".
WRAPPER = """\
import runpy, sys
ranks, script, *arguments = sys.argv[1:]
sys.argv = [script, *arguments]
if any(argument.endswith("/resumed") for argument in arguments):
{fault}
runpy.run_path(script, run_name="__main__")
"""
FAULTS = {
    "weight": """\
    from scaletrain.engine import fragments
    from scaletrain.engine.engine import Engine
    load = Engine.load
    def load_and_perturb(self, *given):
        loaded = load(self, *given)
        fragments.values(self._engine, fragments.pieces(self._engine, 1)[0], "weight").mul_(1.01)
        fragments.refresh(self._engine, 1)
        return loaded
    Engine.load = load_and_perturb""",
    "moments": """\
    from scaletrain.engine import digest
    from scaletrain.engine.state_files import StateFiles
    digest.check = lambda *given: None
    fill = StateFiles.fill
    def fill_and_perturb(self, kind, name, start, values):
        fill(self, kind, name, start, values)
        if kind == "exp_avg":
            values.mul_(1.0001)
    StateFiles.fill = fill_and_perturb""",
    "seed": '    sys.argv.append("seed=5")',
}


EQUAL = "losses equal, gradient norms equal, samples equal, state equal"


def verify(*arguments: str | Path) -> Done:
    return run_program(*CLI, "verify", *arguments)


def lines(done: Done, word: str) -> list[str]:
    return [line for line in done.out.splitlines() if line.startswith(word)]


def test_a_healthy_machine_passes_on_two_ranks_and_on_one(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "runs" / "mine")
    done = verify(recipe, "--ranks", "2,1", "--steps", "2", "--deepspeed_config", "ds_configs/zero2.json")
    assert done.code == 0, done.out + done.err
    repeat, resume, reshard, verdict = done.out.splitlines()
    assert repeat == f"repeat  2 ranks, steps 1 to 2 trained twice: {EQUAL}"
    loaded = reshard.removeprefix("reshard 1 rank after 2, steps 3 to 4: ").partition(", samples")[0]
    assert loaded.startswith("state loaded as saved (weight ")
    assert loaded.endswith(", moments, counters)")
    assert resume == f"resume  2 ranks, steps 3 to 4 after a stop: {loaded}, {EQUAL}"
    assert "samples equal, losses within 0.0001 (fp32): largest relative difference " in reshard
    assert ", gradient norms within 0.001 (fp32): largest relative difference " in reshard
    assert verdict == "pass"
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=() if name == "moments" else pytest.mark.slow) for name in FAULTS]
)
def test_a_planted_fault_is_found_and_named(fault: str, dataset: Dataset, tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text(WRAPPER.format(fault=FAULTS[fault]))
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = verify(
        recipe,
        "--ranks",
        "1",
        "--steps=2",
        "--launch",
        f"{sys.executable} {wrapper} {{ranks}}",
        "--keep",
        tmp_path / "kept",
    )
    assert done.code == 1, done.out + done.err
    (repeat,), (resume,) = lines(done, "repeat"), lines(done, "resume")
    run = tmp_path / "kept" / "resumed"
    (resumed,) = [event for event in read_lines(run / "events.jsonl") if event["event"] == "resume"]
    saved = read_manifest(run / "checkpoints" / "step-00000002")["digest"]
    if fault == "seed":
        assert "losses differ at step 1: " in repeat
        assert "samples differ at step 2: " in repeat
    else:
        assert repeat.endswith(EQUAL)
        assert "samples equal, state differs at step 4: weight " in resume
    if fault == "moments":
        told = f"exp_avg {saved['exp_avg']} and {resumed['digest']['exp_avg']}"
        assert f"after a stop: state loaded is not as saved at step 2: {told}, losses " in resume
    else:
        assert resumed["digest"] == saved
        assert ": state loaded as saved (weight " in resume
    if fault == "weight":
        assert "losses differ at step 3: " in resume
        assert "gradient norms differ at step 3: " in resume
    assert done.out.endswith(f"kept    {tmp_path / 'kept'}\ndiffers\n")


def test_a_launch_that_fails_shows_its_last_error_and_its_command(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = verify(recipe, "data.path=/nowhere", "--ranks", "1")
    assert done.code == 1
    assert done.out.startswith(
        "failed  training did not come to step 8, it ended after its start: error: dataset /nowhere"
    )
    assert f"launch/pretrain.py {recipe} data.path=/nowhere train.max_steps=8" in done.out
    assert next(tmp_path.glob("verify-run-*")).is_dir()
    assert "pass" not in done.out


def test_a_launcher_that_is_missing_or_starts_other_ranks_is_told(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = verify(recipe, "--ranks", "2", "--launch", "no-such-launcher -n {ranks}")
    assert (done.code, done.out.splitlines()[0]) == (1, "failed  no-such-launcher: No such file or directory")
    done = verify(recipe, "--ranks", "2", "--steps", "1", "--launch", f"env N={{ranks}} {sys.executable}")
    assert done.code == 1
    assert "failed  the launch had 1 rank, not 2: --launch must start {ranks}" in done.out


FORGET = """\
    import pathlib, shutil
    (run,) = [argument.removeprefix("run.dir=") for argument in arguments if argument.endswith("/resumed")]
    for saved in pathlib.Path(run).glob("checkpoints/step-*"):
        shutil.rmtree(saved)"""


@pytest.mark.slow
def test_a_launch_that_starts_anew_or_ends_with_another_code_is_told(dataset: Dataset, tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text(WRAPPER.format(fault=FORGET))
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = verify(recipe, "--ranks", "1", "--steps=1", "--launch", f"{sys.executable} {wrapper} {{ranks}}")
    assert done.code == 1
    assert "failed  the launch did not resume from step 1" in done.out
    done = verify(recipe, "--ranks=1", "--steps=1", "--launch", f"sh -c '{sys.executable} \"$@\"; exit 3' {{ranks}}")
    assert done.code == 1
    assert "failed  exit code 3: " in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "3"], "train.global_batch_size=8 is not a multiple of 3 ranks: use 6 or 9"),
        (["--ranks", "2,0"], "--ranks 2,0 is not a list of different numbers above 0: write it like 8,4"),
        (["--ranks", "2,2"], "--ranks 2,2 is not a list of different numbers"),
        (["--ranks", "two"], "--ranks two is not a list of different numbers"),
        (["--ranks", "1", "--launch", "srun python"], "--launch 'srun python' has no {ranks}: write it where"),
        (["--ranks", "1", "--launch", "srun '{ranks}"], "cannot be split into words (No closing quotation): close"),
        (["--ranks", "1", "--keep", "KEPT"], "is not an empty folder: choose a new one"),
        (["--ranks", "1", "train.max_step=5"], "train.max_step=5 is unknown: did you mean train.max_steps?"),
        (["--ranks", "1", "--deepspeed_config", "no.json"], "deepspeed=no.json is not a file"),
    ],
)
def test_wrong_options_are_refused_before_any_launch(
    arguments: list[str], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "full" / "x").mkdir(parents=True)
    recipe = write_recipe(tmp_path, dataset, tmp_path / "runs" / "mine")
    given = [str(tmp_path / "full") if argument == "KEPT" else argument for argument in arguments]
    done = verify(recipe, *given)
    assert done.code == 2, done.out + done.err
    assert message in done.err
    assert not (tmp_path / "runs").exists()


def test_a_copy_without_the_repository_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    moved = "import scaletrain.commands.verify as v, pathlib, os; v.SOURCE_TREE = pathlib.Path('/nowhere'); "
    moved += f"os.chdir({str(tmp_path)!r}); from scaletrain.cli import main; main()"
    done = run_program("-c", moved, "verify", recipe)
    assert done.code == 2
    assert "run this in a clone of the repository" in done.err
