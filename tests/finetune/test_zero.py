"""Fine-tuning under ZeRO: the same losses at each stage, checkpoints of what is trained, resumes, whole evaluations."""

from pathlib import Path
from typing import Any

import pytest
import torch

from scaletrain.engine.state_files import StateFiles
from tests.finetune.conftest import RECIPE
from tests.finetune.tiny_models import make_examples, make_models
from tests.finetune.training import ZERO, evaluated, train
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow  # some minutes of two cores

STEPS, HALF, BATCH = 8, 4, 5
# adapter.dropout: random numbers are a function of the step, so that a resume is exact.
LORA = ["adapter.kind=lora", "adapter.rank=1", "adapter.dropout=0.1", "data.max_length=32"]
CASES: dict[str, tuple[str, str, list[str]]] = {
    "all weights": ("classify", "bert", ["model.dropout=0"]),
    "lora": ("sft", "wide", [*LORA[:2], LORA[3]]),
}
WRITES = ["task.generate.metrics=[exact_match]", "task.generate.max_new_tokens=2"]
KINDS = {"classify": "bert", "tag": "bert", "span_qa": "bert", "sft": "llama"}


def recipe_of(place: str, kind: str, model: str) -> str:
    return str(Path(place) / f"{kind}-{model}.yaml")


def write_recipe(place: Path, kind: str, model: str) -> None:
    template = ", chat_template: chatml" if kind == "sft" else ""
    text = RECIPE.format(
        run=place / "run", kind=kind, examples=place, models=place, model=model, template=template, stage=1
    )
    Path(recipe_of(str(place), kind, model)).write_text(text, encoding="utf-8")


def on_one_rank(place: str) -> dict[str, Any]:
    """Losses at stage 0, and evaluations in batches of which the last is not full."""
    found: dict[str, Any] = {
        case: train(recipe_of(place, kind, model), [*how, ZERO.format(0)], STEPS).losses
        for case, (kind, model, how) in CASES.items()
    }
    return found | evaluate_each(place)


def evaluate_each(place: str) -> dict[str, Any]:
    """Before any step; with the number of rows."""
    found: dict[str, Any] = {}
    for kind, model in KINDS.items():
        trained = train(recipe_of(place, kind, model), [ZERO.format(0), *(WRITES if kind == "sft" else [])], 0)
        held_out: Any = trained.job.data.validation
        found[f"evaluate {kind}"] = (*evaluated(trained, BATCH), len(held_out))
    return found


def on_two_ranks(place: str) -> dict[str, Any]:
    """Losses at each stage; those of a LoRA with dropout at stage 3, with a checkpoint, resumed, and resumed again."""
    found: dict[str, Any] = {
        f"{case} at {stage}": train(recipe_of(place, kind, model), [*how, ZERO.format(stage)], STEPS).losses
        for case, (kind, model, how) in CASES.items()
        for stage in range(4)
    }
    sft, stage3, root = recipe_of(place, "sft", "wide"), ZERO.format(3), Path(place) / "dropped"
    found["dropout"] = train(sft, [*LORA, stage3], STEPS, root=root, save_at=HALF).losses
    found["dropout resumed"] = train(sft, [*LORA, stage3], STEPS, root=root, resume=True).losses
    found["other dropout"] = train(sft, [*LORA, stage3, "seed=2"], STEPS).losses
    kept = [LORA[0], LORA[1], LORA[3]]
    found["saved"] = train(sft, [*kept, stage3], STEPS, root=Path(place) / "saved", save_at=HALF).losses
    return found | evaluate_each(place)


def resumed_on_one_rank(place: str) -> tuple[list[float], list[str], int]:
    """At stage 1; with the names and the numbers of what trains."""
    kept = [LORA[0], LORA[1], LORA[3]]
    trained = train(
        recipe_of(place, "sft", "wide"), [*kept, ZERO.format(1)], STEPS, root=Path(place) / "saved", resume=True
    )
    named = dict(trained.engine._engine.module.named_parameters())
    learned = [name for name, p in named.items() if p.requires_grad]
    assert all(torch.equal(trained.first[name], trained.last[name]) for name in named.keys() - set(learned))
    assert any(not torch.equal(trained.first[name], trained.last[name]) for name in learned)
    return trained.losses, learned, sum(named[name].numel() for name in learned)


class World:
    """What was found on each number of ranks."""

    def __init__(self, place: Path) -> None:
        self.place = place
        make_models(place)
        make_examples(place)
        for kind, model in {*KINDS.items(), *((kind, model) for kind, model, _ in CASES.values())}:
            write_recipe(place, kind, model)
        (self.single,) = run_ranks(on_one_rank, 1, str(place), seconds=300)
        self.double, other = run_ranks(on_two_ranks, 2, str(place), seconds=500)
        assert other.keys() == self.double.keys()
        ((self.resumed, self.learned, self.numbers),) = run_ranks(resumed_on_one_rank, 1, str(place))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("zero"))


def largest(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("case", list(CASES))
def test_losses_on_two_ranks_at_any_stage_are_those_of_one(case: str, stage: int, world: World) -> None:
    found = world.double[f"{case} at {stage}"]
    print(f"{case}, stage {stage}: largest difference {largest(found, world.single[case]):.1e}")
    assert largest(found, world.single[case]) < 5e-6
    assert len(set(found)) == STEPS


def test_a_checkpoint_of_an_adapter_holds_what_is_trained_alone(world: World) -> None:
    saved = world.place / "saved" / f"step-{HALF:08d}"
    states = sorted(saved.glob("state-*"))
    assert len(states) == 2
    assert sorted(StateFiles(saved, [path.name for path in states]).shapes) == sorted(world.learned)
    assert all("lora_" in name for name in world.learned)
    base = (world.place / "wide" / "model.safetensors").stat().st_size
    size = sum(path.stat().st_size for path in states)
    assert 3 * 4 * world.numbers < size < 0.02 * base  # float32 weights and two moments


def test_a_resume_with_dropout_is_exact(world: World) -> None:
    assert world.double["dropout resumed"] == world.double["dropout"][HALF:]
    assert world.double["dropout"] != world.double["saved"]
    assert world.double["dropout"] != world.double["other dropout"]


def test_a_run_saved_at_stage_3_on_two_ranks_goes_on_at_stage_1_on_one(world: World) -> None:
    assert largest(world.resumed, world.double["saved"][HALF:]) < 5e-6


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_evaluation_on_two_ranks_counts_every_row_once(kind: str, world: World) -> None:
    (scores, predictions, rows), (other, others, _) = (
        found[f"evaluate {kind}"] for found in (world.single, world.double)
    )
    assert rows % BATCH  # the last batch is not full
    assert [one["row"] for one in others] == list(range(rows))
    assert predictions == others
    assert scores.values.keys() == other.values.keys()
    for name, value in scores.values.items():
        if name in ("loss", "perplexity"):  # sums over ranks are added in another order
            assert other.values[name] == pytest.approx(value, rel=1e-12)
        else:
            assert other.values[name] == value, name
