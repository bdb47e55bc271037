"""Where a run stands: what SLURM says of its job, and what its folder tells, also when SLURM does not know it."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scaletrain.cluster import submission
from scaletrain.cluster.slurm import Job, find_jobs
from scaletrain.cluster.submission import Submission
from scaletrain.commands.supervised_folder import holder
from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.config.load import AnyRecipe, recipe_class
from scaletrain.config.strict_yaml import parse_yaml
from scaletrain.engine.plan import plan_run
from scaletrain.engine.state import RunState
from scaletrain.errors import ClusterError, ConfigError
from scaletrain.runtime.launch import told_cause
from scaletrain.runtime.run_files import EVENTS, METRICS
from scaletrain.track.sinks import last_line, read_lines

_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Standing:
    """`state`: queued, requeued, running, done, stopped, failed, or damaged; `why`: more of it, if there is.

    `event` is the last one in the run's events since it was submitted (of all, if it was not).
    """

    folder: Path
    state: str
    why: str = ""
    step: int | None = None
    total: int | None = None
    metrics: Mapping[str, Any] | None = None  # the last logged step
    scores: Mapping[str, Any] | None = None  # of the last evaluation, with its step
    event: Mapping[str, Any] | None = None
    submission: Submission | None = None
    job: Job | None = None  # while SLURM knows it

    @property
    def waits(self) -> bool:
        return self.state in ("queued", "requeued")

    @property
    def is_live(self) -> bool:
        return self.waits or self.state == "running"

    @property
    def log(self) -> Path | None:
        """What the job has said, if it was submitted."""
        return None if self.submission is None else Path(os.path.normpath(self.folder / self.submission.log))


def is_run(folder: Path) -> bool:
    """Whether a run was begun or submitted in the folder."""
    return any((folder / name).exists() for name in (EVENTS, "checkpoints", submission.FILE))


def find_runs(folder: Path) -> list[Path]:
    """The folder itself, if it is a run's, or the runs of a sweep's folder. ConfigError for anything else."""
    if is_run(folder):
        return [folder]
    if not (runs := submission.submitted_below(folder)):
        raise ConfigError(f"{folder} is no run and no sweep: give the run.dir of one that was begun or submitted")
    return runs


def read_standings(runs: Sequence[Path]) -> list[Standing]:
    """Asks SLURM once for all."""
    submissions = {run: submission.read(run) for run in runs}
    jobs = find_jobs([sub.job for sub in submissions.values() if sub is not None])
    return [_standing(run, sub, jobs.get(sub.job) if sub is not None else None) for run, sub in submissions.items()]


def read_each(runs: Sequence[Path]) -> list[Standing]:
    """As read_standings, but records that cannot be read cost no other run its line: that run is `damaged`."""
    submissions: dict[Path, Submission | None] = {}
    told: dict[Path, Standing] = {}
    for run in runs:
        try:
            submissions[run] = submission.read(run)
        except ClusterError as error:
            told[run] = Standing(run, "damaged", str(error))
    jobs = find_jobs([sub.job for sub in submissions.values() if sub is not None])
    for run, sub in submissions.items():
        try:
            told[run] = _standing(run, sub, jobs.get(sub.job) if sub is not None else None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever the lines hold
            why = f"its records cannot be read ({type(error).__name__}: {error})"
            told[run] = Standing(run, "damaged", " ".join(why.split()))
    return [told[run] for run in runs]


def _standing(run: Path, sub: Submission | None, job: Job | None) -> Standing:
    events = _events_since(run / EVENTS, sub.events_bytes if sub is not None else 0)
    metrics, evaluated = (_last_metrics(run / METRICS, having) for having in ("loss", "eval_loss"))
    event = events[-1] if events else None
    state, why = _state(run, sub, job, events)
    return Standing(
        run, state, why,
        step=_step(metrics, event),
        total=_total_steps(run, metrics, events),
        metrics=metrics, scores=_scores(evaluated), event=event, submission=sub, job=job,
    )  # fmt: skip


def _state(run: Path, sub: Submission | None, job: Job | None, events: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """SLURM's word on a live job wins; after it, the run's own; a run whose end nobody tells has failed."""
    has_begun, last = bool(events), events[-1] if events else {}
    if job is not None and job.waits:
        expected = f"expected to start {job.start}" if job.start and not has_begun else ""
        why = ", ".join(text for text in (job.reason, expected) if text)
        return "requeued" if has_begun or job.state != "PENDING" else "queued", why
    is_over = last.get("event") in ("stop", "end")
    if (job is not None and job.is_live) or holder(run) is not None:
        return "running", "" if has_begun else "starting"
    if is_over:
        return ("done", "") if last["event"] == "end" else ("stopped", str(last.get("reason", "")))
    is_cancelled = job is not None and job.state == "CANCELLED"
    if not has_begun and sub is not None and (is_cancelled or (run / sub.cancelled).exists()):
        return "stopped", "cancelled before it began"
    if is_cancelled:
        return "stopped", "cancelled"
    return "failed", reason(run, sub, job)


def reason(run: Path, sub: Submission | None = None, job: Job | None = None) -> str:
    """Why a run that ended without a word of its own did: its log's last error, else SLURM's state of the job."""
    log = run / sub.log if sub is not None else run / "logs" / "rank-00000.log"
    if log.is_file() and (told := told_cause(_last_lines(log))) is not None:
        return told
    if job is not None and job.state != "COMPLETED":
        return " ".join(text for text in (job.state, job.reason) if text)
    return "it ended without a word, such as by a kill"


def _step(metrics: Mapping[str, Any] | None, event: Mapping[str, Any] | None) -> int | None:
    steps = [int(line["step"]) for line in (metrics, event) if line is not None]
    return max(steps, default=None)


def _total_steps(run: Path, metrics: Mapping[str, Any] | None, events: Sequence[Mapping[str, Any]]) -> int | None:
    """Steps of the whole run, as its last launch's recipe or its data's repeat limit set them; None before one."""
    limit = None
    for event in events:
        limit = event.get("last_step", None if event["event"] in ("start", "resume") else limit)
    if limit is not None:
        return int(limit)
    try:
        raw = parse_yaml((run / "recipe.yaml").read_text(encoding="utf-8"), "recipe.yaml")
        recipe = recipe_class(raw).model_validate(raw)
    except (OSError, ValidationError, ConfigError):  # of another version: the run's own program tells what is wrong
        return None
    return total_steps(recipe, metrics)


def total_steps(recipe: AnyRecipe, metrics: Mapping[str, Any] | None) -> int | None:
    """Steps of the whole run that stands where its last logged step tells, if the data allow them; None where only the
    data tell, or the recipe was changed and says nothing."""
    if isinstance(recipe, FinetuneRecipe) or (recipe.train.max_steps is None and recipe.train.max_tokens is None):
        return recipe.train.max_steps
    train, done = recipe.train, metrics or {}
    state = RunState(step=done.get("step", 0), samples_seen=done.get("samples", 0), tokens_seen=done.get("tokens", 0))
    context = recipe.data.context_length
    return plan_run(train, state, global_batch=train.global_batch_size, micro_batch=1, context=context).total_steps


def _events_since(path: Path, offset: int) -> list[dict[str, Any]]:
    """The events that were written behind `offset` bytes."""
    if not path.is_file() or path.stat().st_size <= offset:
        return []
    return [line for line in read_lines(path, offset) if "event" in line and "step" in line]


def _last_metrics(path: Path, having: str) -> dict[str, Any] | None:
    return last_line(path, having) if path.is_file() else None


def _scores(evaluated: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if evaluated is None:
        return None
    scores = {name.removeprefix("eval_"): float(value) for name, value in evaluated.items()}  # "nan" is one of them
    return {**scores, "step": int(evaluated["step"])}


def _last_lines(path: Path) -> list[str]:
    """Without the ranks' numbers that srun --label puts before them."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return [re.sub(r"^ *\d+: ", "", line) for line in lines]
