"""Fetches real labelled data and small models, and writes the files that recipes read:

    python -m benchmarks.real_data --list
    python -m benchmarks.real_data spam film minilm [--output data/real]
    python -m benchmarks.real_data all

Downloads are kept in downloads/ of $SCALETRAIN_CACHE, by default ~/.cache/scaletrain.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.real_data.build import build
from benchmarks.real_data.files import Counts
from benchmarks.real_data.sets import SETS
from scaletrain.config.problems import closest
from scaletrain.config.schema import Data
from scaletrain.data.cache_folder import cache_folder
from scaletrain.errors import EXIT_USER, DataError, ScaleTrainError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of --list, or all")
    parser.add_argument("--output", type=Path, default=Path("data/real"), help="each name gets a folder in it")
    parser.add_argument("--list", action="store_true", help="show the names")
    args = parser.parse_args()
    if args.list or not args.names:
        Console().print(_listed())
        return 0
    try:
        for name in _checked(args.names):
            began = time.perf_counter()
            folder, counts = build(name, args.output, cache_folder(Data()) / "downloads")
            print(f"{folder}: {_told(counts)} ({time.perf_counter() - began:.1f} s)", flush=True)
    except (ScaleTrainError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    return 0


def _checked(names: list[str]) -> list[str]:
    for name in names:
        if name not in SETS and name != "all":
            close = closest(name, SETS)
            remedy = f"did you mean {close}?" if close else "--list shows the names"
            raise DataError(f"{name!r} is none of the real data: {remedy}")
    return list(SETS) if "all" in names else names


def _told(counts: Counts) -> str:
    told = ", ".join(f"{value:,} {name}" for name, value in counts.items() if isinstance(value, int))
    return told + (f", labels {json.dumps(counts['labels'], ensure_ascii=False)}" if "labels" in counts else "")


def _listed() -> Table:
    table = Table("name", "what", "licence", "from")
    for name, real in SETS.items():
        table.add_row(name, real.about, real.licence, ", ".join(map(str, real.packages)))
    return table


if __name__ == "__main__":
    sys.exit(main())
