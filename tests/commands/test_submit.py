"""A recipe or a sweep becomes a job: what is checked before, what is written, and what is said."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scaletrain.config.load import load_recipe
from scaletrain.config.strict_yaml import parse_yaml
from tests.conftest import ROOT, Done, run_program, scaletrain
from tests.fake_slurm import FakeSlurm

RECIPE = """\
run: {dir: runs/gpt}
data: {path: data, context_length: 32}
model: {preset: llama-tiny}
deepspeed: ds_configs/zero1.json
train: {max_steps: 100, global_batch_size: 1024, precision: bf16}
"""
SWEEP = """\
grid: {optim.lr: [1e-3, 3e-4]}
runs:
  - {name: long, train.max_steps: 200}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe, a sweep and what stands for data."""
    work = tmp_path / "work"
    (work / "data").mkdir(parents=True)
    (work / "recipe.yaml").write_text(RECIPE)
    (work / "sweep.yaml").write_text(SWEEP)
    monkeypatch.chdir(work)
    return work


def submit(*arguments: str) -> Done:
    return scaletrain("submit", "recipe.yaml", *arguments)


def head(script: str) -> str:
    """The part of a script that is ours, without what differs between machines."""
    text, begins, _ = script.partition("\nset -euo pipefail\n")
    assert begins
    text = (
        text.replace(str(Path(sys.executable).parent), "/venv/bin")  # may lie in the clone
        .replace(str(ROOT), "/clone")
        .replace(str(Path.cwd()), "/work")
    )
    return re.sub(r"scaletrain \d[^:]*:", "scaletrain VERSION:", text)


def test_a_dry_run_for_one_cpu_node(folder: Path) -> None:
    done = submit("--time", "90", "--ranks-per-node", "4", "--cpus-per-rank", "8", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert (
        head(done.out)
        == """\
#!/bin/bash
# Written by scaletrain VERSION: scaletrain submit recipe.yaml --time 90 --ranks-per-node 4 --cpus-per-rank 8 --dry-run
#SBATCH --job-name=gpt
#SBATCH --chdir=/work
#SBATCH --output=/work/runs/gpt/submit/0001/%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --time=01:30:00
#SBATCH --signal=USR1@300
#SBATCH --cpus-per-task=8
#SBATCH --requeue

export SCALETRAIN_HOME=/clone
export SCALETRAIN=/venv/bin/scaletrain
export SCALETRAIN_CANCELLED=/work/runs/gpt/submit/0001/cancelled
if [ -e "$SCALETRAIN_CANCELLED" ]; then exit 75; fi # while the job waited or began
set -- /work/runs/gpt/submit/0001/recipe.yaml
"""
    )
    assert not (folder / "runs").exists()


def test_a_dry_run_for_16_nodes(folder: Path) -> None:
    options = "--time 2-0 --nodes 16 --gpus-per-node 8 --mem 0 --partition gpu --account me --qos high"
    more = "--constraint a100&nvlink --exclude n[3,7] --job-name big --signal-seconds 900"
    done = submit(*options.split(), *more.split(), "--dry-run", "run.dir=/shared/my runs/50%")
    assert (done.code, done.err) == (0, "")
    said = shlex.join([*options.split(), *more.split(), "--dry-run", "run.dir=/shared/my runs/50%"])
    assert (
        head(done.out)
        == f"""\
#!/bin/bash
# Written by scaletrain VERSION: scaletrain submit recipe.yaml {said}
#SBATCH --job-name=big
#SBATCH --chdir=/work
#SBATCH --output='/shared/my runs/50%%/submit/0001/%j.log'
#SBATCH --open-mode=append
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=48:00:00
#SBATCH --signal=USR1@900
#SBATCH --mem=0
#SBATCH --partition=gpu
#SBATCH --account=me
#SBATCH --qos=high
#SBATCH --constraint='a100&nvlink'
#SBATCH --exclude='n[3,7]'
#SBATCH --requeue

export SCALETRAIN_HOME=/clone
export SCALETRAIN=/venv/bin/scaletrain
export SCALETRAIN_CANCELLED='/shared/my runs/50%/submit/0001'/cancelled
if [ -e "$SCALETRAIN_CANCELLED" ]; then exit 75; fi # while the job waited or began
set -- '/shared/my runs/50%/submit/0001'/recipe.yaml
"""
    )


def test_a_dry_run_of_a_sweep_on_128_nodes_in_a_container(folder: Path) -> None:
    options = "--time 1:00:00 --nodes 128 --gpus-per-node 4 --array sweep.yaml --max-parallel 2 --container gpt.sif"
    done = submit(*options.split(), "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert (
        head(done.out)
        == f"""\
#!/bin/bash
# Written by scaletrain VERSION: scaletrain submit recipe.yaml {options} --dry-run
# task 1 is lr=0.001
# task 2 is lr=0.0003
# task 3 is long
#SBATCH --job-name=gpt
#SBATCH --chdir=/work
#SBATCH --output=/work/runs/gpt/submit/0001/%A_%a.log
#SBATCH --open-mode=append
#SBATCH --nodes=128
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --time=01:00:00
#SBATCH --signal=USR1@300
#SBATCH --array=1-3%2
#SBATCH --requeue

export SCALETRAIN_HOME=/clone
export SCALETRAIN=/venv/bin/scaletrain
export SCALETRAIN_PYTHON='apptainer exec --nv --bind /work,/clone --pwd /work gpt.sif python'
export SCALETRAIN_CANCELLED=/work/runs/gpt/submit/0001/cancelled-"$SLURM_ARRAY_TASK_ID"
if [ -e "$SCALETRAIN_CANCELLED" ]; then exit 75; fi # while the job waited or began
set -- /work/runs/gpt/submit/0001/recipe-"$SLURM_ARRAY_TASK_ID".yaml
"""
    )


def test_the_body_is_that_of_the_shipped_file(folder: Path) -> None:
    shipped = (ROOT / "slurm" / "pretrain.sbatch").read_text()
    body = shipped[shipped.index("\nset -euo pipefail\n") :]
    assert submit("--time", "90", "--dry-run").out.endswith(body)


@pytest.mark.parametrize("name", ["_HOME", "", "_PYTHON", "_SRUN"])
def test_the_body_reads_what_the_header_tells(name: str) -> None:
    shipped = (ROOT / "slurm" / "pretrain.sbatch").read_text()
    assert f"${{SCALETRAIN{name}:-" in shipped[shipped.index("\nset -euo pipefail\n") :]


def test_a_recipe_is_submitted_and_what_to_watch_is_said(folder: Path, slurm: FakeSlurm) -> None:
    done = submit("--time", "24:00:00", "--nodes", "2", "--gpus-per-node", "8", "optim.lr=0.01")
    assert (done.code, done.err) == (0, "")
    own = folder / "runs" / "gpt" / "submit" / "0001"
    assert done.out == (
        "job     4711: 2 nodes x 8 ranks, micro-batch 64 x 1, 24:00:00 a launch, told to save 300 s before\n"
        f"log     {own}/4711.log\n"
        "watch   scaletrain status runs/gpt\n"
        "stop    scaletrain cancel runs/gpt\n"
    )
    assert slurm.calls("sbatch") == [["--parsable", str(own / "job.sbatch")]]
    assert "\n#SBATCH --nodes=2\n" in (own / "job.sbatch").read_text()
    record = json.loads((own.parent / "job.json").read_text())
    assert (record["job"], record["log"]) == ("4711", "submit/0001/4711.log")


def test_the_job_trains_what_was_submitted_whatever_is_edited_later(folder: Path, slurm: FakeSlurm) -> None:
    (folder / "zero.json").write_text('{"zero_optimization": {"stage": 2}, "gradient_clipping": 0.5}')
    assert submit("--time", "90", "deepspeed=zero.json", "optim.lr=0.01").code == 0
    (folder / "recipe.yaml").write_text("broken")
    (folder / "zero.json").unlink()
    own = folder / "runs" / "gpt" / "submit" / "0001"
    frozen = load_recipe(own / "recipe.yaml")
    assert (frozen.run.dir, frozen.optim.lr, frozen.optim.grad_clip) == ("runs/gpt", 0.01, 0.5)
    assert json.loads(Path(frozen.deepspeed).read_text())["zero_optimization"] == {"stage": 2}


def test_a_sweep_is_an_array_of_checked_runs(folder: Path, slurm: FakeSlurm) -> None:
    done = submit("--time", "90", "--array", "sweep.yaml", "--max-parallel", "2", "seed=7")
    assert (done.code, done.err) == (0, "")
    root = folder / "runs" / "gpt"
    assert "job     4711: 3 runs of 1 node x 1 rank" in done.out
    assert f"log     {root}/submit/0001/4711_*.log\n" in done.out
    runs = [parse_yaml((root / "submit" / "0001" / f"recipe-{task}.yaml").read_text(), "") for task in (1, 2, 3)]
    assert [run["run"]["dir"] for run in runs] == ["runs/gpt/lr=0.001", "runs/gpt/lr=0.0003", "runs/gpt/long"]
    assert [(run["optim"]["lr"], run["train"]["max_steps"]) for run in runs] == [(1e-3, 100), (3e-4, 100), (3e-4, 200)]
    assert {run["seed"] for run in runs} == {7}
    record = json.loads((root / "long" / "submit" / "job.json").read_text())
    assert (record["job"], record["log"]) == ("4711_3", "../submit/0001/4711_3.log")
    assert record["cancelled"] == "../submit/0001/cancelled-3"


def finish(run: Path, step: int) -> None:
    """Leaves what a run that is done leaves."""
    (run / "metrics.jsonl").write_text(json.dumps({"step": step, "loss": 2.5, "tokens_per_second": 10.0}) + "\n")
    with (run / "events.jsonl").open("a") as file:
        for event in ("start", "end"):
            file.write(json.dumps({"event": event, "step": step}) + "\n")


def test_a_sweep_that_is_submitted_again_leaves_out_the_runs_that_are_done(folder: Path, slurm: FakeSlurm) -> None:
    assert submit("--time", "90", "--array", "sweep.yaml").code == 0
    root = folder / "runs" / "gpt"
    finish(root / "lr=0.0003", 100)
    finish(root / "long", 100)  # of the 200 that it is to have
    done = submit("--time", "90", "--array", "sweep.yaml")
    assert (done.code, done.err) == (0, "")
    assert "job     4711: 2 runs of" in done.out
    assert "\n#SBATCH --array=1,3\n" in (root / "submit" / "0002" / "job.sbatch").read_text()
    finish(root / "lr=0.001", 100)
    finish(root / "long", 200)
    assert submit("--time", "90", "--array", "sweep.yaml").out == "runs/gpt: all runs of the sweep are done\n"
    assert len(slurm.calls("sbatch")) == 2


def test_a_fine_tuning_is_submitted_with_its_own_program(folder: Path, slurm: FakeSlurm) -> None:
    (folder / "tune.yaml").write_text(
        "run: {dir: runs/tune}\ntask: {kind: sft}\ndata: {train: data}\nmodel: {path: data}\ntrain: {max_epochs: 2}\n"
    )
    done = scaletrain("submit", "tune.yaml", "--time", "90", "--gpus-per-node", "8")
    assert (done.code, done.err) == (0, "")
    script = (folder / "runs" / "tune" / "submit" / "0001" / "job.sbatch").read_text()
    assert "\nexport SCALETRAIN_PROGRAM=finetune\n" in script
    assert "launch/${SCALETRAIN_PROGRAM:-pretrain}.py" in script


def test_the_login_node_needs_no_torch(folder: Path, slurm: FakeSlurm) -> None:
    program = (
        "import sys; from scaletrain.cli import main\n"
        f"sys.argv = ['scaletrain', 'submit', '{folder}/recipe.yaml', '--time', '90', 'run.dir={folder}/run', "
        f"'data.path={folder}/gone']\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, 'deepspeed' in sys.modules)"
    )
    done = run_program("-c", program, PATH=os.environ["PATH"])
    assert (done.code, done.err) == (0, f"note    {folder}/gone is not on this machine: the nodes need it\n")
    assert done.out.splitlines()[-1] == "False False"


FAULTS = [
    (["--time", "soon"], "--time soon is not a time limit: write it like 90 (minutes), 24:00:00 (hours)"),
    (["--time", "90", "--signal-seconds", "5400"], "--signal-seconds 5400 is not below the time limit of 5,400 s"),
    (["--time", "90", "--max-parallel", "2"], "--max-parallel 2 is for the runs of a sweep: give --array SWEEP too"),
    (
        ["--time", "90", "--gpus-per-node", "4", "--ranks-per-node", "8"],
        "--ranks-per-node 8 is more than --gpus-per-node 4: each rank needs a GPU of its own",
    ),
    (
        ["--time", "90", "--nodes", "3", "--gpus-per-node", "8"],
        "train.global_batch_size=1024 is not a multiple of 24 ranks: use 1008 or 1032, or another number of ranks",
    ),
    (["--time", "90", "optim.learning_rate=1"], "optim.learning_rate=1 is unknown"),
    (["--time", "90", "--array", "none.yaml"], "none.yaml: the sweep cannot be read"),
    (
        ["--time", "90", "--job-name", "a\nb"],
        "--job-name 'a\\nb' cannot stand in a job script: it is more than one line",
    ),
    (["--time", "90", "--container", "a b"], "--container cannot use 'a b': a path that it mounts holds no space"),
]


@pytest.mark.parametrize(("arguments", "message"), FAULTS)
def test_a_fault_is_one_line_and_nothing_is_submitted(
    arguments: list[str], message: str, folder: Path, slurm: FakeSlurm
) -> None:
    done = submit(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert slurm.calls("sbatch") == []
    assert not (folder / "runs").exists()


def test_one_bad_run_of_a_sweep_is_named_and_nothing_is_submitted(folder: Path, slurm: FakeSlurm) -> None:
    (folder / "sweep.yaml").write_text("grid: {optim.lr: [1e-3, -1], seed: [1, 2]}")
    done = submit("--time", "90", "--array", "sweep.yaml")
    assert (done.code, done.out) == (2, "")
    assert done.err == ("error: the sweep: lr=-1-seed=1, lr=-1-seed=2: recipe.yaml: optim.lr=-1 should be above 0\n")
    (folder / "sweep.yaml").write_text("grid: {seed: [1, 2, 3, 4, 5]}")
    done = submit("--time", "90", "--array", "sweep.yaml", "optim.lr=-1")
    assert "the sweep: seed=1, seed=2, seed=3 and 2 more runs: recipe.yaml: optim.lr=-1" in done.err
    (folder / "sweep.yaml").write_text("runs: [{name: a, optim.lr: -1, seed: -1}, {name: b, seed: x}]")
    done = submit("--time", "90", "--array", "sweep.yaml")
    assert len(done.err.splitlines()) == 3
    assert slurm.calls("sbatch") == []
    assert not (folder / "runs").exists()


def test_a_run_that_is_queued_or_running_is_not_submitted_again(folder: Path, slurm: FakeSlurm) -> None:
    assert submit("--time", "90").code == 0
    slurm.queue("4711|PENDING|Priority|N/A|")
    done = submit("--time", "90")
    assert done.code == 2
    assert done.err == (
        "error: run.dir=runs/gpt is queued already (job 4711): wait for it, choose another run.dir, or end it: "
        "scaletrain cancel runs/gpt\n"
    )
    slurm.queue("4711|COMPLETED|None|N/A|")
    assert submit("--time", "90").code == 0
    assert len(slurm.calls("sbatch")) == 2


def test_a_folder_is_a_runs_or_a_sweeps(folder: Path, slurm: FakeSlurm) -> None:
    assert submit("--time", "90", "run.dir=a").code == 0
    done = submit("--time", "90", "--array", "sweep.yaml", "run.dir=a")
    assert (done.code, done.err) == (2, "error: run.dir=a is the folder of a run: choose another for the sweep\n")
    assert submit("--time", "90", "--array", "sweep.yaml", "run.dir=b").code == 0
    assert "stop    scaletrain cancel 'c d'\n" in submit("--time", "90", "run.dir=c d").out
    done = submit("--time", "90", "run.dir=b")
    assert (done.code, done.err) == (2, "error: run.dir=b is the folder of a sweep: choose another for the run\n")
    assert len(slurm.calls("sbatch")) == 3


def test_what_slurm_refuses_leaves_the_script_to_look_at(folder: Path, slurm: FakeSlurm) -> None:
    slurm.answers("sbatch", "", "sbatch: error: Batch job submission failed: Invalid account\n", 1)
    done = submit("--time", "90")
    own = folder / "runs" / "gpt" / "submit"
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: sbatch refused the job: Batch job submission failed: Invalid account: change its options; the script "
        f"is {own}/0001/job.sbatch\n"
    )
    assert not (own / "job.json").exists()


def test_a_job_is_said_and_noted_whatever_becomes_of_the_disk_or_the_terminal(
    folder: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.answers("sbatch", "4711\n", more=f"mkdir {folder}/runs/gpt/submit/job.json")  # in the way of the note
    done = submit("--time", "90")
    assert (done.code, done.out[:13]) == (2, "job     4711:")
    assert "choose another path" in done.err
    slurm.answers("sbatch", "4712\n")
    program = "import sys; from scaletrain.cli import main; main()"
    command = (
        f"{shlex.join([sys.executable, '-u', '-c', program, 'submit', 'recipe.yaml', '--time', '90', 'run.dir=b'])}"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    subprocess.run(["bash", "-c", f"{command} | true"], check=True, stderr=subprocess.DEVNULL)
    assert json.loads((folder / "b" / "submit" / "job.json").read_text())["job"] == "4712"


def test_without_slurm_only_a_dry_run_works(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit("--time", "90", "--dry-run").code == 0
    done = submit("--time", "90")
    assert done.code == 2
    assert done.err.startswith("error: sbatch is not on the PATH: run this where SLURM's jobs are submitted")


def test_data_that_only_the_nodes_have_is_told(folder: Path) -> None:
    done = submit("--time", "90", "--dry-run", "data.path=elsewhere")
    assert (done.code, done.err) == (0, f"note    {folder}/elsewhere is not on this machine: the nodes need it\n")
    assert submit("--time", "90", "--dry-run", "data.path=s3://bucket/set").err == ""


def test_what_does_not_fit_the_named_gpus_is_refused_before_it_queues(folder: Path) -> None:
    big = ("model.preset=llama-7b", "train.micro_batch_size=64", "--time=90", "--gpus-per-node=8", "--dry-run")
    done = submit(*big, "--gpu=rtx-4090")
    assert (done.code, done.out) == (2, "")
    assert "plan    runs/gpt: " in done.err
    assert re.search(r"error: runs/gpt is too big by [\d.]+ GB a rank: .* makes it fit, with .*; or --force", done.err)
    forced = submit(*big, "--gpu=rtx-4090", "--force")
    assert forced.code == 0
    assert forced.out.startswith("#!/bin/bash")
    assert submit(*big[:1], "--time=90", "--dry-run", "--gpu=h101").err.strip().endswith("did you mean h100?")


def test_each_run_of_a_sweep_is_planned(folder: Path) -> None:
    done = submit("--time=90", "--gpus-per-node=2", "--gpu=h100", "--array=sweep.yaml", "--dry-run")
    assert done.code == 0
    assert [line.split(":")[0] for line in done.err.splitlines() if line.startswith("plan")] == [
        "plan    runs/gpt/lr=0.001", "plan    runs/gpt/lr=0.0003", "plan    runs/gpt/long"
    ]  # fmt: skip
    assert done.err.count(" a rank, ") == 3
