"""`scaletrain cancel`: a run is saved, ended, and not put back into the queue."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from scaletrain.cluster import slurm
from scaletrain.commands.standing import Standing, find_runs, read_standings
from scaletrain.commands.supervised_folder import newest_step

_POLL_SECONDS = 2.0


def cancel(
    folder: Annotated[Path, typer.Argument(metavar="RUN_OR_SWEEP", help="Run folder, or the folder of a sweep")],
    wait: Annotated[int, typer.Option(min=0, metavar="SECONDS", help="How long to wait for the save")] = 900,
) -> None:
    """End a run, or all runs of a sweep, after they have saved; jobs that wait are taken out of the queue.

    The run stops at its next step, saves, and goes on from there when it is submitted or started again. A run that was
    started by hand is stopped too. Exit code 1: it ended without saving, or still runs.
    """
    before = [standing for standing in read_standings(find_runs(folder)) if standing.is_live]
    if not before:
        print(f"{folder}: nothing is queued or running")
        return
    for standing in before:
        if standing.submission is not None and standing.job is not None:
            (standing.folder / standing.submission.cancelled).touch()  # for a launch that begins meanwhile
    left = _wait_for_ends(before, wait)
    told = [_outcome(standing, left[standing.folder]) for standing in before]
    for line, is_well in told:
        print(line if is_well else f"error: {line}", file=sys.stdout if is_well else sys.stderr, flush=True)
    if not all(is_well for _, is_well in told):
        sys.exit(1)


def _wait_for_ends(standings: Sequence[Standing], seconds: float) -> Mapping[Path, Standing]:
    """Asks until all have ended or the time is over. Gives how they stand then."""
    deadline = time.monotonic() + seconds
    asked: set[Path] = set()
    now = list(standings)
    while True:
        live = [standing for standing in now if standing.is_live]
        if waiting := [s.submission.job for s in live if s.waits and s.submission is not None]:
            slurm.cancel(waiting)
        for standing in live:
            if not standing.waits:
                _ask_to_stop(standing, again=standing.folder in asked)
                asked.add(standing.folder)
        if not live or time.monotonic() >= deadline:
            return {standing.folder: standing for standing in now}
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
        now = read_standings([standing.folder for standing in now])


def _ask_to_stop(standing: Standing, *, again: bool) -> None:
    """By the stop file, which is obeyed once however often it is seen; a second signal would end ranks as they save.

    A program that begins takes a file from before it for an old one and removes it: it is written again then.
    """
    stop = standing.folder / "stop"
    if not again and standing.submission is not None and standing.job is not None:
        slurm.forbid_requeue(standing.submission.job)
    is_obeyed = standing.event is not None and standing.event["event"] in ("stop", "end")
    if not again or not (stop.exists() or is_obeyed):
        stop.touch()


def _outcome(before: Standing, now: Standing) -> tuple[str, bool]:
    """What became of a run, and whether nothing of it was lost."""
    number = before.submission.job if before.submission is not None and before.job is not None else None
    name = f"{now.folder} (job {number})" if number is not None else str(now.folder)
    if now.is_live:
        at_once = f", or `scancel {number}`, which waits for no save" if number is not None else ""
        return f"{name} still runs: it saves and ends as it was asked to; wait longer (--wait){at_once}", False
    (now.folder / "stop").unlink(missing_ok=True)  # one that came too late would make the next launch wonder
    if now.event is not None and now.event["event"] in ("stop", "end"):
        word = "done   " if now.event["event"] == "end" else "stopped"
        return f"{word} {name}, saved at step {int(now.event['step']):,}", True
    saved = newest_step(now.folder)
    goes_on = f"it goes on from step {saved:,}" if saved else "no step is saved yet"
    if before.waits or (now.event is None and now.state == "stopped"):
        return f"removed {name} from the queue; {goes_on}", True
    return f"{name} ended without a save ({now.why or now.state}); {goes_on}", False
