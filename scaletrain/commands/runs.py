"""`scaletrain runs`: the runs below a folder, a line each, newest first."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from scaletrain.commands.standing import Standing, is_run, read_each
from scaletrain.errors import ConfigError
from scaletrain.runtime.run_files import EVENTS, METRICS

_STALLED_SECONDS = 900.0  # as guard.hang_seconds: what keeps silent for longer has ended, or its guard is switched off
_STALLED_STEPS = 200  # that could have been trained meanwhile: 20 lines of metrics at the default cadence


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that holds runs, at any depth")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for programs")] = False,
) -> None:
    """List the runs below a folder, newest first: state, step, loss, speed and when they last wrote something.

    stalled: its folder is held, but nothing was written for a quarter of an hour, or for as long as 200 steps take if
    that is longer. damaged: its records cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: give one that holds runs, such as runs")
    now = time.time()
    found = [(standing, _changed(standing.folder)) for standing in read_each(list(_find(folder)))]
    found.sort(key=lambda one: -one[1])
    told = [(_judged(standing, now - changed), changed) for standing, changed in found]
    if as_json:
        print(json.dumps([_record(standing, changed) for standing, changed in told], indent=1))
        return
    print("\n".join(_table(told, folder, now)))


def _find(folder: Path) -> Iterator[Path]:
    """Run folders, which are not searched for more; links are not followed."""
    for place, below, _ in os.walk(folder):
        if is_run(Path(place)):
            below.clear()
            yield Path(place)
        below[:] = [name for name in below if not name.startswith(".")]


def _changed(run: Path) -> float:
    """When the run last wrote something, of time.time()."""
    times = [_modified(run / name) for name in (METRICS, EVENTS)]
    return max(times) or _modified(run)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _judged(standing: Standing, silent: float) -> Standing:
    """A running run that is silent for too long is stalled; one that starts may take its time."""
    if standing.state != "running" or standing.metrics is None:
        return standing
    step_seconds = _number(standing.metrics, "step_seconds") or 0.0
    if silent <= max(_STALLED_SECONDS, _STALLED_STEPS * step_seconds):
        return standing
    return replace(standing, state="stalled", why=f"nothing written for {_ago(silent)}")


def _record(standing: Standing, changed: float) -> dict[str, Any]:
    metrics = standing.metrics or {}
    return {
        "run": str(standing.folder),
        "state": standing.state,
        "why": standing.why,
        "step": standing.step,
        "total_steps": standing.total,
        "loss": _number(metrics, "loss"),
        "scores": {name: _number(standing.scores, name) for name in standing.scores} if standing.scores else None,
        "tokens_per_second": _number(metrics, "tokens_per_second"),
        "changed": changed,
        "job": standing.submission.job if standing.submission is not None else None,
    }


def _table(told: Sequence[tuple[Standing, float]], folder: Path, now: float) -> list[str]:
    if not told:
        return [f"no runs below {folder}"]
    rows = [("state", "step", "loss", "tok/s", "changed", "run")]
    for standing, changed in told:
        metrics = standing.metrics or {}
        step = f"{standing.step:,}" if standing.step is not None else "-"
        name = os.path.relpath(standing.folder, folder)
        rows.append(
            (
                standing.state,
                step + (f"/{standing.total:,}" if standing.total is not None else ""),
                _shown(metrics, "loss", ".4f"),
                _shown(metrics, "tokens_per_second", ",.0f"),
                f"{datetime.fromtimestamp(changed):%Y-%m-%d %H:%M}, {_ago(now - changed)} ago",
                (name if name != "." else str(folder)) + (f": {standing.why}" if standing.why else ""),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = Counter(standing.state for standing, _ in told)
    number = "1 run" if len(told) == 1 else f"{len(told)} runs"
    return [*lines, f"{number}: {', '.join(f'{count} {state}' for state, count in counts.items())}"]


def _number(metrics: Mapping[str, Any], name: str) -> float | None:
    """JSON has no NaN: a value that is none is null."""
    try:
        value = float(metrics[name])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _shown(metrics: Mapping[str, Any], name: str, form: str) -> str:
    value = _number(metrics, name)
    return format(value, form) if value is not None else str(metrics.get(name, "-"))


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
