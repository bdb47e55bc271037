"""`launch/pretrain.py` and `launch/finetune.py RECIPE [section.key=value ...]`: one rank of a run."""

import argparse
import errno
import os
import socket
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scaletrain.cluster.env import read_world
from scaletrain.errors import EXIT_STOPPED, EXIT_USER, NotPlannableError, ScaleTrainError
from scaletrain.runtime.exit_report import report_wish
from scaletrain.runtime.processes import started_with
from scaletrain.runtime.stop import first_launchers
from scaletrain.runtime.world import World

if TYPE_CHECKING:
    from scaletrain.assemble.expectation import Expected
    from scaletrain.assemble.settle import Settled
    from scaletrain.cluster.doctor.finding import Finding
    from scaletrain.engine.trainer import Trainer
    from scaletrain.runtime.lifeline import Lifeline
    from scaletrain.runtime.log import Terminal
    from scaletrain.track.peak import Peak

Program = Literal["pretrain", "finetune"]
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_DESCRIPTIONS: dict[Program, str] = {
    "pretrain": "Pretrain a GPT from a recipe.",
    "finetune": "Fine-tune a Hugging Face model from a recipe.",
}


def parse(program: Program, argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as DeepSpeed's launcher completes it."""
    parser = argparse.ArgumentParser(prog=f"{program}.py", description=_DESCRIPTIONS[program])
    parser.add_argument("recipe", type=Path, help=f"YAML recipe, such as launch/recipes/{program}-*.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that win over the recipe's")
    parser.add_argument("--deepspeed_config", metavar="FILE", help="DeepSpeed JSON that wins over the recipe's")
    parser.add_argument("--force", action="store_true", help="go on where the planned memory is more than there is")
    parser.add_argument("--deepspeed", action="store_true", help="accepted and ignored: DeepSpeed is always on")
    parser.add_argument("--local_rank", type=int, help="set by DeepSpeed's launcher; the environment says the same")
    return parser.parse_intermixed_args(argv)


def main(program: Program, argv: Sequence[str]) -> int:
    """Trains; the exit code of the program: 0 done, 2 the input is at fault, 75 stopped on request after saving."""
    began = time.time()
    first_launchers()
    args = parse(program, argv)
    world = World()
    try:
        from scaletrain.config.load import load_recipe, need_finetuning, need_pretraining

        world = read_world(os.environ)
        need = {"pretrain": need_pretraining, "finetune": need_finetuning}[program]
        # Before torch: a fault is told in a second, and the libraries find their variables.
        recipe = load_recipe(args.recipe, args.overrides, args.deepspeed_config)
        need(recipe, args.recipe)
        os.environ.update(recipe.run.env)
        return _train(program, args, began)
    except ScaleTrainError as error:
        _tell_fault(error, world)
        return EXIT_USER


def _tell_fault(error: ScaleTrainError, world: World) -> None:
    """One line a node while the ranks are not joined: another node may have another copy of what is at fault.

    The first of a node speaks at once, and another only if that one had no fault: launchers end the others when the
    first rank exits, but srun need not.
    """
    time.sleep(4 if world.local_rank else 0)
    step = {name: os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")}
    if world.local_rank and all(step.values()) and not started_with(step | {"SLURM_LOCALID": "0"}):
        return
    rank = f"rank {world.rank}: " if world.local_rank else ""
    print(f"error: {rank}{error}", file=sys.__stderr__, flush=True)


def _settle(program: Program, args: argparse.Namespace) -> "Settled":
    given = args.recipe, args.overrides, args.deepspeed_config
    if program == "pretrain":
        from scaletrain.assemble.pretraining import settle_pretraining

        return settle_pretraining(*given)
    from scaletrain.assemble.finetuning import settle_finetuning

    return settle_finetuning(*given)


def _train(program: Program, args: argparse.Namespace, began: float) -> int:
    from scaletrain.assemble import preflight, settle
    from scaletrain.engine import run_folder
    from scaletrain.runtime import dist, log
    from scaletrain.runtime.lifeline import Lifeline
    from scaletrain.track.trackers import check_trackers

    settled = _settle(program, args)
    settle.set_threads(settled.world)
    dist.start(settled.world, timedelta(seconds=settled.recipe.guard.collective_timeout_seconds))
    folder = Path(settled.recipe.run.dir)
    log_file = folder / "logs" / f"rank-{settled.world.rank:05d}.log"
    lock, terminal = None, None
    try:
        with dist.together():
            if settled.world.is_first:  # the others write nothing there, and send nothing
                check_trackers(settled.recipe.log.trackers)
                lock = run_folder.hold(folder)
        held_by = dist.gather(run_folder.holder(folder) if settled.world.is_first else "")[0]
        with dist.together():
            if settled.world.local_rank == 0:  # on each node
                run_folder.check_shared(folder, held_by)
        findings = preflight.check_nodes(settled)
        with dist.together():
            terminal = log.divert(log_file)
    except ScaleTrainError as error:
        if settled.world.is_first:
            print(f"error: {error}", file=terminal.err if terminal else sys.__stderr__, flush=True)
        return EXIT_USER
    line = Lifeline(
        settled.world,
        log_file.parent,
        settled.recipe.guard.hang_seconds,
        tell=lambda text: print(text, file=terminal.err, flush=True),
        leave=lambda: os._exit(1),  # at once: the main thread may hold what a flush waits for
    )
    try:
        return _train_held(settled, findings, terminal, began, force=args.force)
    except ScaleTrainError as error:
        return _end_with_fault(error, str(error), line, settled, terminal)
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            return _end_with_crash(error, line, settled, terminal)
        remedy = "free space there and run the same command again; it goes on from the last checkpoint"
        message = f"{error.filename or folder}: {error.strerror}: {remedy}"
        return _end_with_fault(error, message, line, settled, terminal)
    except Exception as error:  # noqa: BLE001  told with rank, host and log, then the process ends with 1
        return _end_with_crash(error, line, settled, terminal)
    finally:
        line.close()
        if lock is not None:
            lock.close()


def _train_held(
    settled: "Settled", findings: "Sequence[Finding]", terminal: "Terminal", began: float, *, force: bool
) -> int:
    """Trains inside a held run folder, with the libraries' output diverted."""
    from scaletrain.assemble import expectation, out_of_memory
    from scaletrain.assemble.settle import measure_peak
    from scaletrain.assemble.start import start_run
    from scaletrain.cluster.doctor.finding import lines
    from scaletrain.runtime.dist import together
    from scaletrain.runtime.leftovers import describe_leftovers
    from scaletrain.runtime.op_folder import use_built_ops

    expected, findings = _expected(settled, findings, force=force)
    use_built_ops()
    if settled.world.local_rank == 0:  # on each node, before an op build could wait for a dead one's lock
        for line in describe_leftovers():
            print(line, file=terminal.out)
    peak = measure_peak(settled)
    expected = expected and expectation.at_peak(expected, settled, peak)
    if settled.world.is_first:
        print("\n".join([*header(settled, peak), *lines(findings)]), file=terminal.out)
    with out_of_memory.told(settled, expected):
        trainer = start_run(settled, peak, findings, terminal, began)
        with together():
            if expected is not None and settled.world.is_first:
                expectation.write(expected, Path(settled.recipe.run.dir))
            for line in expectation.duration(expected, trainer.plan, trainer.state):
                trainer.records.say(line)
        began_at = trainer.state.step
        try:
            stopped = trainer.run()
        finally:
            trainer.records.close()
    if stopped is None:
        with together():
            for line in _finish(settled, trainer) if settled.world.is_first else ():
                trainer.records.say(line)
    if expected is not None and trainer.state.step > began_at:
        trainer.records.say(expectation.compare(expected, settled))
    for line in farewell(trainer, settled, stopped, began_at):
        trainer.records.say(line)
    if stopped and (trainer.stop.obeyed_file or _is_last_wanted(trainer)):
        report_wish(stopped)
    return EXIT_STOPPED if stopped else 0


def _expected(
    settled: "Settled", findings: "Sequence[Finding]", *, force: bool
) -> "tuple[Expected | None, list[Finding]]":
    """What the run expects, if that can be told, and what is to be said of it."""
    from scaletrain.assemble import expectation
    from scaletrain.cluster.doctor.finding import Finding

    try:
        expected = expectation.begin(settled, force=force)
    except NotPlannableError as error:
        return None, [*findings, Finding("note", "plan", f"memory is not planned: {error}")]
    return expected, [*findings, *expectation.doubts(settled, expected)]


def _finish(settled: "Settled", trainer: "Trainer") -> list[str]:
    """What the job leaves beside its last checkpoint."""
    from scaletrain.engine.checkpoint import Found, read_manifest, step_folder

    folder = step_folder(trainer.saver.root, trainer.state.step)
    return settled.job.finish(Path(settled.recipe.run.dir), Found(folder, read_manifest(folder)))


def _end_with_crash(error: Exception, line: "Lifeline", settled: "Settled", terminal: "Terminal") -> int:
    """The cause may be on another rank: the lifeline's line tells it and ends the process, unless there is nobody."""
    from scaletrain.runtime import log

    line.fail(error)
    log_file = Path(settled.recipe.run.dir) / "logs" / f"rank-{settled.world.rank:05d}.log"
    log.report_crash(terminal.err, settled.world.rank, log_file)
    return 1


def _end_with_fault(error: Exception, message: str, line: "Lifeline", settled: "Settled", terminal: "Terminal") -> int:
    """What all ranks have met rank 0 tells, and the user mends. What one rank alone has met is its machine's: the
    lifeline names the rank and ends all, unless there is none."""
    from scaletrain.runtime.dist import is_shared

    rank = settled.world.rank
    if is_shared(error) or line.fail(error, message):
        if rank == 0:
            for file in (sys.stderr, terminal.err):  # the log, where `runs` and `watch` look for a reason; a person
                print(f"error: {message}", file=file, flush=True)
        return EXIT_USER
    print(f"error: rank {rank} on {socket.gethostname()}: {message}", file=terminal.err, flush=True)
    return 1


def header(settled: "Settled", peak: "Peak") -> list[str]:
    """What is about to be trained, in a few lines for a person."""
    import torch

    recipe, world, batch, job = settled.recipe, settled.world, settled.batch, settled.job
    name = recipe.run.name or Path(recipe.run.dir).name
    device = torch.cuda.get_device_name(settled.device) if settled.device.type == "cuda" else "CPU"
    sharing = recipe.train.sequence_parallel
    shared = f" of samples that {sharing} ranks share" if sharing > 1 else ""
    rate = f"{peak.flops / 1e12:.3g} TFLOP/s a rank, {peak.source}" if peak.flops else peak.source
    return [
        f"run     {name} in {recipe.run.dir}",
        *job.describe(),
        *job.data.describe(),
        f"ranks   {world.size} x {device} on {world.nodes} node{'s' if world.nodes > 1 else ''}, ZeRO stage "
        f"{settled.zero_stage}, {settled.launch.precision}, micro-batch {batch.micro_batch} x {batch.accumulation}"
        f"{shared}",
        f"mfu     tokens/s x {job.flops_per_token / 1e6:,.1f} MFLOP a token ({job.flops_rule}) / {rate}",
    ]


def farewell(trainer: "Trainer", settled: "Settled", stopped: str | None, began_at: int) -> list[str]:
    """What a person does next."""
    from scaletrain.engine.checkpoint import step_folder

    run, where = trainer.recipe.run.dir, step_folder(trainer.saver.root, trainer.state.step)
    if stopped:
        again = "run the same command to go on"
        if _is_last_wanted(trainer):  # the same command would stop again
            again = "raise train.stop_at_step or leave it out to go on"
        return [f"stopped at step {trainer.state.step:,} ({stopped}); saved in {where}; {again}"]
    before = "; it was done before, nothing was left to train" if trainer.state.step == began_at else ""
    return [
        f"done    {trainer.state.step:,} steps, {trainer.state.tokens_seen:,} tokens; saved in {where}{before}",
        f"next    {settled.job.next_steps(run)}",
    ]


def _is_last_wanted(trainer: "Trainer") -> bool:
    wanted = trainer.recipe.train.stop_at_step
    return wanted is not None and trainer.state.step >= wanted
