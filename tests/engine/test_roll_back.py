"""Going back to a checkpoint in the middle of a run, and the samples that are passed over then."""

from pathlib import Path

import pytest
import torch

from scaletrain.engine import checkpoint, roll_back
from scaletrain.engine.checkpoint import Identity, newest_good
from scaletrain.engine.engine import Engine
from scaletrain.engine.guard import GoBack
from scaletrain.engine.roll_back import FILE, Window, go_back, next_sample, read_windows
from scaletrain.engine.state import RunState
from scaletrain.errors import CheckpointError, TrainingError
from scaletrain.runtime import dist
from tests.engine.tiny import TinyRows, TinyTask
from tests.engine.training import OPTIM, engine_dict
from tests.ranks import run_ranks

STAGES, IDENTITY = (0, 1, 2, 3), Identity(layout={}, model={}, data={})


def losses_before_and_after(root: str) -> dict[str, tuple[list[float], list[float]]]:
    """Of the three steps after a checkpoint: taken at once, and again after going back to it."""
    found = {}
    for stage in STAGES:
        for precision in ("fp32", "bf16"):
            case = f"{precision} stage {stage}"
            engine = Engine(TinyTask(), engine_dict(stage, precision, dist.size()), OPTIM, torch.device("cpu"))
            per_rank = 8 // dist.size()

            def step(number: int, engine: Engine = engine, per_rank: int = per_rank) -> float:
                ids = torch.arange(per_rank).numpy() + per_rank * dist.rank() + 8 * number
                return engine.train_step([TinyRows().fetch(ids)], 0.01, 64).loss()

            for number in range(3):
                step(number)
            folder = Path(root) / case
            checkpoint.finish(checkpoint.begin(folder, engine, RunState(step=3), IDENTITY, {}))
            first = [step(number) for number in range(3, 6)]
            engine.train_step([TinyRows().fetch(torch.zeros(per_rank).long().numpy())], float("nan"), 64)  # ruined
            back = newest_good(folder, lambda name, why: None)
            assert back is not None
            engine.load(back.folder, back.manifest["files"])
            found[case] = (first, [step(number) for number in range(3, 6)])
    return found


def test_going_back_in_the_middle_of_a_run_gives_the_same_losses_to_the_bit(tmp_path: Path) -> None:
    for case, (first, again) in run_ranks(losses_before_and_after, 2, str(tmp_path))[0].items():
        assert first == again, case


def test_the_next_sample_is_outside_all_windows() -> None:
    windows = [Window(10, 20, "x"), Window(20, 25, "x"), Window(12, 18, "x"), Window(40, 50, "x")]
    assert [next_sample(windows, at) for at in (0, 9, 10, 15, 19, 20, 24, 25, 39, 40, 49, 50)] == [
        *(0, 9, 25, 25, 25, 25, 25, 25, 39, 50, 50, 50)
    ]


class Nothing:
    """A state without tensors."""

    def writer(self, *, copy: bool):  # type: ignore[no-untyped-def]
        return lambda folder: ({}, {})


def save(root: Path, step: int) -> None:
    checkpoint.finish(checkpoint.begin(root, Nothing(), RunState(step, step * 8), IDENTITY, {}))  # type: ignore[arg-type]


def test_newer_checkpoints_are_set_aside_and_the_window_is_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    found, windows = go_back(tmp_path, GoBack("a spike", 5, 60), 3, lambda name, why: None)
    assert found.folder.name == "step-00000004"
    assert windows == read_windows(tmp_path) == [Window(32, 60, "a spike")]
    assert checkpoint.latest_name(tmp_path) == "step-00000004"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        *("rolled-back-step-00000006", "step-00000002", "step-00000004")
    ]


def test_a_run_that_went_back_often_enough_ends(tmp_path: Path) -> None:
    save(tmp_path, 2)
    for end in (30, 40):
        go_back(tmp_path, GoBack("a spike", 5, end), 2, lambda name, why: None)
    with pytest.raises(TrainingError, match=r"after 2 roll-backs .guard.max_roll_backs=2. there is a spike: look at"):
        go_back(tmp_path, GoBack("a spike", 5, 50), 2, lambda name, why: None)


def test_without_a_checkpoint_from_before_the_fault_a_run_ends(tmp_path: Path) -> None:
    save(tmp_path, 5)
    with pytest.raises(TrainingError, match=r"a spike, and there is no checkpoint from before step 5 to go back to"):
        go_back(tmp_path, GoBack("a spike", 5, 50), 3, lambda name, why: None)
    assert (tmp_path / "step-00000005").is_dir()


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (2, 4):
        save(tmp_path, step)
    (tmp_path / "step-00000004" / checkpoint.MANIFEST).write_text("{}")
    told: list[str] = []
    found, _ = go_back(tmp_path, GoBack("a spike", 5, 60), 3, lambda name, why: told.append(name))
    assert (found.folder.name, told) == ("step-00000002", ["step-00000004"])


def test_a_file_of_windows_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('[{"start": 1}]')
    with pytest.raises(CheckpointError, match=r"passed-over.json: cannot be read .*: restore it, or remove it to have"):
        roll_back.share_windows(tmp_path)
