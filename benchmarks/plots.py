"""Draws results as PNG: python benchmarks/plots.py RESULT.json ... [--folder docs/performance]"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.record import ROOT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]


def figures_with_spread(rows: Rows) -> list[str]:
    """The names of what was measured in several rounds, in the rows' order."""
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, dict)))


def middle_and_reach(value: Any) -> tuple[float, float, float]:
    """A figure's median, and how far its range goes below and above; a plain number has no range."""
    if not isinstance(value, dict):
        return float(value), 0.0, 0.0
    return value["median"], value["median"] - value["low"], value["high"] - value["median"]


def bars(rows: Rows, names: Sequence[str]) -> "Figure | None":
    """A panel a figure, a bar a row with the range over the rounds. None: no row has any of them."""
    names = [name for name in names if any(name in row for row in rows)]
    if not names:
        return None
    rows = [row for row in rows if any(name in row for name in names)]
    figure, panels = _panels(len(names), height=1.2 + 0.35 * len(rows))
    for panel, name in zip(panels, names, strict=True):
        middles, below, above = zip(*(middle_and_reach(row.get(name, math.nan)) for row in rows), strict=True)
        panel.barh([row["name"] for row in rows], middles, xerr=[below, above], capsize=3, color="#4c78a8")
        panel.invert_yaxis()
        panel.tick_params(labelleft=panel is panels[0])
        panel.set_xlabel(name.replace("_", " "))
    return figure


def lines(rows: Rows, names: Sequence[str] | None = None) -> "Figure | None":
    """A panel a figure (default: all with a range), a line a `series` over `x`. None: no row has any of them."""
    rows = [row for row in rows if "series" in row and "x" in row]
    names = [name for name in names or figures_with_spread(rows) if any(name in row for row in rows)]
    if not names:
        return None
    figure, panels = _panels(len(names), height=4)
    for panel, name in zip(panels, names, strict=True):
        for series in dict.fromkeys(row["series"] for row in rows if name in row):
            points = sorted(
                (row["x"], middle_and_reach(row[name])) for row in rows if row["series"] == series and name in row
            )
            places, values = zip(*points, strict=True)
            middles, below, above = zip(*values, strict=True)
            panel.errorbar(places, middles, yerr=[below, above], marker="o", capsize=3, label=series)
        panel.set_xlabel("x")
        panel.set_ylabel(name.replace("_", " "))
        panel.legend(fontsize="small")
    return figure


def _panels(count: int, height: float) -> tuple["Figure", list[Any]]:
    from matplotlib.figure import Figure  # without pyplot: no window system is asked for

    figure = Figure(figsize=(7 * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


# By the name of the benchmark; one that is not here has a table only.
PLOTS: dict[str, Callable[[Rows], "Figure | None"]] = {
    "throughput": partial(bars, names=("tokens_per_second", "mfu")),
    "peers": partial(bars, names=("tokens_per_second", "share_of_matrix_rate")),
    "step_overhead": partial(bars, names=("ratio",)),
    "kernels": partial(bars, names=("share_of_roofline",)),
    "scaling": lines,
}


def draw(result: Path, folder: Path) -> Path | None:
    """The picture of a result, named as the result's file; None where there is nothing to draw."""
    found = json.loads(result.read_text(encoding="utf-8"))
    plot = PLOTS.get(found.get("benchmark"))
    figure = plot(found["rows"]) if plot is not None else None
    if figure is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.stem}.png"
    figure.savefig(path, dpi=120)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "performance")
    args = parser.parse_args()
    for result in args.results:
        print(draw(result, args.folder) or f"{result}: nothing to draw")


if __name__ == "__main__":
    main()
