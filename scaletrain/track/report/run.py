"""What a report knows of one run: its records, recipe, environment, plan and predictions, as far as they are there."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from scaletrain.runtime.run_files import PLAN
from scaletrain.track.flat import flatten
from scaletrain.track.recorded import Recorded

_ROWS = 20  # of predictions


@dataclass(frozen=True)
class ReportedRun:
    """`recipe` and `environment` by dotted keys; `plan`: what was expected before the start; `predictions`: the first
    rows of the last evaluation's."""

    name: str
    recorded: Recorded
    recipe: dict[str, str]
    environment: dict[str, str]
    plan: dict[str, Any]
    predictions: list[dict[str, Any]]
    faults: list[str]


def read_run(folder: Path, name: str) -> ReportedRun:
    """What cannot be read is left out, and told in `faults`."""
    faults: list[str] = []
    recorded = Recorded(folder)
    recorded.refresh()
    if recorded.unreadable:
        faults.append(f"{recorded.unreadable:,} lines of its records cannot be read")
    return ReportedRun(
        name=name,
        recorded=recorded,
        recipe=_flat(_object(folder / "recipe.yaml", faults)),
        environment=_flat(_object(folder / "environment.json", faults)),
        plan=_object(folder / PLAN, faults),
        predictions=_predictions(folder / "predictions", faults),
        faults=faults,
    )


def names_of(folders: Iterable[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    parts = [folder.absolute().parts for folder in folders]
    depth = next((d for d in range(1, 99) if len({one[-d:] for one in parts}) == len(parts)), 1)
    return ["/".join(one[-depth:]) for one in parts]


def _object(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        value = None
    if isinstance(value, dict):
        return value
    faults.append(f"{path.name} cannot be read")
    return {}


def _flat(value: dict[str, Any]) -> dict[str, str]:
    """Dotted keys and their values as JSON, strings as they are."""
    return {
        key: one if isinstance(one, str) else json.dumps(one, default=str, ensure_ascii=False)
        for key, one in flatten(value).items()
    }


def _predictions(folder: Path, faults: list[str]) -> list[dict[str, Any]]:
    found = sorted(folder.glob("step-*.jsonl"))
    if not found:
        return []
    try:
        with found[-1].open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in islice(file, _ROWS)]
    except (OSError, ValueError):
        faults.append(f"predictions/{found[-1].name} cannot be read")
        return []
    return [row for row in rows if isinstance(row, dict)]
