"""`launch/pretrain.py RECIPE [section.key=value ...]`: one rank of a pretraining run."""

import argparse
import errno
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scaletrain.errors import EXIT_STOPPED, EXIT_USER, ScaleTrainError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as DeepSpeed's launcher completes it."""
    parser = argparse.ArgumentParser(prog="pretrain.py", description="Pretrain a GPT from a recipe.")
    parser.add_argument("recipe", type=Path, help="YAML recipe, such as launch/recipes/pretrain-python.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that win over the recipe's")
    parser.add_argument("--deepspeed_config", metavar="FILE", help="DeepSpeed JSON that wins over the recipe's")
    parser.add_argument("--deepspeed", action="store_true", help="accepted and ignored: DeepSpeed is always on")
    parser.add_argument("--local_rank", type=int, help="set by DeepSpeed's launcher; the environment says the same")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> int:
    """Trains; the exit code of the program: 0 done, 2 the input is at fault, 75 stopped by a signal after saving."""
    began = time.time()
    args = parse(argv)
    first = os.environ.get("RANK", "0") == "0"
    try:
        from scaletrain.config.load import load_recipe

        load_recipe(args.recipe, args.overrides, args.deepspeed_config)  # before torch: a fault is told in a second
        return _train(args, began)
    except ScaleTrainError as error:
        if first:
            print(f"error: {error}", file=sys.__stderr__, flush=True)
        return EXIT_USER


def _train(args: argparse.Namespace, began: float) -> int:
    from scaletrain import assemble
    from scaletrain.engine import run_folder
    from scaletrain.runtime import dist, log

    settled = assemble.settle_recipe(args.recipe, args.overrides, args.deepspeed_config)
    assemble.set_threads(settled.world)
    dist.start(settled.world)
    folder = Path(settled.recipe.run.dir)
    with dist.together():
        lock = run_folder.hold(folder) if settled.world.is_first else None
    log_file = folder / "logs" / f"rank-{settled.world.rank:05d}.log"
    terminal = log.divert(log_file)
    try:
        trainer = assemble.start_pretraining(settled, terminal, began)
        try:
            stopped = trainer.run()
        finally:
            trainer.close()
        for line in assemble.farewell(trainer, stopped):
            trainer.progress.say(line)
        return EXIT_STOPPED if stopped else 0
    except ScaleTrainError as error:
        if settled.world.is_first:
            print(f"error: {error}", file=terminal.err, flush=True)
        return EXIT_USER
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        print(
            f"error: {error.filename or folder}: {error.strerror}: free space there and run the same command again; it "
            "goes on from the last checkpoint",
            file=terminal.err,
            flush=True,
        )
        return EXIT_USER
    except Exception:  # noqa: BLE001  told with rank, host and log, then the process ends with 1
        log.report_crash(terminal.err, settled.world.rank, log_file)
        return 1
    finally:
        if lock is not None:
            lock.close()
