"""Optimizer states in host memory, updated by DeepSpeed's own Adam: a resume keeps them, and may leave them there.

Slow: DeepSpeed compiles that Adam at its first use, about a minute.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.engine import Engine
from scaletrain.engine.state import RunState
from scaletrain.runtime import dist
from tests.engine.tiny import TinyRows, TinyTask
from tests.engine.training import OPTIM, engine_dict, largest_difference
from tests.ranks import run_ranks

CASES = [(stage, offload) for stage in (1, 2, 3) for offload in (True, False)]


def config(stage: int, *, offload: bool) -> dict[str, Any]:
    found = engine_dict(stage, "bf16", dist.size())
    if offload:
        found["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    return found


def losses(engine: Engine, first: int, last: int) -> list[float]:
    per_rank = 8 // dist.size()
    ids = torch.arange(per_rank).numpy() + per_rank * dist.rank()
    return [engine.train_step([TinyRows().fetch(ids + 8 * n)], 0.01, 64).loss() for n in range(first, last)]


def save_each(root: str) -> dict[int, list[float]]:
    """Losses of steps 5 to 8 after a checkpoint of each stage, offloaded."""
    found = {}
    for stage in (1, 2, 3):
        engine = Engine(TinyTask(), config(stage, offload=True), OPTIM, torch.device("cpu"))
        assert type(engine._engine.basic_optimizer).__name__ == "DeepSpeedCPUAdam"
        losses(engine, 0, 4)
        folder = Path(root) / str(stage)
        checkpoint.finish(checkpoint.begin(folder, engine, RunState(4), Identity({}, {}, {}), {}))
        found[stage] = losses(engine, 4, 8)
    return found


def resume_each(root: str) -> dict[tuple[int, bool], list[float]]:
    found = {}
    for stage, offload in CASES:
        engine = Engine(TinyTask(), config(stage, offload=offload), OPTIM, torch.device("cpu"))
        saved = checkpoint.newest_good(Path(root) / str(stage), lambda name, why: None)
        assert saved is not None
        engine.load(saved.folder, saved.manifest["files"], saved.manifest["digest"])  # proves what was loaded
        found[stage, offload] = losses(engine, 4, 8)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 1])
def test_an_offloaded_state_goes_on_offloaded_or_not_and_on_other_ranks(ranks: int, tmp_path: Path) -> None:
    whole = run_ranks(save_each, 2, str(tmp_path), seconds=400)[0]
    for (stage, offload), found in run_ranks(resume_each, ranks, str(tmp_path), seconds=400)[0].items():
        difference = largest_difference(found, whole[stage])
        print(f"stage {stage}, {ranks} ranks, {'offloaded' if offload else 'not offloaded'}: {difference:.1e}")
        assert difference == 0 if (offload and ranks == 2) else difference < 3e-3, (stage, offload)
