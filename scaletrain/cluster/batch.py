"""The text of a SLURM job script: a header of our own, what the job is told, and the body that ranks start in. Pure."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scaletrain.errors import ClusterError

BODY_BEGINS = "set -euo pipefail"
_SIGNAL_SECONDS = 300  # before the limit, unless it is short; SLURM may send it up to a minute earlier
_TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(?:(\d+):)?(\d+):)?(\d+))")


@dataclass(frozen=True)
class Batch:
    """What SLURM is asked for. `options`: further ones by name, such as partition; an empty one is left out."""

    name: str
    workdir: Path
    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    limit_seconds: int
    signal_seconds: int
    options: Mapping[str, str] = field(default_factory=dict)
    log: Path = Path("%j.log")
    array: str | None = None  # 1-12%4

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def limit(self) -> str:
        """HH:MM:SS."""
        minutes, seconds = divmod(self.limit_seconds, 60)
        return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"


@dataclass(frozen=True)
class Told:
    """What a job gets by its script: recipe, DeepSpeed file, the file that keeps it from training, and variables.

    The files lie in `folder`; in an array each task has its own.
    """

    folder: Path
    variables: Mapping[str, str]
    comments: Sequence[str] = ()

    def recipe(self, task: int | str | None = None) -> Path:
        return self.folder / ("recipe.yaml" if task is None else f"recipe-{task}.yaml")

    def deepspeed(self, task: int | str | None = None) -> Path:
        return self.folder / ("deepspeed.json" if task is None else f"deepspeed-{task}.json")

    def cancelled(self, task: int | str | None = None) -> Path:
        """When it exists, a launch that begins ends at once."""
        return self.folder / ("cancelled" if task is None else f"cancelled-{task}")


def limit_seconds(text: str) -> int:
    """Seconds of a SLURM time: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s. ClusterError for anything else, and for 0,
    which SLURM takes as no limit: such a job would never be told to save."""
    match = _TIME.fullmatch(text)
    days, day_hours, day_minutes, day_seconds, hours, minutes, last = (
        [int(part or 0) for part in match.groups()] if match else [0] * 7
    )
    minutes, seconds = (minutes, last) if match and match[6] else (last, 0)
    found = ((days * 24 + day_hours + hours) * 60 + day_minutes + minutes) * 60 + day_seconds + seconds
    if not found:
        raise ClusterError(
            f"--time {text} is not a time limit: write it like 90 (minutes), 24:00:00 (hours) or 2-12 (days and hours)"
        )
    return found


def signal_seconds(limit: int, wanted: int | None) -> int:
    """How long before the limit the ranks are told to save. ClusterError when they would be told at the start."""
    if wanted is None:
        return min(_SIGNAL_SECONDS, limit // 5)
    if wanted >= limit:
        raise ClusterError(
            f"--signal-seconds {wanted} is not below the time limit of {limit:,} s: the job would stop as it starts"
        )
    return wanted


def body_of(path: Path) -> str:
    """The part of a shipped job script that does not depend on who writes the header."""
    text = path.read_text(encoding="utf-8")
    _, begins, rest = text.partition(f"\n{BODY_BEGINS}\n")
    if not begins:
        raise ClusterError(f"{path} has no line `{BODY_BEGINS}`, where its body begins: take it from the repository")
    return f"{BODY_BEGINS}\n{rest}"


def job_script(batch: Batch, told: Told, body: str) -> str:
    """The whole script. ClusterError when an option cannot stand in it."""
    task = '"$SLURM_ARRAY_TASK_ID"' if batch.array else None
    variables = {name: shlex.quote(value) for name, value in told.variables.items()}
    variables["SCALETRAIN_CANCELLED"] = _quoted(told.cancelled(task))
    lines = [
        "#!/bin/bash",
        *(f"# {' '.join(line.split())}" for line in told.comments),
        *(_option(name, value) for name, value in _options(batch).items()),
        "",
        *(f"export {name}={value}" for name, value in variables.items()),
        'if [ -e "$SCALETRAIN_CANCELLED" ]; then exit 75; fi # while the job waited or began',
        f"set -- {_quoted(told.recipe(task))}",
        "",
        body,
    ]
    return "\n".join(lines)


def set_options(batch: Batch) -> list[str]:
    """The names of the options of sbatch that the script sets."""
    return list(_options(batch))


def _quoted(path: Path) -> str:
    """A path for the shell, whose name may hold the number of an array's task."""
    return f"{shlex.quote(str(path.parent))}/{path.name}"


def _options(batch: Batch) -> dict[str, str]:
    found = {
        "job-name": batch.name,
        "chdir": str(batch.workdir),
        "output": str(batch.log.parent).replace("%", "%%") + f"/{batch.log.name}",
        "open-mode": "append",  # a job that comes back writes on
        "nodes": str(batch.nodes),
        "ntasks-per-node": str(batch.ranks_per_node),
        "gpus-per-node": str(batch.gpus_per_node) if batch.gpus_per_node else "",
        "time": batch.limit,
        "signal": f"USR1@{batch.signal_seconds}",  # to the ranks, not to the batch shell
        **batch.options,
        "array": batch.array or "",
    }
    return {name: value for name, value in found.items() if value} | {"requeue": ""}


def _option(name: str, value: str) -> str:
    if not value.isprintable():
        raise ClusterError(f"--{name} {value!r} cannot stand in a job script: it is more than one line of text")
    return f"#SBATCH --{name}={shlex.quote(value)}" if value else f"#SBATCH --{name}"


def container(image: str, mounts: Sequence[Path], workdir: Path, *, gpus: bool) -> dict[str, str]:
    """The body's variables by which ranks run in a container: in Apptainer (a .sif file or a URL), else through Pyxis.

    Each mount is seen under its own path inside. The body splits the variables at spaces.
    """
    for text, bad in [(image, r"\s|^$"), *((str(path), r"[\s,:]") for path in mounts)]:
        if re.search(bad, text):
            raise ClusterError(
                f"--container cannot use {text!r}: a path that it mounts holds no space, comma or colon, an image no "
                "space: rename it"
            )
    if image.endswith(".sif") or "://" in image:
        nvidia = "--nv " if gpus else ""
        bind = ",".join(map(str, mounts))
        return {"SCALETRAIN_PYTHON": f"apptainer exec {nvidia}--bind {bind} --pwd {workdir} {image} python"}
    places = ",".join(f"{path}:{path}" for path in mounts)
    options = f"--container-image={image} --container-workdir={workdir} --container-mounts={places}"
    return {"SCALETRAIN_PYTHON": "python", "SCALETRAIN_SRUN": options}


def array_of(tasks: Sequence[int], most_at_once: int | None) -> str:
    """Task numbers, in order, as SLURM writes them: 1-3,7%4."""
    spans: list[list[int]] = []
    for task in tasks:
        if spans and spans[-1][1] == task - 1:
            spans[-1][1] = task
        else:
            spans.append([task, task])
    text = ",".join(f"{first}-{last}" if first < last else f"{first}" for first, last in spans)
    return text if most_at_once is None else f"{text}%{most_at_once}"
