"""One look at a run, as lines for a terminal: where it is, how the loss moves, how fast, and what happened last."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from scaletrain.track.curves import Columns
from scaletrain.track.recorded import Recorded, time_of

_BARS = "▁▂▃▄▅▆▇█"
_NOT_FINITE = "x"
_SMOOTHING = 0.9  # of the logged losses before
_RECENT = 20  # logged lines that speed and time left are told from
_EVENTS = 6
_HIDDEN = ("event", "time", "step", "rank", "host", "sample_digest", "samples_seen", "passed_over", "digest")


def draw_frame(run: Recorded, state: str, width: int) -> Table:
    """`state` in a word or two; `width` of the terminal."""
    table = Table.grid(padding=(0, 2), expand=False)
    table.add_column(style="bold", no_wrap=True, min_width=10)
    table.add_column(overflow="fold")
    room = max(20, width - 14)
    table.add_row("run", _plain(f"{run.folder}"))
    table.add_row("state", _plain(state))
    for name, line in _lines(run, room):
        table.add_row(name, _plain(line))
    for number, event in enumerate(run.events[-_EVENTS:]):
        table.add_row("" if number else "events", _plain(_cut(_of_event(event), room)))
    return table


def _lines(run: Recorded, room: int) -> Iterator[tuple[str, str]]:
    training, evaluations, total = run.curves.training, run.curves.evaluations, run.total_steps
    step = training.steps[-1] if training.steps else 0
    yield "step", _progress(step, total, room) + _time_left(training, total)
    if len(training):
        losses = list(training.values.get("loss", ()))
        yield "loss", f"{_loss(losses[-1])} last, {_loss(_smoothed(losses))} smoothed" if losses else "-"
        yield "", sparkline(losses, min(room, 72))
    if len(evaluations):
        yield "evaluation", _evaluation(evaluations)
    for number, one in enumerate(run.texts[-1]["texts"] if run.texts else ()):
        yield "" if number else "writes", _cut(f"{one.get('prompt')} ... {one.get('text')}", room)
    if len(training):
        yield "speed", _speed(training)
        yield "memory", _memory(training)
        if spread := _spread(run):
            yield "ranks", spread
        if skipped := training.last("skipped_steps"):
            yield "skipped", f"{skipped:,.0f} updates left out"
    if run.unreadable:
        yield "damaged", f"{run.unreadable:,} lines of its records cannot be read"


def _progress(step: int, total: int | None, room: int) -> str:
    if not total:
        return f"{step:,}"
    size = min(30, room // 3)
    full = round(size * min(1.0, step / total))
    return f"{'━' * full}{'─' * (size - full)} {step:,} of {total:,} ({step / total:.1%})"


def _time_left(training: Columns, total: int | None) -> str:
    seconds = _recent(training, "step_seconds")
    if total is None or seconds is None or total <= training.steps[-1]:
        return ""
    return f", {_clock((total - training.steps[-1]) * seconds)} of training left"


def _recent(training: Columns, name: str) -> float | None:
    """The mean of the last lines' finite values."""
    found = [value for value in training.values.get(name, ())[-_RECENT:] if math.isfinite(value)]
    return sum(found) / len(found) if found else None


def _smoothed(losses: Sequence[float]) -> float:
    """An exponential mean of the last finite losses."""
    mean, weight = 0.0, 0.0
    for loss in losses[-200:]:  # what is older counts less than a billionth
        if math.isfinite(loss):
            mean, weight = mean * _SMOOTHING + loss * (1 - _SMOOTHING), weight * _SMOOTHING + 1 - _SMOOTHING
    return mean / weight if weight else math.nan


def sparkline(values: Sequence[float], width: int) -> str:
    """Means of equal parts of the values as bars from the least to the greatest; x where none is a finite number."""
    parts = [values[a:b] for a, b in pairwise(np.linspace(0, len(values), min(width, len(values)) + 1).astype(int))]
    means = [float(np.mean(kept)) if (kept := [v for v in part if math.isfinite(v)]) else math.nan for part in parts]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] if math.isfinite(mean) else _NOT_FINITE for mean in means)


def _evaluation(table: Columns) -> str:
    values = {name: value for name in table.values if (value := table.last(name)) is not None}
    told = [f"{name} {value:.4g}" for name, value in values.items()]
    losses = table.column("loss")
    if np.isfinite(losses).any():
        best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
        told.insert(1, f"least {losses[best]:.4g} at step {table.steps[best]:,}")
    return f"step {table.steps[-1]:,}: {', '.join(told[:6]) or '-'}"


def _speed(training: Columns) -> str:
    names = ("tokens_per_second", "mfu", "step_seconds", "data_wait_seconds")
    rate, mfu, step, wait = (_recent(training, name) for name in names)
    told = [f"{rate:,.0f} tok/s" if rate is not None else "", f"mfu {mfu:.1%}" if mfu is not None else ""]
    if step is not None:
        told.append(f"{step:.3g} s a step")
    if step and wait is not None:
        told.append(f"{wait / step:.1%} of it waiting for data")
    return ", ".join(part for part in told if part) or "-"


def _memory(training: Columns) -> str:
    peak = training.last("peak_memory_bytes")
    return f"{peak / 2**30:.2f} GiB at most on rank 0" if peak is not None else "-"


def _spread(run: Recorded) -> str:
    """How far the slowest rank is behind the middle one, and which is told as slow."""
    middle, worst = (run.curves.training.last(f"rank_seconds_{name}") for name in ("median", "max"))
    if not middle or worst is None:
        return ""
    told = f"own time a step: median {middle:.3g} s, slowest {worst:.3g} s ({worst / middle:.2f} times)"
    slow = next((e for e in reversed(run.events) if e["event"] in ("straggler", "start", "resume")), None)
    if slow is None or slow.get("change") != "slow":
        return told
    return f"{told}; rank {slow.get('slow_rank')} on {slow.get('slow_host')} is slow"


def _of_event(event: Mapping[str, Any]) -> str:
    when = time_of(event)
    clock = "" if when is None else f"{datetime.fromtimestamp(when):%m-%d %H:%M:%S}  "
    more = ", ".join(f"{name} {_value(value)}" for name, value in event.items() if name not in _HIDDEN)
    return f"{clock}{event['event']} at step {event['step']:,}" + (f": {more}" if more else "")


def _value(value: Any) -> str:
    """In a word or two: of what holds more, the names."""
    if isinstance(value, Mapping):
        return f"({', '.join(map(str, value))})"
    if isinstance(value, list):
        return f"{len(value)}" if any(isinstance(one, (Mapping, list)) for one in value) else ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "not finite"


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{seconds / 60:.1f} min"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _plain(text: str) -> Text:
    """Nothing that a run wrote may steer the terminal."""
    return Text("".join(character if character.isprintable() else " " for character in text))
