"""Ranks that share the tokens of each sample learn what one rank learns alone."""

import pytest
import torch

from scaletrain.assemble.pretraining import check_sharing
from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.schema import Data, Model
from scaletrain.data.rows import IGNORED, RowPart
from scaletrain.data.shards import Dataset
from scaletrain.data.training_data import open_training_data
from scaletrain.engine.engine import Engine
from scaletrain.engine.evaluate import evaluate
from scaletrain.errors import ConfigError
from scaletrain.runtime import dist
from scaletrain.runtime.sequence import join_sequence
from scaletrain.tasks.pretrain import PretrainTask
from tests.engine.training import OPTIM, engine_dict, largest_difference, share_of, train
from tests.ranks import run_ranks

CONTEXT, STEPS = 64, 12
# Family, documents kept apart, activation checkpointing, ZeRO stage, precision, micro-batches.
Case = tuple[str, bool, str, int, str, int]
CASES: list[Case] = [
    ("gpt2", False, "none", 0, "fp32", 1),
    ("llama", True, "full", 1, "fp32", 2),
    ("llama", False, "selective", 2, "bf16", 1),
    ("gpt2", True, "none", 3, "fp32", 1),
]


def task_of(path: str, case: Case, sharing: int) -> PretrainTask:
    family, apart, mode, *_ = case
    data = open_training_data(Data(path=path, context_length=CONTEXT, document_mask=apart), seed=1)
    kv_heads = 2 if family == "llama" else None
    model = Model(family=family, num_layers=2, num_heads=4, num_kv_heads=kv_heads, hidden_size=64)  # type: ignore[arg-type]
    architecture = resolve_architecture(model, data.tokenizer.vocab_size, CONTEXT)
    sequence = join_sequence(sharing) if sharing > 1 else None
    return PretrainTask(architecture, data, seed=5, activation_checkpointing=mode, sequence=sequence)


def losses_of(path: str, cases: list[Case], sharing: int) -> list[list[float]]:
    return [
        train(stage, precision, task_of(path, case, sharing), steps=STEPS, accumulation=accumulation, sharing=sharing)
        for case in cases
        for _, _, _, stage, precision, accumulation in [case]
    ]


def validation_of(path: str, sharing: int) -> float:
    task = task_of(path, CASES[1], sharing)
    engine = Engine(task, engine_dict(1, "fp32", dist.size(), 1, sharing), OPTIM, torch.device("cpu"))
    return evaluate(engine, task, task.rows("validation"), share_of(3, 1, sharing), None).scores.values["loss"]


@pytest.mark.parametrize(
    ("ranks", "sharing", "cases"),
    [
        (2, 2, CASES[1:3]),
        pytest.param(2, 2, [CASES[0], CASES[3]], marks=pytest.mark.slow),
        pytest.param(4, 2, [case for case in CASES if case[5] == 1], marks=pytest.mark.slow),
    ],
)
def test_losses_equal_those_of_one_rank(ranks: int, sharing: int, cases: list[Case], dataset: Dataset) -> None:
    path = str(dataset.path)
    alone = run_ranks(losses_of, 1, path, cases, 1)[0]
    for case, mine, theirs in zip(cases, alone, run_ranks(losses_of, ranks, path, cases, sharing)[0], strict=True):
        difference = largest_difference(mine, theirs)
        print(f"{case}, {ranks} ranks: {difference:.1e}")
        assert mine[-1] < mine[0] - 0.3
        assert difference < (3e-6 if case[4] == "fp32" else 3e-3), case


def test_an_evaluation_counts_each_token_once(dataset: Dataset) -> None:
    alone = run_ranks(validation_of, 1, str(dataset.path), 1)[0]
    assert run_ranks(validation_of, 2, str(dataset.path), 2) == pytest.approx([alone] * 2, rel=1e-6)


def test_heads_that_cannot_be_shared_are_refused() -> None:
    model = Model(family="llama", num_layers=1, num_heads=4, num_kv_heads=2, hidden_size=64)
    check_sharing("r.yaml", 2, resolve_architecture(model, 32, 16))
    with pytest.raises(
        ConfigError, match=r"^r.yaml: train.sequence_parallel=4 does not divide the model's 2 key/value"
    ):
        check_sharing("r.yaml", 4, resolve_architecture(model, 32, 16))


def test_parts_of_a_row_make_up_the_row() -> None:
    ids = torch.arange(24).view(2, 12)
    batch = {"input_ids": ids, "labels": ids + 1, "documents": torch.zeros(2, 12)}
    parts = [RowPart(place, 3).of(batch) for place in range(3)]
    for name in ("input_ids", "labels"):
        assert torch.equal(torch.cat([part[name] for part in parts], dim=1), batch[name])
    assert all(part["documents"].shape == (2, 12) for part in parts)
    assert sum(int((part["labels"] != IGNORED).sum()) for part in parts) == 24
