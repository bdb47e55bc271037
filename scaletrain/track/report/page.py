"""The page itself: what runs recorded, put into one HTML file that needs no network."""

import json
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from scaletrain.runtime.files import write_whole
from scaletrain.track.report import tables
from scaletrain.track.report.columns import POINTS_OF_ALL, POINTS_OF_RUN, curves_of
from scaletrain.track.report.run import ReportedRun

_SOURCES = files("scaletrain.track.report")
_SCRIPTS = ("uplot/uPlot.iife.min.js", "series.js", "charts.js", "timeline.js", "page.js")
_STYLES = ("uplot/uPlot.min.css", "page.css")


def write_page(runs: Sequence[ReportedRun], path: Path) -> None:
    """Overwrites the file at `path`."""
    write_whole(path, make_page(runs))


def make_page(runs: Sequence[ReportedRun]) -> str:
    """All of it as HTML. What comes from the runs is escaped, in text and in data."""
    limit = min(POINTS_OF_RUN, POINTS_OF_ALL // len(runs))
    data = [
        {"name": run.name, **curves_of(run.recorded.curves, limit), "events": tables.told_events(run)} for run in runs
    ]
    parts = {
        "title": escape(_title([run.name for run in runs])),
        "license": _read("uplot/LICENSE").replace("--", "- -"),
        "styles": "\n".join(map(_read, _STYLES)),
        "scripts": "\n".join(f"<script>\n{_read(name)}</script>" for name in _SCRIPTS),
        "data": _as_script(data),
        "notes": tables.notes(runs, data),
        "summary": tables.summary(runs),
        "plan": tables.planned(runs),
        "differences": tables.differences(runs),
        "events": tables.events(runs),
        "samples": tables.samples(runs),
    }
    # In one pass: what is put in is not searched for more.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def _title(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} runs: {names[0]} to {names[-1]}"


def _as_script(value: Any) -> str:
    """JSON that no browser takes for the end of its script, whatever the strings hold."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _read(name: str) -> str:
    return _SOURCES.joinpath(name).read_text(encoding="utf-8")
