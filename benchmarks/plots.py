"""Draws results as PNG: python benchmarks/plots.py RESULT.json ... [--folder docs/performance]"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.record import ROOT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]


def middle_and_reach(value: Any) -> tuple[float, float, float]:
    """A figure's median, and how far its range goes below and above; a plain number has no range."""
    if not isinstance(value, dict):
        return float(value), 0.0, 0.0
    return value["median"], value["median"] - value["low"], value["high"] - value["median"]


def bars(rows: Rows, names: Sequence[str]) -> "Figure":
    """A panel a figure, a bar a row with the range over the rounds."""
    rows = [row for row in rows if any(name in row for name in names)]
    figure, panels = _panels(len(names), height=1.2 + 0.35 * len(rows))
    for panel, name in zip(panels, names, strict=True):
        middles, below, above = zip(*(middle_and_reach(row.get(name, math.nan)) for row in rows), strict=True)
        panel.barh([row["name"] for row in rows], middles, xerr=[below, above], capsize=3, color="#4c78a8")
        panel.invert_yaxis()
        panel.tick_params(labelleft=panel is panels[0])
        panel.set_xlabel(name.replace("_", " "))
    return figure


def lines(rows: Rows, names: Sequence[str]) -> "Figure":
    """A panel a figure and `x_name` (what `x` counts), a line a `series` over `x`."""
    points = [(row.get("x_name", "x"), row["series"], row["x"], row) for row in rows if "series" in row and "x" in row]
    wanted = [(x, name) for x in dict.fromkeys(point[0] for point in points) for name in names]
    wanted = [(x, name) for x, name in wanted if any(point[0] == x and name in point[3] for point in points)]
    figure, panels = _panels(len(wanted), height=4)
    for panel, (x, name) in zip(panels, wanted, strict=True):
        held = [(series, at, row[name]) for x_name, series, at, row in points if x_name == x and name in row]
        for series in dict.fromkeys(one[0] for one in held):
            line = sorted((at, middle_and_reach(value)) for other, at, value in held if other == series)
            middles, below, above = zip(*(values for _, values in line), strict=True)
            panel.errorbar([at for at, _ in line], middles, yerr=[below, above], marker="o", capsize=3, label=series)
        panel.set_xlabel(x)
        panel.set_ylabel(name.replace("_", " "))
        panel.legend(fontsize="small")
    return figure


def _panels(count: int, height: float) -> tuple["Figure", list[Any]]:
    from matplotlib.figure import Figure  # without pyplot: no window system is asked for

    figure = Figure(figsize=(7 * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


# By the name of the benchmark: how it is drawn, and which figures; None: all with a range. Another has a table only.
PLOTS: dict[str, tuple[Callable[[Rows, Sequence[str]], "Figure"], tuple[str, ...] | None]] = {
    "throughput": (bars, ("tokens_per_second", "mfu")),
    "peers": (bars, ("tokens_per_second", "share_of_matrix_rate")),
    "step_overhead": (bars, ("ratio",)),
    "kernels": (bars, ("share_of_roofline",)),
    "scaling": (lines, None),
}


def drawn_figures(result: Mapping[str, Any]) -> list[str]:
    """What the picture of a result shows; empty: it has none."""
    if result.get("benchmark") not in PLOTS:
        return []
    _, names = PLOTS[result["benchmark"]]
    measured = {name: value for row in result["rows"] for name, value in row.items()}
    if names is None:
        return [name for name, value in measured.items() if isinstance(value, dict)]
    return [name for name in names if name in measured]


def draw(path: Path, folder: Path) -> Path | None:
    """Draws the result in `path`; the picture has the name of its file. None where there is nothing to draw."""
    result = json.loads(path.read_text(encoding="utf-8"))
    names = drawn_figures(result)
    if not names:
        return None
    plot, _ = PLOTS[result["benchmark"]]
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{path.stem}.png"
    plot(result["rows"], names).savefig(picture, dpi=120)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "performance")
    args = parser.parse_args()
    for result in args.results:
        print(draw(result, args.folder) or f"{result}: nothing to draw")


if __name__ == "__main__":
    main()
