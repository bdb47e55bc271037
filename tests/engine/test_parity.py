"""A real GPT on real text: ZeRO stages, ranks and a bare torch loop learn the same, step for step."""

import pytest

from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.schema import Data, Model
from scaletrain.data.shards import Dataset
from scaletrain.data.training_data import open_training_data
from scaletrain.tasks.pretrain import PretrainTask
from tests.engine.training import largest_difference, train, train_plainly
from tests.ranks import run_ranks

STEPS, CONTEXT = 50, 64


def gpt_task(path: str, family: str) -> PretrainTask:
    data = open_training_data(Data(path=path, context_length=CONTEXT), seed=1)
    model = Model(family=family, num_layers=3, num_heads=4, hidden_size=64)  # type: ignore[arg-type]
    architecture = resolve_architecture(model, data.tokenizer.vocab_size, CONTEXT)
    return PretrainTask(architecture, data, seed=5)


def engine_losses(path: str, family: str) -> dict[str, list[float]]:
    cases = {f"fp32 stage {s}": (s, "fp32", 1) for s in (0, 1, 2, 3)}
    cases |= {f"bf16 stage {s}": (s, "bf16", 1) for s in (0, 1, 2, 3)}
    cases |= {f"fp32 stage 2, accumulation {a}": (2, "fp32", a) for a in (2, 4)}
    return {
        name: train(stage, precision, gpt_task(path, family), steps=STEPS, accumulation=accumulation)
        for name, (stage, precision, accumulation) in cases.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gpt_losses_equal_a_plain_torch_loop_at_any_stage_and_rank_count(family: str, dataset: Dataset) -> None:
    plain = train_plainly(gpt_task(str(dataset.path), family), STEPS)
    assert plain[-1] < plain[0] - 0.8
    worst = {"fp32": 0.0, "bf16": 0.0}
    for ranks in (1, 2):
        for case, losses in run_ranks(engine_losses, ranks, str(dataset.path), family)[0].items():
            difference = largest_difference(losses, plain)
            print(f"{family}, {ranks} rank(s), {case}: largest difference {difference:.1e} over {STEPS} steps")
            worst[case[:4]] = max(worst[case[:4]], difference)
    assert worst["fp32"] < 5e-6
    assert worst["bf16"] < 3e-3
