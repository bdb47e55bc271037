"""Data loaders side by side: seconds to the first batch, seconds to resume, shuffled tokens a second, memory.

    python benchmarks/dataloader.py [--samples 100000 1000000 1000000000] [--rounds 3] [--seconds 4] [--data FOLDER]
        [--peers-python PYTHON] [--output benchmarks/results/NAME.json] [--clean]

A sample is 1,024 uint16 ids; every loader gives int64 inputs and labels of 32 samples, in one process that reads
nothing else. Each figure comes from a fresh process, and loaders take turns round after round. Seconds run from opening
the data to the batch, imports left out; "resume" goes on at 90% of the epoch. Memory is the peak above the imports,
and, looked at five times a second, its anonymous part and the pages of mapped files. The data is read once before, so
that all read from the page cache. From 100 million samples on only this project and numpy are run, on sparse files: a
row is then a hole, which costs no disk but is brought into the page cache like a read from one.

LitData and MosaicML Streaming are run by --peers-python, a virtual environment outside this one (MosaicML needs numpy
below 2.2 and transformers below 5): pip install mosaicml-streaming litdata 'transformers<5' 'numpy<2.2'.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scaletrain.engine.run_folder import environment
from scaletrain.runtime.dist import device_of
from scaletrain.runtime.files import hash_file
from scaletrain.runtime.world import World

PEERS = Path(__file__).parent / "peers"
SPARSE_SAMPLES = 100_000_000  # as in the loaders
OURS = "scaletrain"
DONE = "made.json"  # in a loader's data, written last: what is there is whole


@dataclass(frozen=True)
class Contestant:
    """A script in peers/, and how thorough its shuffle is."""

    script: str
    shuffle: str
    bytes_per_sample: int  # on disk
    has_own_python: bool = False
    is_large: bool = False  # can be run on sparse files


CONTESTANTS = {
    OURS: Contestant("loader_scaletrain.py", "full, computed", 2048, is_large=True),
    "numpy memmap": Contestant("loader_numpy.py", "full, stored permutation", 2056, is_large=True),
    "datasets, parquet stream": Contestant("loader_datasets.py", "files, then a buffer of 10,000", 4110),
    "LitData TokensLoader": Contestant("loader_litdata.py", "chunks, then inside each", 2050, has_own_python=True),
    "MosaicML Streaming": Contestant("loader_mosaic.py", "py1e, its default", 2060, has_own_python=True),
}


@dataclass(frozen=True)
class Bench:
    """Where and how long everything is measured."""

    data: Path
    seconds: float
    peers_python: Path | None

    def command(self, name: str, samples: int, *options: str) -> list[str]:
        contestant = CONTESTANTS[name]
        python = self.peers_python if contestant.has_own_python else sys.executable
        script = str(PEERS / contestant.script)
        return [str(python), script, str(self.folder(name, samples)), "--samples", str(samples), *options]

    def folder(self, name: str, samples: int) -> Path:
        return self.data / f"{Path(CONTESTANTS[name].script).stem}-{samples}"

    def names(self, samples: int) -> list[str]:
        """The loaders that can be run on so many samples."""
        return [
            name
            for name, contestant in CONTESTANTS.items()
            if (contestant.is_large or samples < SPARSE_SAMPLES)
            and (self.peers_python or not contestant.has_own_python)
        ]


def make_data(bench: Bench, samples: int) -> dict[str, float]:
    """Each loader's own form of the samples, made once by its script as it is now; the seconds that it took."""
    names = bench.names(samples)
    missing = [name for name in names if _made(bench, name, samples) is None]
    need = sum(8 * samples if samples >= SPARSE_SAMPLES else CONTESTANTS[n].bytes_per_sample * samples for n in missing)
    bench.data.mkdir(parents=True, exist_ok=True)
    if need > (free := shutil.disk_usage(bench.data).free):
        sys.exit(f"{bench.data} has {free / 1e9:.0f} GB free, {samples:,} samples take {need / 1e9:.0f}: use --data")
    for name in missing:
        print(f"writing {samples:,} samples for {name}", flush=True)
        folder = bench.folder(name, samples)
        shutil.rmtree(folder, ignore_errors=True)
        made = _json_line(bench.command(name, samples, "--make"))
        made["script"] = hash_file(PEERS / CONTESTANTS[name].script)
        (folder / DONE).write_text(json.dumps(made), encoding="utf-8")
    return {name: _made(bench, name, samples) or 0.0 for name in names}


def _made(bench: Bench, name: str, samples: int) -> float | None:
    """Seconds that it took to make the data that is there; None if it is not whole, or another script's."""
    file = bench.folder(name, samples) / DONE
    made = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    script = hash_file(PEERS / CONTESTANTS[name].script)
    return float(made["make_seconds"]) if made.get("script") == script else None


def warm(folder: Path) -> None:
    """Brings the files that are no holes into the page cache."""
    for path in sorted(folder.rglob("*")):
        found = path.stat()
        if path.is_file() and found.st_blocks * 512 >= found.st_size // 2:
            with path.open("rb", buffering=0) as file:
                while file.read(16 << 20):
                    pass


def run_round(bench: Bench, samples: int) -> dict[str, dict[str, Any]]:
    """Every loader once: from the start of an epoch, and again from 90% of it."""
    found = {}
    for name in bench.names(samples):
        whole = _json_line(bench.command(name, samples, "--seconds", str(bench.seconds)))
        resumed = _json_line(bench.command(name, samples, "--resume"))
        found[name] = {**whole, "resume_seconds": resumed["first_batch_seconds"]}
        found[name]["peak_bytes"] = max(whole["peak_bytes"], resumed["peak_bytes"])
    return found


def _json_line(command: list[str]) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


FIGURES = (
    "first_batch_seconds",
    "resume_seconds",
    "tokens_per_second",
    "tokens_per_core_second",
    "peak_bytes",
    "anonymous_bytes",
    "file_bytes",
    "shared_bytes",
)


def summarise(samples: int, rounds: list[dict[str, dict[str, Any]]], made: dict[str, float]) -> list[dict[str, Any]]:
    """A row a loader: the median, least and greatest of each figure over the rounds, and our speed beside its own."""
    rows = []
    for name in rounds[0]:
        row: dict[str, Any] = {"name": name, "samples": samples, "shuffle": CONTESTANTS[name].shuffle}
        for figure in FIGURES:
            values = [r[name][figure] for r in rounds]
            row[figure] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        speed = [r[OURS]["tokens_per_second"] / r[name]["tokens_per_second"] for r in rounds]
        row["ours_is_faster_by"] = {"median": statistics.median(speed), "min": min(speed), "max": max(speed)}
        row["make_seconds"] = made[name]
        row["versions"] = rounds[0][name]["versions"]
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], rounds: int) -> None:
    table = Table(title=f"{rows[0]['samples']:,} samples of 1,024 tokens, batches of 32, {rounds} rounds")
    for column in ("", "shuffle"):
        table.add_column(column)
    # "a core": M tokens for each second of processor time, all threads counted; it moves less on a busy machine.
    numbers = (
        "first batch s",
        "resume s",
        "M tokens/s",
        "range",
        "a core",
        "ours / this",
        "peak MB",
        "anon.",
        "mapped",
    )
    for column in numbers:
        table.add_column(column, justify="right")
    for row in rows:
        speed = row["tokens_per_second"]
        table.add_row(
            row["name"],
            row["shuffle"],
            f"{row['first_batch_seconds']['median']:.3f}",
            f"{row['resume_seconds']['median']:.3f}",
            f"{speed['median'] / 1e6:,.0f}",
            f"{speed['min'] / 1e6:,.0f} - {speed['max'] / 1e6:,.0f}",
            f"{row['tokens_per_core_second']['median'] / 1e6:,.0f}",
            f"{row['ours_is_faster_by']['median']:.2f}x",
            *(f"{row[figure]['median'] / 1e6:,.0f}" for figure in ("peak_bytes", "anonymous_bytes", "file_bytes")),
        )
    Console(width=170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[100_000, 1_000_000, 1_000_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long a loader reads in a round")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "scaletrain-dataloader-benchmark")
    parser.add_argument("--peers-python", type=Path, help="the Python that has LitData and MosaicML Streaming")
    parser.add_argument("--output", type=Path, help="JSON file for the figures and the environment")
    parser.add_argument("--clean", action="store_true", help="delete this benchmark's data at the end")
    args = parser.parse_args()
    bench = Bench(args.data, args.seconds, args.peers_python)
    if bench.peers_python is None:
        print("LitData and MosaicML Streaming are left out: no --peers-python")
    rows, kept = [], {}
    for samples in args.samples:
        made = make_data(bench, samples)
        for name in made:
            warm(bench.folder(name, samples))
        rounds = []
        for number in range(args.rounds):
            print(f"{samples:,} samples, round {number + 1} of {args.rounds}", flush=True)
            rounds.append(run_round(bench, samples))
        kept[samples] = rounds
        show(found := summarise(samples, rounds, made), args.rounds)
        rows += found
    if args.output:
        about = environment(World(), device_of(World()), {})
        places = {str(args.data): "FOLDER", str(args.peers_python): "PYTHON"}  # no path or name of this machine
        about["command"] = ["python", "benchmarks/dataloader.py", *(places.get(word, word) for word in sys.argv[1:])]
        del about["host"]
        result = {"environment": about, "seconds": args.seconds, "rows": rows, "rounds": kept}
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.clean:
        for samples in args.samples:
            for name in bench.names(samples):
                shutil.rmtree(bench.folder(name, samples), ignore_errors=True)


if __name__ == "__main__":
    main()
