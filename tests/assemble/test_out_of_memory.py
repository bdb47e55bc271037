"""What a run says when a GPU's memory is full. The GPU is torch's error and its sizes alone: none is needed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scaletrain.assemble import expectation, out_of_memory
from scaletrain.assemble.pretraining import settle_pretraining
from scaletrain.assemble.settle import Settled
from scaletrain.data.shards import Dataset
from scaletrain.errors import ConfigError
from scaletrain.runtime import pulse
from tests.conftest import write_recipe


@pytest.fixture
def settled(dataset: Dataset, tmp_path: Path) -> Settled:
    (tmp_path / "run").mkdir()
    return settle_pretraining(write_recipe(tmp_path, dataset, tmp_path / "run"), [], None)


def test_the_line_tells_where_it_was_and_what_was_planned(settled: Settled) -> None:
    expected = expectation.expect(settled)
    pulse.mark("backward", 7)
    with (
        pytest.raises(ConfigError, match=r"memory is full in phase backward of step 7; planned were .* GB, at the "),
        out_of_memory.told(settled, expected),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="another"), out_of_memory.told(None, None):  # type: ignore[arg-type]
        raise RuntimeError("another")


def test_a_change_that_fits_is_named_and_the_snapshot_is_left(
    settled: Settled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = replace(settled, launch=replace(settled.launch, device=torch.device("cuda")))
    work = expectation.workload(gpu)
    assert work is not None
    room = out_of_memory.Room(0).need(expectation.memory_of(replace(work, checkpointing="full")))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=room))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: room)
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_bytes(b"x"))
    line = out_of_memory.describe(gpu, None)
    assert "try train." in line
    assert (tmp_path / "run/profile/out-of-memory-rank-00000.pickle").read_bytes() == b"x"
    assert "pytorch.org/memory_viz" in line
