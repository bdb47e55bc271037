"""Updates left out and spikes of the loss: told with their cause, and the end of a run where it asks for it."""

import pytest
import torch

from scaletrain.config.schema import Guard
from scaletrain.data.order import Share
from scaletrain.engine.engine import Engine
from scaletrain.engine.guard import SkipGuard, Spike, SpikeGuard, cause_of_skip, not_finite, show_command
from scaletrain.errors import TrainingError
from scaletrain.runtime import dist
from tests.engine.tiny import TinyRows, TinyTask
from tests.engine.training import OPTIM, engine_dict
from tests.ranks import run_ranks


def test_a_cause_names_ranks_micro_batches_and_samples() -> None:
    assert cause_of_skip(64, [(1, 0), (1, 3), (2, 1)], 80, 16) == (
        "a loss that is not finite on rank 1 (micro-batch 0, 3), rank 2 (micro-batch 1) (samples 80 to 95 of the run)"
    )
    assert cause_of_skip(64, [], 0, 8).startswith("gradients that are not finite, though")
    assert cause_of_skip(0, [], 0, 8).startswith("a batch in which no token bears loss")


def test_the_command_that_shows_samples_takes_any_folder() -> None:
    assert show_command("runs/a b", 16) == "scaletrain audit 'runs/a b' --step 16"


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
    guard.note(cause_of_skip(0, [], 0, 8))
    with pytest.raises(
        TrainingError, match=r"not finite on rank 0 .*and guard.on_nonfinite is stop: look at the samples"
    ):
        guard.note(cause_of_skip(64, [(0, 0)], 0, 8))


def losses_of_a_step(poisoned: bool) -> tuple[list[list[float]], float, bool]:
    """Of two micro-batches a rank; the second is no number on rank 1. And this rank's sum of them on the device."""

    class Poisoned(TinyTask):
        calls = 0

        def loss_sums(self, model, batch):  # type: ignore[no-untyped-def]
            sums, self.calls = super().loss_sums(model, batch), self.calls + 1
            bad = poisoned and dist.rank() == 1 and self.calls == 2
            return {**sums, "loss": sums["loss"] * float("nan")} if bad else sums

    share = Share(dist.rank(), dist.size(), 2, 2)
    engine = Engine(Poisoned(), engine_dict(1, "fp32", dist.size(), 2), OPTIM, torch.device("cpu"))
    result = engine.train_step([TinyRows().fetch(ids) for ids in share.of(torch.arange(8).numpy())], 0.1, 64)
    return dist.gather(result.micro_losses()), float(result.loss_sum), result.skipped


def test_every_rank_learns_which_micro_batch_of_which_rank_is_not_finite() -> None:
    for losses, _, skipped in run_ranks(losses_of_a_step, 2, True):
        assert (not_finite(losses), skipped) == ([(1, 1)], True)
    for rank, (losses, whole, skipped) in enumerate(run_ranks(losses_of_a_step, 2, False)):
        assert (not_finite(losses), skipped, len(losses[rank])) == ([], False, 2)
        assert sum(losses[rank]) == pytest.approx(whole, rel=1e-6)


def spikes(guard: SpikeGuard, losses: list[float]) -> list[tuple[int, Spike]]:
    """The spikes in these losses of steps of eight samples, each with the step's number from 0."""
    found = [(step, guard.note(loss, step + 1, step * 8, 8)) for step, loss in enumerate(losses)]
    return [(step, spike) for step, spike in found if spike is not None]


NOISE = [3.0, 3.2, 2.8, 3.1, 2.9]  # median 3, median distance 0.1


def test_a_spike_is_told_once_an_episode_at_the_step_that_makes_it_one() -> None:
    policy = Guard(spike_window=10, spike_sigmas=6, spike_steps=3)
    found = spikes(SpikeGuard(policy), [*NOISE, *NOISE, *[9.0] * 6, *NOISE, *[8.0] * 3])
    assert [step for step, _ in found] == [12, 23]
    assert found[0][1] == Spike(9.0, 3.0, pytest.approx(0.14826), 11, 80, 24)
    assert str(found[0][1]) == (
        "a loss of 9 where the median is 3 with a deviation of 0.15 (samples 80 to 103 of the run)"
    )
    assert found[1][1].median == 3.0  # the losses of the first spike are no measure for later ones


def test_fewer_steps_in_a_row_or_a_loss_below_the_bound_make_no_spike() -> None:
    policy = Guard(spike_window=10, spike_sigmas=6, spike_steps=3)
    assert spikes(SpikeGuard(policy), [*NOISE, 9.0, 9.0, 3.0, 9.0, 9.0, 3.0]) == []
    assert spikes(SpikeGuard(policy), [*NOISE, *[3.88] * 3]) == []  # bound: 3 + 6 * 0.14826 = 3.8896
    assert [step for step, _ in spikes(SpikeGuard(policy), [*NOISE, *[3.9] * 3])] == [7]


def test_nothing_is_a_spike_before_half_the_window_is_known() -> None:
    policy = Guard(spike_window=10, spike_steps=1)
    assert spikes(SpikeGuard(policy), [3.0, 3.0, 3.0, 3.0, 50.0]) == []
    assert [step for step, _ in spikes(SpikeGuard(policy), [3.0, 3.0, 3.0, 3.0, 3.0, 50.0])] == [5]


def test_the_last_digits_of_a_flat_loss_are_no_spike() -> None:
    policy = Guard(spike_window=10, spike_steps=1)
    assert spikes(SpikeGuard(policy), [3.0] * 10 + [3.1]) == []  # a hundredth of 3, six times
    assert spikes(SpikeGuard(policy), [0.0] * 10 + [0.005]) == []
    assert [step for step, _ in spikes(SpikeGuard(policy), [3.0] * 10 + [3.2])] == [10]


def test_only_the_newest_losses_of_the_window_count() -> None:
    policy = Guard(spike_window=4, spike_steps=1)
    assert len(spikes(SpikeGuard(policy), [9.0] * 4 + [8.0])) == 0
    assert len(spikes(SpikeGuard(policy), [9.0] * 4 + [3.0] * 4 + [8.0])) == 1


def test_a_spike_ends_a_run_that_is_to_stop_and_no_other() -> None:
    spike = Spike(9.0, 3.0, 0.1, 11, 80, 24)
    SpikeGuard(Guard()).judge(spike)
    with pytest.raises(
        TrainingError,
        match=r"3 steps in a row ended in a loss of 9 .* to 103 of the run\), and guard.on_spike is stop: look",
    ):
        SpikeGuard(Guard(on_spike="stop")).judge(spike)
