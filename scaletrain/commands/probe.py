"""One node's part of `scaletrain doctor`: answers questions from standard input, a line of JSON each."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import xxhash

from scaletrain.cluster.doctor import collect, devices
from scaletrain.cluster.doctor.agents import tell
from scaletrain.cluster.doctor.facts import Facts, Job
from scaletrain.cluster.doctor.trials import Ears, RunFolder, connect
from scaletrain.commands.probe_torch import build_ops, try_ranks
from scaletrain.errors import ScaleTrainError
from scaletrain.runtime.files import hash_file
from scaletrain.runtime.op_folder import is_built, op_folder

_PART_SECONDS = 20.0


class Probe:
    """What one node is asked, by name."""

    def __init__(self) -> None:
        self._ears = Ears()
        self._folder: RunFolder | None = None
        self.answers: dict[str, Callable[..., Any]] = {
            "time": time.time,
            "facts": _facts,
            "listen": self._ears.open,
            "close": self._ears.close,
            "connect": lambda targets: [asdict(found) for found in connect([(n, p) for n, p in targets])],
            "mark": lambda path, nonce: self._at(path, nonce).leave_mark(),
            "look": lambda path, nonce: self._at(path, nonce).sees_mark(),
            "store": lambda path, nonce: asdict(self._at(path, nonce).measure()),
            "clear": self.clear,
            "ranks": try_ranks,
            "build": build_ops,
        }

    def _at(self, path: str, nonce: str) -> RunFolder:
        self._folder = self._folder or RunFolder(Path(path), nonce)
        return self._folder

    def clear(self) -> None:
        if self._folder is not None:
            self._folder.clear()


def main() -> None:
    """Answers until nobody asks any more."""
    probe = Probe()
    for line in sys.stdin:
        asked = json.loads(line)
        tell(probe.answers[asked.pop("ask")](**asked))
    probe.clear()


def _facts(job: Mapping[str, Any] | None, master: str | None) -> dict[str, Any]:
    """All parts of Facts. `job`: recipe, overrides and deepspeed_config; `master`: the host of rank 0, with several."""
    places = collect.scratch_places()
    questions: dict[str, Callable[[], Any]] = {
        "versions": collect.versions,
        "limits": collect.limits,
        "leftovers": collect.find_leftovers,
        "devices": devices.find_devices,
        "infiniband": devices.find_infiniband,
        "tools": collect.tools,
        "disks": lambda: collect.disks(places | _places(job)),
    }
    if job is not None:
        questions["job"] = lambda: read_job(**job)
    if master is not None:
        questions["interface"] = lambda: collect.interface_towards(master)
    answers, late = collect.ask_all(questions, _PART_SECONDS)
    return asdict(Facts(host=os.uname().nodename, **answers, late=late))


def _places(job: Mapping[str, Any] | None) -> dict[str, Path]:
    """The folders of a recipe; none of one that cannot be read, which is told as such."""
    if job is None:
        return {}
    from scaletrain.config.data_rules import input_places
    from scaletrain.config.load import load_recipe

    try:
        recipe = load_recipe(Path(job["recipe"]), job["overrides"], job["deepspeed_config"])
    except ScaleTrainError:
        return {}
    local = [place for place in input_places(recipe).values() if Path(place).exists()]
    return {"run folder": Path(recipe.run.dir), **{f"dataset {place}": Path(place) for place in local}}


def read_job(recipe: str, overrides: Sequence[str], deepspeed_config: str | None) -> Job:
    """The recipe, its DeepSpeed file and its datasets as this machine reads them."""
    from scaletrain.config.data_rules import input_places, source_places
    from scaletrain.config.deepspeed_ops import needed_ops
    from scaletrain.config.load import dump_shared, load_with_deepspeed
    from scaletrain.config.schema import Recipe
    from scaletrain.data.opening import open_data

    try:
        loaded, preset = load_with_deepspeed(Path(recipe), overrides, deepspeed_config)
    except ScaleTrainError as error:
        return Job(fault=_one_line(error))
    os.environ.update(loaded.run.env)  # of the test ranks and the builds
    folder = op_folder(os.environ)
    job = Job(
        recipe=_digest(dump_shared(loaded)),
        deepspeed=_digest(json.dumps(preset, sort_keys=True)),
        ops={op: is_built(op, folder) for op in needed_ops(preset)},
    )
    if not isinstance(loaded, Recipe):
        return replace(job, datasets={name: _print_of(Path(place)) for name, place in input_places(loaded).items()})
    try:
        datasets = {name: open_data(place, loaded.data) for name, place in source_places(loaded.data).items()}
    except ScaleTrainError as error:
        return replace(job, data_fault=_one_line(error))
    sizes = [dataset.tokenizer.vocab_size for dataset in datasets.values()]
    prints = {name: dataset.fingerprint for name, dataset in datasets.items()}
    return replace(job, datasets=prints, vocab_size=max(sizes, default=0))


def _print_of(path: Path) -> str:
    """Of a file: its hash. Of a folder: names and sizes of its files. "" where there is none, as for a hub's name."""
    if path.is_file():
        return hash_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    return _digest("".join(f"{file.relative_to(path)} {file.stat().st_size}\n" for file in files)) if files else ""


def _digest(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())


def _one_line(error: ScaleTrainError) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
