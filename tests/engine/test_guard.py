"""Updates that are left out: told with their cause, and ended when there are too many."""

import pytest

from scaletrain.config.schema import Guard
from scaletrain.engine.guard import SkipGuard, cause_of_skip
from scaletrain.errors import TrainingError


def test_a_cause_names_ranks_and_samples() -> None:
    assert cause_of_skip(64, [True, False, False], 80, 16) == (
        "a loss that is not finite on ranks 1, 2 (samples 80 to 95 of the run)"
    )
    assert cause_of_skip(64, [False], 0, 8).startswith("a loss that is not finite on rank 0 (samples 0 to 7")
    assert cause_of_skip(64, [True, True], 0, 8).startswith("gradients that are not finite, though")
    assert cause_of_skip(0, [True], 0, 8).startswith("a batch in which no token bears loss")


def test_only_skips_in_a_row_end_a_run() -> None:
    guard = SkipGuard(Guard(max_skips=3))
    for cause in ("x", "x", None, "x", "x"):
        guard.note(cause)
    with pytest.raises(
        TrainingError, match=r"3 updates in a row were left out .guard.max_skips=3.*because of x: lower"
    ):
        guard.note("x")


def test_the_first_one_ends_a_run_that_is_to_stop_but_for_a_batch_without_loss() -> None:
    guard = SkipGuard(Guard(on_nonfinite="stop"))
    guard.note(cause_of_skip(0, [True], 0, 8))
    with pytest.raises(
        TrainingError, match=r"not finite on rank 0 .*and guard.on_nonfinite is stop: look at the samples"
    ):
        guard.note(cause_of_skip(64, [False], 0, 8))
