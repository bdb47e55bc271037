"""The engine against a bare torch loop, over ZeRO stages, ranks, accumulation and restarts."""

import errno
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from scaletrain.engine import checkpoint, state_files
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.engine import Engine
from scaletrain.engine.evaluate import evaluate
from scaletrain.engine.state import RunState
from scaletrain.errors import CheckpointError
from scaletrain.runtime import dist
from tests.engine.tiny import TinyRows, TinyTask
from tests.engine.training import OPTIM, engine_dict, largest_difference, share_of, train, train_plainly
from tests.ranks import run_ranks

STAGES = (0, 1, 2, 3)


def all_stages(root: str) -> dict[str, list[float]]:
    """Every case of one world size in one set of processes: starting them is what takes time."""
    found: dict[str, list[float]] = {}
    for stage in STAGES:
        for precision in ("fp32", "bf16"):
            folder = Path(root) / f"{precision}-{stage}"
            folder.mkdir(parents=True, exist_ok=True)
            found[f"{precision}-{stage}"] = train(stage, precision, TinyTask(), save_at=10, root=folder)
            found[f"{precision}-{stage}-resumed"] = train(stage, precision, TinyTask(), root=folder, resume=True)
        for accumulation in (2, 4):
            found[f"accumulated-{accumulation}-{stage}"] = train(stage, "fp32", TinyTask(), accumulation=accumulation)
    return found


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[float]]]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {ranks: run_ranks(all_stages, ranks, str(root / str(ranks)))[0] for ranks in (1, 2)}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_float32_losses_equal_a_plain_torch_loop(losses: dict, ranks: int, stage: int) -> None:  # type: ignore[type-arg]
    assert largest_difference(losses[ranks][f"fp32-{stage}"], train_plainly(TinyTask())) < 2e-6


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_nothing(losses: dict, stage: int, accumulation: int) -> None:  # type: ignore[type-arg]
    for ranks in (1, 2):
        assert largest_difference(losses[ranks][f"accumulated-{accumulation}-{stage}"], losses[1]["fp32-0"]) < 2e-6


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_stays_within_its_rounding_at_every_stage(losses: dict, stage: int) -> None:  # type: ignore[type-arg]
    # An Adam counter that is off by one, as DeepSpeed leaves it at stage 0, is 4 times further away.
    for ranks in (1, 2):
        assert largest_difference(losses[ranks][f"bf16-{stage}"], losses[1]["fp32-0"]) < 3e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_resumed_losses_equal_the_uninterrupted_ones(losses: dict, ranks: int, stage: int, precision: str) -> None:  # type: ignore[type-arg]
    assert losses[ranks][f"{precision}-{stage}-resumed"] == losses[ranks][f"{precision}-{stage}"][10:]


def skipped_step(stage: int, precision: str) -> tuple[bool, bool, list[float]]:
    """A step whose loss is not a number on one rank, then a good one: skipped flags, count, losses around it."""

    class Poisoned(TinyTask):
        poison = False

        def loss_sums(self, model, batch):  # type: ignore[no-untyped-def]
            sums = super().loss_sums(model, batch)
            return {**sums, "loss": sums["loss"] * float("nan")} if self.poison and dist.rank() == 0 else sums

    task, rows = Poisoned(), TinyRows()
    engine = Engine(task, engine_dict(stage, precision, dist.size()), OPTIM, torch.device("cpu"))
    per_rank = 8 // dist.size()
    batch = rows.fetch(torch.arange(per_rank).numpy() + per_rank * dist.rank())
    before = evaluate(engine, task, rows, share_of(4), None).scores.values["loss"]
    task.poison = True
    bad = engine.train_step([batch], 0.1, 64)
    task.poison = False
    after = evaluate(engine, task, rows, share_of(4), None).scores.values["loss"]
    good = engine.train_step([batch], 0.1, 64)
    last = evaluate(engine, task, rows, share_of(4), None).scores.values["loss"]
    return bad.skipped, good.skipped, [before, after, last]


def skipped_steps() -> dict[str, tuple[bool, bool, list[float]]]:
    return {f"{p}-{s}": skipped_step(s, p) for s in STAGES for p in ("fp32", "bf16")}


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all() -> None:
    for case, (bad, good, (before, after, last)) in run_ranks(skipped_steps, 2)[0].items():
        assert (bad, good) == (True, False), case
        assert after == before, case
        assert last != before, case


def looks_at_gradients(stage: int) -> list[int]:
    """How often an update looks at a gradient for infinities: as we run DeepSpeed, and as it is."""
    from deepspeed.runtime.zero import stage_1_and_2

    engine = Engine(TinyTask(), engine_dict(stage, "bf16", 1), OPTIM, torch.device("cpu"))
    batch = TinyRows().fetch(torch.arange(8).numpy())
    found = []
    for is_ours in (True, False):
        if not is_ours:
            del engine._engine.optimizer.check_overflow
        with patch.object(stage_1_and_2, "has_inf_or_nan", wraps=stage_1_and_2.has_inf_or_nan) as look:
            engine.train_step([batch], 0.1, 64)
        found.append(look.call_count)
    return found


@pytest.mark.parametrize("stage", [1, 2])
def test_an_update_does_not_look_for_infinities_before_it_takes_the_norm(stage: int) -> None:
    ours, theirs = run_ranks(looks_at_gradients, 1, stage)[0]
    assert ours == 0 < theirs


def evaluations(batch_size: int, max_samples: int | None) -> float:
    engine = Engine(TinyTask(), engine_dict(3, "fp32", dist.size()), OPTIM, torch.device("cpu"))
    return evaluate(engine, TinyTask(), TinyRows(21), share_of(batch_size), max_samples).scores.values["loss"]


def test_evaluation_counts_each_sample_once_whatever_the_ranks_and_the_batch() -> None:
    one = run_ranks(evaluations, 1, 21, None)[0]
    assert run_ranks(evaluations, 2, 4, None) == pytest.approx([one, one], abs=1e-6)
    assert run_ranks(evaluations, 1, 5, 7)[0] == pytest.approx(run_ranks(evaluations, 1, 1, 7)[0], abs=1e-6)


def test_settings_of_the_recipe_survive_a_resume(tmp_path: Path) -> None:
    assert run_ranks(changed_decay, 1, str(tmp_path)) == [0.05]


def changed_decay(root: str) -> float:
    train(1, "fp32", TinyTask(), steps=2, save_at=2, root=Path(root))
    optim = OPTIM.model_copy(update={"weight_decay": 0.05})
    engine = Engine(TinyTask(), engine_dict(1, "fp32", 1), optim, torch.device("cpu"))
    folder = Path(root) / "step-00000002"
    engine.load(folder, [path.name for path in folder.iterdir()])
    return float(engine._engine.optimizer.param_groups[0]["weight_decay"])


def save_behind_training(root: str) -> list[bool]:
    """Whether a checkpoint that is written while two more steps are taken holds the state from before them."""
    rows, equal = TinyRows(), []
    for stage in STAGES:
        engine = Engine(TinyTask(), engine_dict(stage, "bf16", dist.size()), OPTIM, torch.device("cpu"))
        per_rank = 8 // dist.size()
        batch = rows.fetch(torch.arange(per_rank).numpy() + per_rank * dist.rank())
        for step in (1, 2):  # the second copy goes to the first one's memory
            engine.train_step([batch], 0.1, 64)
            now, behind = Path(root) / f"now-{stage}", Path(root) / f"behind-{stage}"
            state = RunState(step)
            checkpoint.finish(checkpoint.begin(now, engine, state, Identity({}, {}, {}), {}))
            pending = checkpoint.begin(behind, engine, state, Identity({}, {}, {}), {}, background=True)
            for _ in range(2):
                engine.train_step([batch], 0.1, 64)
            checkpoint.finish(pending)
            folders = [checkpoint.step_folder(root, step) for root in (now, behind)]
            mine = state_files.file_name(dist.rank(), dist.size())
            equal.append((folders[0] / mine).read_bytes() == (folders[1] / mine).read_bytes())
    return equal


def test_a_checkpoint_written_behind_training_holds_the_state_of_its_step(tmp_path: Path) -> None:
    assert run_ranks(save_behind_training, 2, str(tmp_path)) == [[True] * 8] * 2


def save_with_a_full_disk_on_one_rank(root: str, background: bool) -> str:
    engine = Engine(TinyTask(), engine_dict(2, "fp32", dist.size()), OPTIM, torch.device("cpu"))
    if dist.rank() == 1:
        state_files.write_entries = full_disk
    try:
        checkpoint.finish(
            checkpoint.begin(Path(root), engine, RunState(1, 8, 64), Identity({}, {}, {}), {}, background=background)
        )
    except CheckpointError as error:
        return str(error)
    return "saved"


def full_disk(path: Path, *_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_is_full_for_one_rank_is_told_by_all_and_leaves_none_waiting(
    background: bool, tmp_path: Path
) -> None:
    for told in run_ranks(save_with_a_full_disk_on_one_rank, 2, str(tmp_path), background, seconds=60):
        assert "checkpoint not written (No space left on device): free space there" in told
    assert list(tmp_path.iterdir()) == []
