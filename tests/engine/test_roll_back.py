"""Going back to a checkpoint in the middle of a run, and the samples that are passed over then."""

import json
from pathlib import Path

import pytest
import torch

from scaletrain.config.schema import Recipe
from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Best, Identity, newest_good
from scaletrain.engine.engine import Engine
from scaletrain.engine.guard import GoBack
from scaletrain.engine.records import Records
from scaletrain.engine.roll_back import FILE, NoTarget, RollBacks, Window, open_roll_backs, read_windows
from scaletrain.engine.saver import Saver
from scaletrain.engine.state import RunState
from scaletrain.errors import CheckpointError, TrainingError
from scaletrain.runtime import dist
from scaletrain.track.progress import RunProgress
from scaletrain.track.sinks import Events
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


def test_the_next_batch_is_outside_all_windows() -> None:
    windows = [Window(10, 20, "x"), Window(20, 25, "x"), Window(12, 18, "x"), Window(40, 50, "x")]
    found = RollBacks(Path("unused"), 9, windows)
    assert [found.next_sample(at, 1) for at in (0, 9, 10, 15, 19, 20, 24, 25, 39, 40, 49, 50)] == [
        *(0, 9, 25, 25, 25, 25, 25, 25, 39, 50, 50, 50)
    ]
    assert [found.next_sample(at, 8) for at in (2, 3, 25, 32, 33)] == [2, 25, 25, 32, 50]  # read into by a larger batch


class Nothing:
    """A state without tensors."""

    def writer(self, *, copy: bool):  # type: ignore[no-untyped-def]
        return lambda folder: ({}, {})


def save(root: Path, step: int) -> None:
    checkpoint.finish(checkpoint.begin(root, Nothing(), RunState(step, step * 8), IDENTITY, {}))  # type: ignore[arg-type]


def opened(root: Path, most: int = 9) -> RollBacks:
    return open_roll_backs(root, most, lambda name, why: None)


def go_back(root: Path, last_step: int, end: int, roll_backs: RollBacks | None = None) -> str:
    """The checkpoint that a run went back to."""
    roll_backs, back = roll_backs or opened(root), GoBack("a spike", last_step, end)
    found = roll_backs.target(back, lambda name, why: None)
    roll_backs.carry_out(found, back)
    return found.folder.name


def folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir())


def test_newer_checkpoints_are_set_aside_and_the_window_is_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    assert go_back(tmp_path, 4, 60) == "step-00000004"
    assert opened(tmp_path).windows == read_windows(tmp_path) == [Window(32, 60, "a spike")]
    assert checkpoint.latest_name(tmp_path) == "step-00000004"
    assert folders(tmp_path) == ["rolled-back-step-00000006", "step-00000002", "step-00000004"]


def test_what_a_killed_roll_back_left_is_set_aside_at_the_next_start(tmp_path: Path) -> None:
    for step in (2, 4, 6, 7):
        save(tmp_path, step)
    (tmp_path / FILE).write_text(json.dumps([{"start": 32, "end": 56, "reason": "a spike"}]))  # killed after this
    told: list[str] = []
    open_roll_backs(tmp_path, 9, lambda name, why: told.append(f"{name}: {why}"))
    assert folders(tmp_path) == [
        *("rolled-back-step-00000006", "rolled-back-step-00000007", "step-00000002", "step-00000004")
    ]
    assert told[0] == "step-00000006: the run had gone back from it (passed-over.json)"
    assert checkpoint.latest_name(tmp_path) == "step-00000004"
    save(tmp_path, 8)  # after the window
    assert opened(tmp_path).windows == [Window(32, 56, "a spike")]
    assert folders(tmp_path)[-1] == "step-00000008"


def test_a_run_goes_further_back_when_the_fault_comes_again(tmp_path: Path) -> None:
    for step in (2, 4):
        save(tmp_path, step)
    assert [go_back(tmp_path, 4, end) for end in (60, 80, 90)] == [
        *("step-00000004", "step-00000002", "step-00000002")  # there is none before step 2
    ]


def test_a_run_that_went_back_often_enough_ends(tmp_path: Path) -> None:
    save(tmp_path, 2)
    for end in (30, 40):
        go_back(tmp_path, 4, end)
    with pytest.raises(TrainingError, match=r"after 2 roll-backs .guard.max_roll_backs=2. there is a spike: look at"):
        go_back(tmp_path, 4, 50, opened(tmp_path, most=2))


@pytest.mark.parametrize("damaged", [False, True])
def test_without_a_whole_checkpoint_from_before_the_fault_there_is_none_to_go_back_to(
    damaged: bool, tmp_path: Path
) -> None:
    save(tmp_path, 5)
    if damaged:
        (tmp_path / "step-00000005" / checkpoint.MANIFEST).write_text("{}")
    with pytest.raises(NoTarget, match=r"there is no whole checkpoint of step \d or before"):
        go_back(tmp_path, 5 if damaged else 4, 50)
    assert folders(tmp_path) == ["step-00000005"]
    assert read_windows(tmp_path) == []


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (2, 4):
        save(tmp_path, step)
    (tmp_path / "step-00000004" / checkpoint.MANIFEST).write_text("{}")
    assert go_back(tmp_path, 4, 60) == "step-00000002"


def test_a_file_of_windows_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('[{"start": 1}]')
    with pytest.raises(CheckpointError, match=r"passed-over.json: cannot be read .*: restore it, or remove it to have"):
        opened(tmp_path)


def test_a_best_checkpoint_that_the_run_went_back_from_is_best_no_more(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    recipe = Recipe.model_validate({"run": {"dir": "."}})
    records = Records([], Events(None, 0), RunProgress(None))
    for step, is_kept in ((4, True), (6, False)):
        best = Best(f"step-{step:08d}", "loss", 1.0)
        checkpoint.write_best(tmp_path, best)
        saver = Saver(recipe, tmp_path, Nothing(), IDENTITY, None, records, best=best)  # type: ignore[arg-type]
        saver.go_back(4)
        assert (saver.best is not None, (tmp_path / checkpoint.BEST).exists()) == (is_kept, is_kept)
