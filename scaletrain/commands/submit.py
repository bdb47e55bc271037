"""`scaletrain submit`: a recipe, or a sweep of it, as a SLURM job that comes back until it is done."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from scaletrain.cluster import slurm, submission
from scaletrain.cluster.batch import Batch, limit_seconds, set_options, signal_seconds
from scaletrain.commands.checked_recipe import CheckedRecipe, check_recipe, check_sweep
from scaletrain.commands.job_plan import JobPlan, Runs, missing_data, plan_job
from scaletrain.commands.standing import Standing, is_run, read_standings, total_steps
from scaletrain.config.hardware import hardware_names
from scaletrain.config.schema import Recipe
from scaletrain.config.sweep import load_sweep
from scaletrain.errors import ClusterError, ConfigError

_SBATCH = "Given to sbatch as it is"


def submit(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe of the run")],
    time: Annotated[str, typer.Option(help="Limit of one launch: minutes, HH:MM:SS or D-HH:MM:SS")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs of each node")] = 0,
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Default: one a GPU; 1 without")] = None,
    cpus_per_rank: Annotated[int | None, typer.Option(min=1, help="Default: what the cluster gives a task")] = None,
    mem: Annotated[str, typer.Option(help="Memory of each node, such as 500G; 0: all. Default: the cluster's")] = "",
    partition: Annotated[str, typer.Option(help=_SBATCH)] = "",
    account: Annotated[str, typer.Option(help=_SBATCH)] = "",
    qos: Annotated[str, typer.Option(help=_SBATCH)] = "",
    constraint: Annotated[str, typer.Option(help=_SBATCH)] = "",
    exclude: Annotated[str, typer.Option(help=_SBATCH)] = "",
    job_name: Annotated[str, typer.Option(help="Default: run.name, or the run folder's name")] = "",
    notice: Annotated[
        int | None,
        typer.Option(
            "--signal-seconds",
            min=1,
            max=65535,
            help="How long before the limit ranks are told to save. Default: 300, or a fifth of a short limit",
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option("--container", help="Image to run ranks in: Apptainer for .sif and URLs, else Pyxis")
    ] = None,
    array: Annotated[
        Path | None, typer.Option(metavar="SWEEP", help="YAML file of a sweep: a job array with a run a task")
    ] = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="Runs of a sweep at work at the same time")] = None,
    deepspeed_config: Annotated[
        str | None,
        typer.Option("--deepspeed_config", metavar="FILE", help="DeepSpeed JSON that wins over the recipe's"),
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(help=f"Plan for these devices first, and refuse what does not fit: {', '.join(hardware_names())}"),
    ] = "",
    force: Annotated[bool, typer.Option(help="Submit what does not fit by plan too")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the job script; write and submit nothing")] = False,
) -> None:
    """Check a recipe for a number of ranks and submit it to SLURM; it saves before the limit and is queued again.

    Recipe and DeepSpeed file are copied into the run folder as they are now: the job reads those copies, whenever it
    starts. With a sweep, run.dir is the folder of all its runs.
    """
    if max_parallel is not None and array is None:
        raise ClusterError(f"--max-parallel {max_parallel} is for the runs of a sweep: give --array SWEEP too")
    ranks = ranks_per_node or max(1, gpus_per_node)
    if 0 < gpus_per_node < ranks:
        raise ClusterError(
            f"--ranks-per-node {ranks} is more than --gpus-per-node {gpus_per_node}: each rank needs a GPU of its own"
        )
    limit = limit_seconds(time)
    given = {"mem": mem, "partition": partition, "account": account, "qos": qos, "constraint": constraint}
    given |= {"exclude": exclude, "cpus-per-task": str(cpus_per_rank or "")}
    batch = Batch(job_name, Path.cwd(), nodes, ranks, gpus_per_node, limit, signal_seconds(limit, notice), given)
    runs: Runs
    if array is None:
        run = check_recipe(recipe, overrides or [], deepspeed_config, batch.ranks)
        root, runs = run.folder, {None: run}
    else:
        sweep = check_sweep(recipe, overrides or [], deepspeed_config, batch.ranks, load_sweep(array))
        root, runs = sweep[0].folder.parent, dict(enumerate(sweep, start=1))
    if gpu:
        _plan(runs, recipe, batch, gpu, force=force)
    for path in missing_data(runs):
        print(f"note    {path} is not on this machine: the nodes need it", file=sys.stderr)
    if dry_run:
        print(plan_job(root, runs, batch, image=image, most_at_once=max_parallel).script, end="")
        return
    slurm.check_sbatch()
    _check_kind(root, is_sweep=array is not None)
    runs = _to_train(runs)
    if not runs:
        print(f"{root}: all runs of the sweep are done")
        return
    _submit(root, plan_job(root, runs, batch, image=image, most_at_once=max_parallel))


def _plan(runs: Runs, recipe: Path, batch: Batch, gpu: str, *, force: bool) -> None:
    """Tells how each pretraining run will do. ConfigError where one does not fit, unless `force`."""
    from scaletrain.commands.plan_text import short, verdict
    from scaletrain.commands.planned_recipe import device_of, plan_recipe, remedy_of

    too_big = []
    for run in runs.values():
        if not isinstance(run.recipe, Recipe):
            print("note    a fine-tuning is not planned: scaletrain plan tells the state of its model", file=sys.stderr)
            return
        device = device_of(gpu, batch.ranks_per_node, run.recipe)
        plan = plan_recipe(run.recipe, run.preset, device, nodes=batch.nodes, devices_per_node=batch.ranks_per_node)
        print(f"plan    {run.folder}: {short(plan)}", file=sys.stderr)
        if not plan.fits:
            too_big.append(f"{run.folder} is {verdict(plan, remedy_of(plan, recipe))}")
    if too_big and not force:
        raise ConfigError("; ".join([*too_big, "or --force submits it all the same"]))


def _check_kind(root: Path, *, is_sweep: bool) -> None:
    """A folder is a run's or a sweep's: what asks after it later has to know which. ConfigError if it is the other."""
    if is_sweep and is_run(root):
        raise ConfigError(f"run.dir={root} is the folder of a run: choose another for the sweep")
    if not is_sweep and submission.submitted_below(root):
        raise ConfigError(f"run.dir={root} is the folder of a sweep: choose another for the run")


def _to_train(runs: Runs) -> Runs:
    """The runs but those of a sweep that are done already. ClusterError when one is queued or at work."""
    standings = {standing.folder: standing for standing in read_standings([run.folder for run in runs.values()])}
    for folder, standing in standings.items():
        if standing.is_live:
            job = "" if standing.job is None else f" (job {standing.job.name})"
            raise ClusterError(
                f"run.dir={folder} is {standing.state} already{job}: wait for it, choose another run.dir, or end it: "
                f"scaletrain cancel {shlex.quote(str(folder))}"
            )
    return {task: run for task, run in runs.items() if task is None or not _is_done(run, standings[run.folder])}


def _is_done(run: CheckedRecipe, standing: Standing) -> bool:
    """Whether it is at the end that the recipe sets now."""
    step = standing.step or 0
    total = total_steps(run.recipe, standing.metrics)
    return standing.state == "done" and total is not None and total <= step


def _submit(root: Path, plan: JobPlan) -> None:
    job = slurm.submit(plan.write(), set_options(plan.batch))
    try:
        plan.note(job)
    finally:  # a full disk or a closed terminal keeps neither from being done
        print(_summary(root, plan, job))


def _summary(root: Path, plan: JobPlan, job: str) -> str:
    """What was submitted, and what to do next."""
    folder = shlex.quote(str(root))
    batch, (task, run) = plan.batch, next(iter(plan.runs.items()))
    each = f"{_counted(len(plan.runs), 'run')} of " if task is not None else ""
    size = f"{_counted(batch.nodes, 'node')} x {_counted(batch.ranks_per_node, 'rank')}"
    micro = f"micro-batch {run.batch.micro_batch} x {run.batch.accumulation}"
    limits = f"{batch.limit} a launch, told to save {batch.signal_seconds} s before"
    log = plan.log_of(job, task)
    log = log.with_name(f"{job}_*.log") if task is not None else log
    return (
        f"job     {job}: {each}{size}, {micro}, {limits}\n"
        f"log     {log}\nwatch   scaletrain status {folder}\nstop    scaletrain cancel {folder}"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
