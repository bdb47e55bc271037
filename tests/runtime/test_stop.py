"""What asks a run to stop: each signal, the stop file, the end of the time."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaletrain.runtime.stop import StopRequest, TimeLimit, remember_warning

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture
def restored() -> Iterator[None]:
    """The signals' handlers are pytest's again after the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_is_a_request_and_its_echo_is_not_another(number: signal.Signals) -> None:
    stop = StopRequest()
    stop.listen(watch_launcher=False)
    assert stop.reason is None
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason == number.name


@pytest.mark.usefixtures("restored")
def test_a_warning_that_comes_before_the_run_listens_is_remembered() -> None:
    remember_warning()
    os.kill(os.getpid(), signal.SIGUSR1)
    for expected in ("SIGUSR1", None):  # the second run of this process knows nothing of it
        stop = StopRequest()
        stop.listen(watch_launcher=False)
        assert stop.reason == expected


def test_a_signal_after_the_grace_ends_the_process_at_once() -> None:
    child = os.fork()
    if child == 0:
        stop = StopRequest()
        stop.listen(watch_launcher=False)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(3.1)
        os.kill(os.getpid(), signal.SIGUSR1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGUSR1


def test_a_stop_file_is_a_request_that_outlives_it(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    file.touch()
    stop = StopRequest(file)
    assert stop.reason == f"{file} was found"
    file.unlink()
    assert stop.reason == f"{file} was found"  # the ranks have agreed already


@pytest.mark.parametrize(("text", "told"), [("SIGINT\n", "SIGINT"), ("enough\n", None), ("", None)])
def test_a_supervisors_stop_file_tells_its_signal(text: str, told: str | None, tmp_path: Path) -> None:
    file = tmp_path / "stop"
    file.write_text(text)
    assert StopRequest(file).reason == (told or f"{file} was found")


def test_a_stop_file_is_looked_for_once_a_second(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    stop = StopRequest(file)
    began = time.monotonic()
    assert stop.reason is None
    file.touch()
    while stop.reason is None:
        assert time.monotonic() - began < 10
        time.sleep(0.01)
    assert time.monotonic() - began >= 1


def test_a_folder_named_stop_is_no_request(tmp_path: Path) -> None:
    (tmp_path / "stop").mkdir()
    stop = StopRequest(tmp_path / "stop")
    assert stop.reason is None
    stop.remove_file()
    assert not stop.remove_old_file()
    assert (tmp_path / "stop").is_dir()


def test_an_obeyed_stop_file_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    stop = StopRequest(file)
    stop.remove_file()  # a signal came, and no file is there
    assert not stop.obeyed_file
    file.touch()
    stop.remove_file()
    assert stop.obeyed_file
    assert not file.exists()


@pytest.mark.parametrize(("age", "is_old"), [(60, True), (-1, False)])
def test_only_a_stop_file_older_than_the_launch_is_removed_at_its_start(
    age: float, is_old: bool, tmp_path: Path
) -> None:
    file, launched = tmp_path / "stop", time.time()
    file.touch()
    os.utime(file, (launched - age, launched - age))
    stop = StopRequest(file, launched)
    assert stop.remove_old_file() is is_old
    assert file.exists() is not is_old
    assert (stop.reason is None) is is_old


def test_a_limit_leaves_five_hundredths_for_a_save_before_one_is_measured() -> None:
    assert TimeLimit(100, began=0).reserve == pytest.approx(5 + 1)
    assert TimeLimit(36000, began=0).reserve == pytest.approx(30 + 5)


def test_a_limit_leaves_half_as_much_again_as_the_longest_save() -> None:
    limit = TimeLimit(36000, began=0)
    for seconds in (40, 100, 60):
        limit.note_save(seconds)
    assert limit.reserve == pytest.approx(150 + 5)


def test_a_limit_is_reached_at_the_end_less_its_reserve() -> None:
    limit = TimeLimit(100, began=1000)
    assert not TimeLimit(100, began=1000).is_reached(1093.9)
    assert TimeLimit(100, began=1000).is_reached(1094.1)
    assert not limit.is_reached(1000)
    assert not limit.is_reached(1003)  # a step of 3 seconds
    assert limit.reserve == pytest.approx(3 + 3 + 6)
    assert limit.is_reached(1088.5)


@pytest.mark.parametrize("evaluation", [0, 35])
@pytest.mark.parametrize("step", [1, 7, 40])
@pytest.mark.parametrize("save", [2, 20, 60])
def test_steps_evaluations_and_a_save_like_those_before_end_in_time(
    step: float, save: float, evaluation: float
) -> None:
    """Plays the loop: a look, a step, every third time a save, every fourth an evaluation; at the stop a save."""
    limit, now, steps, last = TimeLimit(1000, began=0), 10.0, 0, False
    while not last:
        last = limit.is_reached(now)
        now, steps = now + step, steps + 1
        if steps % 3 == 0 and not last:
            now += save
            limit.note_save(save)
        if steps % 4 == 0 and not last:
            now += evaluation
    now += 1.5 * save
    assert now <= 1000
    assert now > 1000 - 3 * (step + save + evaluation) - 20, "far more time was left than needed"
