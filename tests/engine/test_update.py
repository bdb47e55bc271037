"""The update of ZeRO 0 to 2 by blocks, and one rank's gradients left in place, against DeepSpeed's own."""

from typing import Any
from unittest.mock import patch

import pytest
import torch

from scaletrain.engine import engine as engine_module
from scaletrain.engine import update
from scaletrain.engine.engine import Engine
from scaletrain.runtime import dist
from tests.engine.tiny import TinyRows, TinyTask
from tests.engine.training import OPTIM, engine_dict
from tests.ranks import run_ranks

CASES = [
    (stage, precision, accumulation) for stage in (1, 2) for precision in ("fp32", "bf16") for accumulation in (1, 2)
] + [(0, "bf16", 1), (0, "bf16", 2)]
METHODS = ("get_grad_norm_direct", "_get_preflattened_grad_partition", "unscale_and_clip_grads", "_optimizer_step")


def trained(
    stage: int, precision: str, accumulation: int, is_ours: bool, sums_apart: bool = False
) -> list[torch.Tensor]:
    """Weights and moments after three steps of which the first is clipped, then the norm of each."""
    config = engine_dict(stage, precision, dist.size(), accumulation)
    if sums_apart:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    engine = Engine(TinyTask(), config, OPTIM, torch.device("cpu"))
    zero = engine._engine.optimizer
    if not is_ours:
        for name in METHODS if stage else ("step",):
            delattr(zero, name)
        zero.__dict__.pop("reduce_ready_partitions_and_remove_grads", None)
    samples = torch.arange(8).view(accumulation, dist.size(), -1)[:, dist.rank()]
    batches = [TinyRows().fetch(ids.numpy()) for ids in samples]
    norms = [torch.as_tensor(engine.train_step(batches, 0.01, 64).grad_norm) for _ in range(3)]
    owners = (
        zero.single_partition_of_fp32_groups if stage else [master for group in zero.fp32_groups for master in group]
    )
    states = [engine._engine.basic_optimizer.state[owner] for owner in owners]
    return [*map(torch.detach, owners), *(value for state in states for value in state.values()), *norms]


def differences(sums_apart: bool) -> dict[str, float]:
    found = {}
    with patch.object(update, "_BLOCK", 100):  # smaller than a matrix, and no divisor of anything
        for case in CASES:
            if sums_apart and case[:2] != (2, "bf16"):
                continue  # another optimizer of DeepSpeed, or no sums apart
            ours, theirs = (trained(*case, is_ours, sums_apart) for is_ours in (True, False))
            assert len(ours) == len(theirs) > 6
            found[str(case)] = max(
                float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)
            )
    return found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("sums_apart", [False, True])
def test_weights_moments_and_norms_are_deepspeeds(ranks: int, sums_apart: bool) -> None:
    for found in run_ranks(differences, ranks, sums_apart):
        assert max(found.values()) < 2e-6, found


def new_memory(stage: int, is_ours: bool) -> int:
    """Bytes of the largest tensor that an update takes."""
    engine = Engine(TinyTask(), engine_dict(stage, "bf16", 1), OPTIM, torch.device("cpu"))
    batch = TinyRows().fetch(torch.arange(8).numpy())
    engine.train_step([batch], 0.01, 64)
    zero = engine._engine.optimizer
    for name in () if is_ours else METHODS if stage else ("step",):
        delattr(zero, name)
    weight = engine._task.weight(batch)
    loss = engine._task.loss_sums(engine._engine, batch)["loss"]
    engine._engine.backward(loss / weight)
    with torch.profiler.profile(profile_memory=True) as profile:
        engine._engine.step()
    return max(event.self_cpu_memory_usage for event in profile.events())


@pytest.mark.parametrize("stage", [0, 2])
def test_an_update_takes_no_memory_for_all_gradients(stage: int) -> None:
    with patch.object(update, "_BLOCK", 100):
        (ours,), (theirs,) = (run_ranks(new_memory, 1, stage, is_ours) for is_ours in (True, False))
    assert ours <= 100 * 4 < theirs


def norms_of_both() -> list[tuple[float, float]]:
    """Of updates that are not done by blocks: taken at once, and DeepSpeed's own of the same gradients."""
    found = []
    for stage in (1, 2):
        with patch.object(engine_module, "update_by_blocks", lambda engine: None):
            engine = Engine(TinyTask(), engine_dict(stage, "bf16", dist.size(), 1), OPTIM, torch.device("cpu"))
        zero = engine._engine.optimizer
        found += _both_norms(engine, zero, zero.get_grad_norm_direct)
    return found


def _both_norms(engine: Engine, zero: Any, taken: Any) -> list[tuple[float, float]]:
    found = []

    def norm(gradients: Any, params: Any, norm_type: float = 2) -> Any:
        gradients, params = list(gradients), list(params)
        theirs = type(zero).get_grad_norm_direct(zero, gradients, params)
        found.append((float(taken(gradients, params)), float(theirs)))
        return taken(gradients, params, norm_type)

    zero.get_grad_norm_direct = norm
    ids = torch.arange(8).view(dist.size(), -1)[dist.rank()]
    engine.train_step([TinyRows().fetch(ids.numpy())], 0.01, 64)
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_norm_taken_at_once_is_deepspeeds(ranks: int) -> None:
    for found in run_ranks(norms_of_both, ranks):
        assert len(found) >= 2
        assert all(ours == pytest.approx(theirs, rel=1e-6) and ours > 0 for ours, theirs in found)
