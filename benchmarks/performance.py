"""Writes docs/performance.md from the results that have the one form of record.py.

    python benchmarks/performance.py [RESULT.json ...] [--output docs/performance.md] [--check]

Without names: all of benchmarks/results but this machine's own (local-*.json). --check writes nothing, and exits with 1
when the page is not what the results give. plots.py draws the pictures into the folder beside the page.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import drawn_figures
from benchmarks.record import ROOT

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
HEAD = """# Performance

Written by `python benchmarks/performance.py` from `benchmarks/results/`; edit neither by hand. `make bench` measures
the same on your machine. A figure is the median over the rounds, with its range in brackets.
"""
NO_GPU = "No figure here is from a GPU yet: none was at hand.\n"
NO_RESULT = "No result is kept yet.\n"
ABOUT = {
    "throughput": "Training speed over a grid of models and ways to train them",
    "peers": "Training speed beside other trainers",
    "step_overhead": "What the engine costs beside a bare loop",
    "kernels": "Operations against their roofline",
    "scaling": "Ranks, contexts and depths",
    "optimizers": "Updates of Muon and AdamW",
    "plan_memory": "Planned memory beside what runs hold",
    "plan_speed": "Planned steps beside measured ones, calibrated by one run",
    "switches": "What the switches for speed and memory do to the loss, the step and the memory",
}


def results_in(folder: Path) -> list[Path]:
    """The results of the one form, this machine's own left out."""
    paths = (path for path in sorted(folder.glob("*.json")) if not path.name.startswith("local-"))
    return [path for path in paths if "benchmark" in json.loads(path.read_text(encoding="utf-8"))]


def page(results: Mapping[str, Mapping[str, Any]], pictures: str) -> str:
    """The whole page: a section a result, by the name of its file; pictures are in the folder `pictures` beside it."""
    parts = [HEAD]
    if not any(result["environment"]["device_type"] == "cuda" for result in results.values()):
        parts.append(NO_GPU)
    if not results:
        parts.append(NO_RESULT)
    parts += [section(name, result, pictures) for name, result in results.items()]
    return "\n".join(parts)


def section(name: str, result: Mapping[str, Any], pictures: str) -> str:
    about, benchmark = result["environment"], result["benchmark"]
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items() if version)
    settings = ", ".join(f"{key.replace('_', ' ')} {shown(key, value)}" for key, value in result["settings"].items())
    same, table = tabled(result["rows"])
    lines = [
        f"## {ABOUT.get(benchmark, benchmark)} ({name})",
        "",
        f"- Machine: {about['device']}, {about['cores']} cores, {about['threads']} threads; {about['platform']}"
        f"{rate_of(about)}",
        f"- Versions: {versions}; commit {about['git']}",
        f"- Command: `{' '.join(about['command'])}`",
    ]
    lines += [f"- Settings: {settings}"] if settings else []
    lines += [f"- In all rows: {same}"] if same else []
    lines += ["", *table, ""]
    if drawn_figures(result):
        lines += [f"![{benchmark}]({pictures}/{name}.png)", ""]
    lines += [*(f"- {formula}" for formula in result["formulas"]), ""] if result.get("formulas") else []
    return "\n".join(lines)


def rate_of(about: Mapping[str, Any]) -> str:
    """Of the machine when the result was written: what it reaches differs from day to day where others share it."""
    rate = about.get("matrix_rate")
    return "" if rate is None else f"; a large matrix product then: {rate / 1e12:,.3g} TFLOP/s"


def tabled(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """What is the same in all rows, in words, and the rest as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    alike = {n: rows[0][n] for n in names if len(rows) > 1 and all(n in row and row[n] == rows[0][n] for row in rows)}
    columns = sorted((name for name in names if name not in alike), key=lambda name: name != "name")
    body = [[shown(name, row.get(name)) for name in columns] for row in rows]
    table = [[name.replace("_", " ") for name in columns], ["---"] * len(columns), *body]
    same = ", ".join(f"{name.replace('_', ' ')} {shown(name, value)}" for name, value in alike.items())
    return same, [f"| {' | '.join(cells)} |" for cells in table]


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {None: "", True: "yes", False: "no"}.get(value, str(value).replace("|", "\\|"))


def shown(name: str, value: Any) -> str:
    """A figure for a person; its name tells the unit."""
    if isinstance(value, dict):
        return "{median} ({low} to {high})".format(
            **{key: shown(name, value[key]) for key in ("median", "low", "high")}
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _in_words(value)
    if name.endswith("seconds"):
        return f"{1000 * value:,.3g} ms" if value < 1 else f"{value:,.3g} s"
    if name.endswith("bytes"):
        return f"{value / 1e9:,.3g} GB" if value >= 1e9 else f"{value / 1e6:,.3g} MB"
    if name.startswith(("share", "profile", "mfu", "hfu")):
        return f"{value:.1%}"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(words)
    paths = args.results or results_in(RESULTS)
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    text, folder = page(results, args.output.stem), args.output.with_suffix("")
    if not args.check:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding="utf-8")
        return 0
    wrong = [f"{folder / name}.png" for name, result in results.items() if drawn_figures(result)]
    wrong = [f"{picture} is missing: run benchmarks/plots.py" for picture in wrong if not Path(picture).is_file()]
    if not args.output.is_file() or args.output.read_text(encoding="utf-8") != text:
        wrong.append(f"{args.output} is not what the results give: run benchmarks/performance.py")
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
