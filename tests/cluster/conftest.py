"""The cluster of these tests: brought up once, repaired after each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from tests.cluster.machines import missing
from tests.cluster.runs import Run
from tests.cluster.slurm import Slurm


@pytest.fixture(scope="session")
def _started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if (why := missing()) is not None:
        pytest.skip(why)
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.machines.stop()


@pytest.fixture
def slurm(_started: Slurm) -> Iterator[Slurm]:
    yield _started
    _started.repair()


@pytest.fixture
def run(slurm: Slurm, dataset: Dataset, tmp_path: Path) -> Run:
    return Run(slurm, dataset, tmp_path)


@pytest.fixture(scope="session")
def whole(_started: Slurm, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run to the end without a fault, one rank on each node."""
    run = Run(_started, dataset, tmp_path_factory.mktemp("whole"))
    assert run.submit().wait() == "COMPLETED 0:0", run.said()
    return run
