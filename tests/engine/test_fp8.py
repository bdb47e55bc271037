"""FP8 products, emulated: a GPT learns with them as it does in bf16. Skipped without torchao."""

import pytest
from torch import nn

from scaletrain.data.shards import Dataset
from scaletrain.model.fp8 import multiply_in_fp8
from scaletrain.model.gpt import GPT
from scaletrain.tasks.pretrain import PretrainTask
from tests.engine.test_switches import task_of
from tests.engine.training import largest_difference, train
from tests.ranks import run_ranks

pytest.importorskip("torchao")


class Emulated(PretrainTask):
    """The task of a recipe, whose products no GPU does."""

    def build_model(self) -> nn.Module:
        model = super().build_model()
        assert isinstance(model, GPT)
        multiply_in_fp8(model, emulated=True)
        assert {type(m).__name__ for m in model.modules() if isinstance(m, nn.Linear)} == {"Float8Linear"}
        return model


def losses_of(path: str) -> list[list[float]]:
    """In bf16; in FP8; in FP8 with products that checkpointing keeps."""
    found = []
    for kind, mode, steps in ((PretrainTask, "none", 40), (Emulated, "none", 40), (Emulated, "selective", 4)):
        task = task_of(path, mode)
        task.__class__ = kind
        found.append(train(1, "bf16", task, steps=steps))
    return found


def test_losses_stay_near_those_of_bf16(dataset: Dataset) -> None:
    plain, rounded, again = run_ranks(losses_of, 1, str(dataset.path), seconds=500)[0]
    difference = largest_difference(plain, rounded)
    print(f"40 steps: loss {plain[0]:.3f} to {plain[-1]:.3f}, in FP8 at most {difference:.4f} away")
    assert plain[-1] < plain[0] - 0.3
    assert 1e-6 < difference < 0.03
    assert again == rounded[:4], "what checkpointing computes again is rounded alike"
