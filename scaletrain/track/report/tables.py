"""The parts of the page that are plain HTML, and are read without any script: tables of runs, differences, events."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

import numpy as np

from scaletrain.track.curves import Columns
from scaletrain.track.recorded import time_of
from scaletrain.track.report.run import ReportedRun

_EVENTS = 500  # of a run, in the table
_CHARACTERS = 300  # of a value
_TEXTS = 50  # evaluations of a run
_HIDDEN = ("event", "time", "step", "rank", "sample_digest", "digest")


def notes(runs: Sequence[ReportedRun], data: Sequence[Mapping[str, Any]]) -> str:
    """What a reader should know of the numbers."""
    told = []
    for run, curves in zip(runs, data, strict=True):
        told += [f"{run.name}: {fault}" for fault in run.faults]
        if (shown := len(curves["training"]["step"])) < curves["rows"]:
            told.append(
                f"{run.name}: {shown:,} of {curves['rows']:,} logged steps are in this page, those with the least and "
                "the greatest loss of each part; metrics.jsonl holds them all"
            )
        if curves["not_finite"]:
            told.append(f"{run.name}: {curves['not_finite']:,} logged values are not finite, and gaps here")
        if not curves["rows"]:
            told.append(f"{run.name}: no step is logged yet")
    return f"<ul class='notes'>{''.join(f'<li>{escape(line)}' for line in told)}</ul>" if told else ""


def summary(runs: Sequence[ReportedRun]) -> str:
    """A row a run."""
    head = ("run", "state", "step", "last loss", "least loss", "last evaluation", "tokens/s", "MFU", "peak memory")
    return _table(head, [[run.name, _state(run), *_figures(run)] for run in runs])


def _state(run: ReportedRun) -> str:
    last = run.recorded.events[-1] if run.recorded.events else {}
    return {"end": "done", "stop": f"stopped: {last.get('reason', '')}"}.get(last.get("event", ""), "not at its end")


def _figures(run: ReportedRun) -> list[str]:
    training, evaluations = run.recorded.curves.training, run.recorded.curves.evaluations
    total, losses = run.recorded.total_steps, training.column("loss")
    step = f"{training.steps[-1]:,}" if len(training) else "-"
    finite = np.isfinite(losses)
    least = int(np.argmin(np.where(finite, losses, np.inf))) if finite.any() else None
    values = {name: evaluations.last(name) for name in evaluations.values}
    evaluated = ", ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:3] if value is not None)
    memory = training.last("peak_memory_bytes")
    return [
        step + (f" of {total:,}" if total is not None else ""),
        _shown(training.last("loss")),
        f"{losses[least]:.4f} at {training.steps[least]:,}" if least is not None else "-",
        evaluated or "-",
        _shown(_median(training, "tokens_per_second"), ",.0f"),
        _shown(_median(training, "mfu"), ".1%"),
        f"{memory / 2**30:.2f} GiB" if memory is not None else "-",
    ]


def planned(runs: Sequence[ReportedRun]) -> str:
    """Planned against measured, of the runs whose folders tell a plan."""
    rows = []
    for run in runs:
        training = run.recorded.curves.training
        peak = _sum(run.plan, ("peak_bytes", "process_bytes"))
        measured = training.last("peak_memory_bytes")
        rate, reached = run.plan.get("tokens_per_second"), _median(training, "tokens_per_second")
        if peak is not None:
            rows.append([run.name, "memory of a rank", *_beside(peak / 2**30, _over(measured, 2**30), ".2f", " GiB")])
        if isinstance(rate, (int, float)):
            rows.append([run.name, "tokens/s", *_beside(float(rate), reached, ",.0f", "")])
        parts = run.plan.get("parts")
        for part, size in parts.items() if isinstance(parts, dict) else ():
            if isinstance(size, (int, float)):
                rows.append([run.name, f"of it {part}", f"{size / 2**30:.2f} GiB", "-", "-"])
    table = _table(("run", "what", "planned", "measured", "measured / planned"), rows)
    return f"<section><h2>Planned and measured</h2>{table}</section>" if rows else ""


def differences(runs: Sequence[ReportedRun]) -> str:
    """Keys of recipes and environments whose values differ; of a single run all of them, folded away."""
    parts = []
    for title, found in (("Recipe", [r.recipe for r in runs]), ("Environment", [r.environment for r in runs])):
        keys = list(dict.fromkeys(key for one in found for key in one))
        if len(runs) > 1:
            keys = [key for key in keys if len({one.get(key) for one in found}) > 1]
        rows = [[key, *(_cut(one.get(key, "-")) for one in found)] for key in keys]
        table = _table(("key", *(run.name for run in runs)), rows) if rows else "<p>No key differs.</p>"
        if len(runs) > 1:
            parts.append(f"<h3>{title}: keys that differ</h3>{table}")
        else:
            parts.append(f"<details><summary>{title} ({len(rows)} keys)</summary>{table}</details>")
    return "".join(parts)


def told_events(run: ReportedRun) -> list[dict[str, Any]]:
    """For the time line: kind, step, time and a line."""
    return [
        {"event": event["event"], "step": event["step"], "time": time_of(event), "text": _cut(_details(event))}
        for event in run.recorded.events
    ]


def events(runs: Sequence[ReportedRun]) -> str:
    """All of them, folded away: what the time line shows, in words."""
    parts = []
    for run in runs:
        found = run.recorded.events
        rows = [[_clock(time_of(e)), e["event"], f"{e['step']:,}", _cut(_details(e))] for e in found[-_EVENTS:]]
        which = f"the last {_EVENTS} of {len(found):,}" if len(found) > _EVENTS else f"{len(found)}"
        table = _table(("time", "event", "step", "details"), rows)
        parts.append(f"<details><summary>{escape(run.name)}: {which} events</summary>{table}</details>")
    return "".join(parts)


def samples(runs: Sequence[ReportedRun]) -> str:
    """What the models wrote and predicted in their last evaluations, of the runs that keep it."""
    parts = []
    for run in runs:
        if texts := run.recorded.texts[-_TEXTS:]:
            rows = [
                [f"{event['step']:,}", *(_text(one.get(name, "-")) for name in ("prompt", "text"))]
                for event in reversed(texts)
                for one in event["texts"]
            ]
            which = f"the last {_TEXTS} of {len(run.recorded.texts):,}" if len(run.recorded.texts) > _TEXTS else "all"
            head = f"{escape(run.name)}: texts of {which} evaluations"
            parts.append(f"<details><summary>{head}</summary>{_table(('step', 'prompt', 'text'), rows)}</details>")
        if run.predictions:
            names = [n for n in dict.fromkeys(n for row in run.predictions for n in row) if n != "logits"]
            rows = [[_cut(_text(row.get(name, "-"))) for name in names] for row in run.predictions]
            head = f"{escape(run.name)}: the first {len(rows)} rows"
            parts.append(f"<details><summary>{head}</summary>{_table(names, rows)}</details>")
    return f"<section><h2>What the models said</h2>{''.join(parts)}</section>" if parts else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Escapes every cell. The first cell of a row names it."""
    top = "".join(f"<th scope='col'>{escape(cell)}" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(c)}" if n else f"<th scope='row'>{escape(c)}" for n, c in enumerate(row))
        for row in rows
    )
    return f"<div class='wide' tabindex='0'><table><thead><tr>{top}</thead><tbody>{body}</tbody></table></div>"


def _details(event: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in event.items() if name not in _HIDDEN)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"


def _clock(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}" if seconds is not None else "-"


def _median(table: Columns, name: str) -> float | None:
    values = table.column(name)
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def _shown(value: float | None, form: str = ".4f") -> str:
    return format(value, form) if value is not None and math.isfinite(value) else "-"


def _sum(plan: Mapping[str, Any], names: Iterable[str]) -> float | None:
    found = [plan[name] for name in names if isinstance(plan.get(name), (int, float))]
    return float(sum(found)) if found else None


def _over(value: float | None, unit: float) -> float | None:
    return value / unit if value is not None else None


def _beside(plan: float, measured: float | None, form: str, unit: str) -> list[str]:
    told = f"{measured:{form}}{unit}" if measured is not None else "-"
    return [f"{plan:{form}}{unit}", told, f"{measured / plan:.2f}" if measured is not None and plan else "-"]
