"""What a supervisor reads from an ended launch and its run folder."""

import json
from pathlib import Path

import pytest

from scaletrain.commands.launcher import find_script
from scaletrain.commands.supervised_folder import newest_step
from scaletrain.errors import ConfigError
from scaletrain.runtime.exit_report import settle_end
from scaletrain.runtime.gpus import ask, begin_count, end_count
from scaletrain.track.sinks import last_line
from tests.conftest import run_program


@pytest.mark.parametrize(
    ("code", "exits", "is_finished", "end"),
    [
        (0, {0: 0, 1: 0}, True, 0),
        (1, {0: 75, 1: 75}, False, 75),  # torchrun and deepspeed end with 1
        (-9, {0: 75, 1: 75}, False, None),  # the launcher was killed, and its ranks saw it
        (-9, {0: 0}, True, 0),
        (1, {0: 2}, False, 2),
        (1, {1: 2}, False, 2),  # rank 0 had no fault and was ended by the launcher
        (1, {1: 1}, False, None),
        (0, {0: 1}, False, None),  # a wrapper that ends well whatever happened
        (1, {0: 0}, True, 0),  # all is saved, the launcher stumbled afterwards
        (0, {}, True, 0),  # a launcher that keeps the environment from its ranks
        (0, {}, False, None),
        (2, {}, False, 2),
        (75, {}, False, 75),
        (-9, {}, True, None),
        (1, {}, False, None),
    ],
)
def test_the_ranks_reports_win_over_the_launchers_code(
    code: int, exits: dict[int, int], is_finished: bool, end: int | None
) -> None:
    assert settle_end(code, exits, is_finished=is_finished) == end


def test_the_program_of_a_rank_is_looked_for_in_both_places(tmp_path: Path) -> None:
    one, two = tmp_path / "site-packages", tmp_path / "clone"
    with pytest.raises(ConfigError) as fault:
        find_script((one, two))
    assert str(fault.value) == f"launch/pretrain.py is not in {one} or {two}: run this in a clone of the repository"
    (two / "launch").mkdir(parents=True)
    (two / "launch" / "pretrain.py").touch()
    assert find_script((one, two)) == two / "launch" / "pretrain.py"


def test_the_newest_checkpoint_is_one_with_a_manifest(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    for name in ("step-00000004", "step-00000012", "damaged-step-00000016", "step-00000014.bak"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").touch()
    (tmp_path / "checkpoints" / "step-00000020").mkdir()
    assert newest_step(tmp_path) == 12


def test_the_last_whole_line_is_found_in_a_long_file_with_a_torn_end(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("")
    assert last_line(file) is None
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(50_000)) + '{"step": 500')
    assert last_line(file) == {"step": 49_999}


def test_gpus_are_counted_by_another_process() -> None:
    import torch

    assert end_count(ask()) == torch.cuda.device_count()
    assert end_count(begin_count()) == torch.cuda.device_count()


def test_the_supervisor_does_not_load_torch() -> None:
    done = run_program("-X", "importtime", "-c", "import scaletrain.commands.supervise")
    assert done.code == 0
    assert "scaletrain.track.sinks\n" in done.err
    assert " torch\n" not in done.err
