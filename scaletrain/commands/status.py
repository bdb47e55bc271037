"""`scaletrain status`: where a run, or each run of a sweep, stands."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from scaletrain.commands.standing import Standing, find_runs, read_standings
from scaletrain.commands.supervised_folder import newest_step
from scaletrain.tasks.scores.result import shown


def status(
    folder: Annotated[Path, typer.Argument(metavar="RUN_OR_SWEEP", help="Run folder, or the folder of a sweep")],
) -> None:
    """Show where a run stands, or each run of a sweep: queued, running, requeued, done, stopped or failed.

    Asks SLURM where there is one, and reads the run's own records: they tell of a job that SLURM has forgotten, and of
    a run that was started by hand.
    """
    runs = find_runs(folder)
    standings = read_standings(runs)
    print("\n".join(_of_run(standings[0]) if runs == [folder] else _of_sweep(standings)))


def _of_run(standing: Standing) -> list[str]:
    why = f" ({standing.why})" if standing.why else ""
    lines = [
        f"run     {standing.folder}",
        f"state   {standing.state}{why}",
        f"step    {_steps(standing, ' of ')}, saved up to {newest_step(standing.folder):,}",
    ]
    metrics = standing.metrics
    if metrics is not None:
        rate = f"{metrics['tokens_per_second']:,.0f} tok/s"
        lines.append(f"loss    {float(metrics['loss']):.4f} at step {metrics['step']:,}, {rate}{_left(standing)}")
    if standing.scores is not None:
        lines.append(f"scores  {shown(standing.scores)} at step {standing.scores['step']:,}")
    if standing.submission is not None:
        where = f" on {standing.job.nodes}" if standing.job is not None and standing.job.nodes else ""
        lines += [f"job     {standing.submission.job}{where}", f"log     {standing.log}"]
    elif (standing.folder / "logs").is_dir():
        lines.append(f"log     {standing.folder / 'logs'}")
    return lines


def _left(standing: Standing) -> str:
    """The time that a running run still takes."""
    metrics, seconds = standing.metrics, (standing.metrics or {}).get("step_seconds")
    if standing.state != "running" or standing.total is None or metrics is None or seconds is None:
        return ""
    minutes = round((standing.total - metrics["step"]) * seconds / 60)
    return f", {minutes // 60}:{minutes % 60:02d} h left"


def _steps(standing: Standing, between: str) -> str:
    if standing.step is None:
        return "-"
    return f"{standing.step:,}" + (f"{between}{standing.total:,}" if standing.total is not None else "")


def _of_sweep(standings: Sequence[Standing]) -> list[str]:
    """A line a run, and how many are in which state."""
    rows = [("state", "step", "loss", "tok/s", "job", "run")]
    for standing in standings:
        metrics = standing.metrics
        rows.append(
            (
                standing.state,
                _steps(standing, "/"),
                f"{float(metrics['loss']):.4f}" if metrics is not None else "-",
                f"{metrics['tokens_per_second']:,.0f}" if metrics is not None else "-",
                standing.submission.job if standing.submission is not None else "-",
                standing.folder.name + (f": {standing.why}" if standing.why else ""),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = Counter(standing.state for standing in standings)
    return [*lines, f"{len(standings)} runs: {', '.join(f'{count} {state}' for state, count in counts.items())}"]
