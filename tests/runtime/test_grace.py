"""How long the rest of a dead launch may go on."""

import time
from pathlib import Path

import pytest

from scaletrain.runtime import grace as grace_module
from scaletrain.runtime.grace import Grace


def wait_until_over(grace: Grace) -> float:
    began = time.monotonic()
    while not grace.is_over():
        assert time.monotonic() - began < 10
        time.sleep(0.01)
    return time.monotonic() - began


def test_without_an_unfinished_checkpoint_it_lasts_its_seconds(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "step-00000004").mkdir()
    (tmp_path / "step-00000004" / "state").touch()
    assert 0.1 < wait_until_over(Grace(tmp_path, 0.2, 5, told.append)) < 0.5
    assert told == []


def test_it_lasts_while_a_checkpoint_is_written_and_a_little_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grace_module, "_QUIET_SECONDS", 0.6)
    told: list[str] = []
    grace, folder = Grace(tmp_path, 0.2, 5, told.append), tmp_path / ".unfinished-step-00000004"
    folder.mkdir()
    for number in range(3):
        (folder / "state").write_text("x" * number)
        for _ in range(4):  # longer than the grace without a save
            time.sleep(0.1)
            assert not grace.is_over()
    folder.rename(tmp_path / "step-00000004")
    assert 0.1 < wait_until_over(grace) < 0.5
    assert told == [
        "wait    a checkpoint is unfinished, so what the launch has left goes on until no file of it was written for "
        "0.6 s, guard.hang_seconds=5 at most"
    ]


def test_a_save_that_stands_still_or_never_ends_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grace_module, "_QUIET_SECONDS", 0.6)
    (tmp_path / ".unfinished-step-00000004").mkdir()
    (tmp_path / ".unfinished-step-00000004" / "state").touch()
    assert 0.5 < wait_until_over(Grace(tmp_path, 0.2, 5, lambda line: None)) < 1.0
    assert 0.3 < wait_until_over(Grace(tmp_path, 0.2, 0.4, lambda line: None)) < 0.6
