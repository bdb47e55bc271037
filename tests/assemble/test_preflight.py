"""What a launch finds out about its nodes before it trains."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from scaletrain.assemble import preflight
from scaletrain.assemble.preflight import Record
from scaletrain.assemble.pretraining import settle_pretraining
from scaletrain.assemble.settle import Settled
from scaletrain.data.shards import Dataset
from scaletrain.engine import run_folder
from scaletrain.errors import ClusterError
from scaletrain.runtime import dist
from tests.conftest import pretrain, write_recipe
from tests.launches import events
from tests.ranks import run_ranks

_held: list[IO[str]] = []


def _settle(folder: str) -> Settled:
    """The recipe in `folder`, at work there as the only rank of a node, with the run folder held by rank 0."""
    os.chdir(folder)
    os.environ.update(LOCAL_RANK="0", GROUP_RANK=str(dist.rank()))
    settled = settle_pretraining(Path("recipe.yaml"), [], None)
    with dist.together():
        if settled.world.is_first:
            _held.append(run_folder.hold(Path(settled.recipe.run.dir)))
    return settled


def _check(folders: list[str], change: Callable[[Record], Record] | None = None) -> str | list[str]:
    """What each of two nodes is told; `change` is what node 1 tells of itself."""
    settled = _settle(folders[dist.rank()])
    if change is not None and dist.rank() == 1:
        real = preflight._record
        preflight._record = lambda settled, now: change(real(settled, now))
    try:
        return [f"{finding.severity} {finding.check}" for finding in preflight.check_nodes(settled)]
    except ClusterError as error:
        return str(error)


def _other_node(record: Record) -> Record:
    """n1, with another torch, a clock a minute ahead and a full disk."""
    return replace(
        record,
        node="n1",
        time=record.time + 60,
        versions={**record.versions, "torch": "1.0"},
        disks=tuple(replace(disk, free_bytes=0) if disk.name == "/dev/shm" else disk for disk in record.disks),
    )


@pytest.fixture
def places(dataset: Dataset, tmp_path: Path) -> list[str]:
    """Two working folders with equal recipes, whose run.dir is relative."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_recipe(tmp_path / name, dataset, Path("run"))
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def _cost(folder: str) -> tuple[int, float]:
    settled = _settle(folder)
    begun = time.process_time()
    findings = preflight.check_nodes(settled)
    return len(findings), time.process_time() - begun


def test_nodes_that_are_alike_pass_in_less_than_50_ms(places: list[str]) -> None:
    """Of this processor: others may be at work on it too."""
    found = run_ranks(_cost, 2, places[0])
    assert [findings for findings, _ in found] == [0, 0]
    assert max(seconds for _, seconds in found) < 0.05


def test_another_recipe_and_dataset_are_refused_on_all_ranks(places: list[str]) -> None:
    recipe = Path(places[1]) / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "seed: 5\n")
    host = os.uname().nodename
    line = (
        f"recipe and model or dataset on {host} differ from those on {host}: copy them to every node, or put them on a "
        "disk that all share"
    )
    assert run_ranks(_check, 2, places) == [line, line]


def test_what_does_not_make_training_wrong_is_told_and_training_goes_on(places: list[str]) -> None:
    told = run_ranks(_check, 2, [places[0]] * 2, _other_node)
    assert told == [["warn versions", "warn clock", "warn disk"]] * 2


def test_a_start_tells_a_full_disk_in_a_line_and_an_event(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site customisation lets the process see a full temporary folder."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nreal = os.statvfs\n"
        "def statvfs(path):\n"
        "    found = list(real(path))\n"
        "    if str(path) == os.environ['TMPDIR']:\n"
        "        found[4] = 0\n"
        "    return os.statvfs_result(found)\n"
        "os.statvfs = statvfs\n"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    done = pretrain(write_recipe(tmp_path, dataset, tmp_path / "run"), "train.max_steps=1")
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("warn")]
    assert line.startswith(f"warn    {os.uname().nodename}: {tmp_path}: 0.0 GB of ")
    (told,) = [event for event in events(tmp_path / "run") if event["event"] == "doctor"]
    assert [finding["check"] for finding in told["findings"]] == ["disk"]
