"""DeepSpeed's gradient buckets are as large as the model, where its file leaves it open."""

import torch

from scaletrain.config.deepspeed import LARGEST_BUCKET, engine_config, load_deepspeed
from scaletrain.config.schema import Recipe, Run, Train
from scaletrain.engine.buckets import with_bucket_size
from scaletrain.engine.engine import Engine
from tests.engine.tiny import TinyModel, TinyTask
from tests.engine.training import OPTIM
from tests.ranks import run_ranks
from tests.test_shipped_configs import ROOT

TRAINED = sum(p.numel() for p in TinyModel().parameters())


def size_of(model: torch.nn.Module, **zero: int) -> int:
    found = with_bucket_size({"zero_optimization": {"stage": 1, **zero}}, model)["zero_optimization"]
    assert found["stage"] == 1
    return int(found["reduce_bucket_size"])


def test_a_bucket_holds_what_is_trained_and_a_number_in_the_file_wins() -> None:
    model = TinyModel()
    assert size_of(model) == TRAINED
    assert size_of(model, reduce_bucket_size=500) == 500
    model.embedding.requires_grad_(False)
    assert size_of(model) == TRAINED - model.embedding.weight.numel()
    model.requires_grad_(False)
    assert size_of(model) == 1
    with torch.device("meta"):
        assert size_of(torch.nn.Linear(10_000, 10_000)) == LARGEST_BUCKET


def sizes_in_deepspeed() -> list[int]:
    found = []
    for stage in (1, 3):
        path = ROOT / "ds_configs" / f"zero{stage}.json"
        recipe = Recipe(run=Run(dir="x"), deepspeed=str(path), train=Train(max_steps=1))
        config = engine_config(recipe, load_deepspeed(path), ranks=1, precision="bf16")
        found.append(Engine(TinyTask(), config, OPTIM, torch.device("cpu"))._engine.optimizer.reduce_bucket_size)
    return found


def test_deepspeed_gets_it_at_each_stage() -> None:
    assert run_ranks(sizes_in_deepspeed, 1)[0] == [TRAINED, TRAINED]
