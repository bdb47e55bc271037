"""What benchmarks share: programs in processes of their own, turns, figures with their spread, one form of result."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scaletrain.engine.run_folder import environment
from scaletrain.runtime.dist import device_of
from scaletrain.runtime.world import World
from scaletrain.track.peak import peak_of

ROOT = Path(__file__).resolve().parents[1]
NOISE = 0.03  # a difference below this is none, however narrow the spreads are
T = TypeVar("T")


def variables(**more: str) -> dict[str, str]:
    """The environment of a program that imports this clone."""
    # Without .pyc files each start compiles torch and DeepSpeed anew.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": str(ROOT), **more}


def run_program(command: Sequence[str | Path], **env: str) -> str:
    """What a program prints, run from the clone; it ends the benchmark when it fails."""
    words = list(map(str, command))
    done = subprocess.run(words, env=variables(**env), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def last_line_of(command: Sequence[str | Path], **env: str) -> Any:
    """The JSON in the last line that a program prints."""
    return json.loads(run_program(command, **env).splitlines()[-1])


def in_turn(
    contestants: Mapping[str, Callable[[], T]], rounds: int, tell: Callable[[int, str, T], None]
) -> list[dict[str, T]]:
    """What each contestant gives in each round; every second round goes backwards, so that drift favours nobody."""
    found: list[dict[str, T]] = []
    for number in range(rounds):
        names = list(contestants) if number % 2 == 0 else list(reversed(contestants))
        one: dict[str, T] = {}
        for name in names:
            one[name] = contestants[name]()
            tell(number, name, one[name])
        found.append({name: one[name] for name in contestants})
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range over the rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def matrix_rate() -> float:
    """FLOP/s that a large matrix product reaches here and now, in the precision that a recipe trains in by default."""
    from scaletrain.assemble.settle import DTYPES, best_precision

    device = device_of(World())
    rate = peak_of(device, DTYPES[best_precision(device)]).flops
    assert rate is not None
    return rate


def save(path: Path, script: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Writes the one form of result: a row has a `name` that no other has, and figures as `spread` gives them or plain
    numbers."""
    result = {
        "benchmark": Path(script).stem,
        "environment": surroundings(script),
        "settings": dict(settings),
        "rows": list(rows),
    }
    path.write_text(json.dumps({**result, **more}, indent=1) + "\n", encoding="utf-8")


def surroundings(script: str) -> dict[str, Any]:
    """What figures depend on: versions, commit, machine and command, without a path or a name of this machine."""
    device = device_of(World())
    about = {"device_type": device.type, **environment(World(), device, {}), "matrix_rate": matrix_rate()}
    about["command"] = ["python", f"benchmarks/{script}", *_without_paths(sys.argv[1:])]
    for name in ("host", "network", "deepspeed_config"):
        del about[name]
    return about


def _without_paths(words: Sequence[str]) -> list[str]:
    return [Path(word).name if word.startswith("/") else word for word in words]


def against(old: Path, new: Path) -> list[str]:
    """As slower(), of all figures of two results: a rate that fell, seconds that grew."""
    rows = json.loads(new.read_text(encoding="utf-8"))["rows"]
    figures = {name for row in rows for name, value in row.items() if isinstance(value, dict)}
    lines = []
    for figure in sorted(figures):
        if figure.endswith(("per_second", "seconds")):
            lines += slower(old, rows, figure)
    return lines


def slower(old: Path, rows: Sequence[Mapping[str, Any]], figure: str) -> list[str]:
    """A line for each row whose `figure` is worse than that of the result in `old` by more than the noise: the ranges
    do not meet, and the medians differ by more than NOISE. Less of seconds is better, and more of all else."""
    before = {row["name"]: row[figure] for row in json.loads(old.read_text(encoding="utf-8"))["rows"] if figure in row}
    lines = []
    for row in rows:
        was, now = before.get(row["name"]), row.get(figure)
        if was is None or now is None:
            continue
        worse, better = (now, was) if figure.endswith("seconds") else (was, now)
        if better["high"] >= worse["low"] or better["median"] > (1 - NOISE) * worse["median"]:
            continue
        lines.append(
            f"slower: {row['name']}: {figure} {now['median']:.4g} ({now['low']:.4g} to {now['high']:.4g}), was "
            f"{was['median']:.4g} ({was['low']:.4g} to {was['high']:.4g})"
        )
    return lines
