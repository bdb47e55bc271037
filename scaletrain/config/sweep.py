"""A sweep file: the runs of a sweep, each with a name and the keys of the recipe that it sets. Pure."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.config.load import SECTIONS
from scaletrain.config.problems import closest, raise_problems, shown
from scaletrain.config.strict_yaml import parse_yaml
from scaletrain.errors import ConfigError

_PARTS = ("grid", "runs")
_MOST_RUNS = 10_000  # ten times what SLURM's arrays hold by default (MaxArraySize)
_LONGEST_NAME = 100  # of the 255 bytes that file systems allow
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
Values = Mapping[str, Any]  # dotted key of the recipe -> value


@dataclass(frozen=True)
class SweepRun:
    """One run: the name of its folder, and its `section.key=value` overrides."""

    name: str
    overrides: tuple[str, ...]


def load_sweep(path: Path) -> list[SweepRun]:
    """The runs of a sweep file: all combinations of `grid`, then those of the list `runs`.

    Raises ConfigError with every problem of the file. Whether the recipe has the keys, and takes the values, is seen
    when they are applied.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 text: {error}"
        raise ConfigError(f"{path}: the sweep cannot be read ({reason}): give the path of a YAML file") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict) or not data:
        raise ConfigError(
            f"{path}: a sweep holds grid (lists of values by key), runs (a list of sections) or both, this file holds "
            f"{shown(data)}: write it like grid: {{optim.lr: [1e-3, 3e-4]}}"
        )
    raise_problems(str(path), list(_form_problems(data)))
    given = [*_combinations(data.get("grid") or {}), *(data.get("runs") or [])]
    names = [run.get("name") for run in given]
    values = [{key: value for key, value in run.items() if key != "name"} for run in given]
    raise_problems(str(path), list(_run_problems(names, values)))
    found = [name or made for name, made in zip(names, _names(values), strict=True)]
    raise_problems(str(path), [f"two runs are called {name}: rename one" for name in _repeated(found)])
    return [SweepRun(name, tuple(map(_override, run.items()))) for name, run in zip(found, values, strict=True)]


def _form_problems(data: Mapping[str, Any]) -> Iterator[str]:
    """What keeps the file from being a grid and a list of runs."""
    for key in data:
        if key not in _PARTS:
            close = closest(key, _PARTS)
            yield f"{key} is unknown: {f'did you mean {close}?' if close else 'a sweep holds grid, runs or both'}"
    grid, runs = data.get("grid") or {}, data.get("runs") or []
    if not isinstance(grid, dict):
        yield f"grid={shown(grid)} should be a section: a list of values by key, like optim.lr: [1e-3, 3e-4]"
        grid = {}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            yield f"grid.{key}={shown(values)} should be a list of values: put them in brackets"
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        yield f"runs={shown(runs)} should be a list of sections: a dash before each, like - {{optim.lr: 1e-3}}"
    count = 1
    for values in grid.values():
        count *= len(values) if isinstance(values, list) else 1
    if count > _MOST_RUNS:
        yield f"grid has {count:,} combinations, more than {_MOST_RUNS:,}: split the sweep"


def _combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    if not grid:
        return []
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _run_problems(names: Sequence[Any], values: Sequence[Values]) -> Iterator[str]:
    """What keeps combinations from being runs."""
    if not values:
        yield "the sweep has no run: give grid or runs some"
    for key in dict.fromkeys(key for run in values for key in run):
        if key == "run.dir":
            yield "run.dir is made by the sweep, a folder a run: set that of the whole sweep in the recipe"
        elif key in SECTIONS:
            yield f"{key} is a section of the recipe: name its keys, like {key}.{_first_key(key)}"
    for number, (name, run) in enumerate(zip(names, values, strict=True), start=1):
        if name is not None and (not isinstance(name, str) or not _NAME.fullmatch(name) or name == "submit"):
            yield f"name={shown(name)} cannot name a run's folder: use letters, digits and . _ = + -, and not submit"
        if not run and name is None:
            yield f"run {number} is empty: set a key, or give it a name"
    for text in _repeated([json.dumps(run, sort_keys=True, default=str) for run in values]):
        yield f"two runs set the same: {shown(json.loads(text))}: remove one"


def _first_key(section: str) -> str:
    return next(iter(SECTIONS[section].model_fields))


def _repeated(texts: Sequence[str]) -> list[str]:
    return [text for text, count in Counter(texts).items() if count > 1]


def _override(item: tuple[str, Any]) -> str:
    key, value = item
    is_plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./-][A-Za-z0-9_./-]*", value)
    if is_plain and parse_yaml(value, key) == value:
        return f"{key}={value}"
    return f"{key}={json.dumps(value, default=str)}"


def _names(values: Sequence[Values]) -> list[str]:
    """A readable name for each run, of its keys and values; two that would be called alike get a digest of them too."""
    keys = list(dict.fromkeys(key for run in values for key in run))
    leaves = Counter(key.rpartition(".")[2] for key in keys)
    short = {key: leaf if leaves[leaf := key.rpartition(".")[2]] == 1 else key for key in keys}
    names = ["-".join(f"{short[key]}={_word(value)}" for key, value in run.items()) for run in values]
    alike = set(_repeated([name.lower() for name in names]))  # some file systems take a and A for one name
    return [
        name
        if len(name) <= _LONGEST_NAME and name.lower() not in alike
        else f"{name[: _LONGEST_NAME - 9]}-{_digest(run)}"
        for name, run in zip(names, values, strict=True)
    ]


def _word(value: Any) -> str:
    """A value as a part of a file's name."""
    if isinstance(value, list):
        return "_".join(map(_word, value))
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_") or "_"


def _digest(run: Values) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()[:8]
