"""Updates left out and spikes of the loss: told with their cause, and the end of a run where it asks for it."""

import json
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from scaletrain.config.schema import Guard, Recipe
from scaletrain.data.order import Share
from scaletrain.engine.engine import Engine
from scaletrain.engine.guard import (
    GoBack,
    SkipGuard,
    Spike,
    SpikeGuard,
    StragglerGuard,
    cause_of_skip,
    not_finite,
    show_command,
)
from scaletrain.engine.records import Records
from scaletrain.engine.state import RunState
from scaletrain.engine.watch import Watch
from scaletrain.errors import CorruptionError, TrainingError
from scaletrain.runtime import dist
from scaletrain.track.progress import RunProgress
from scaletrain.track.sinks import Events
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
    assert show_command("runs/a b", 96, 24) == "scaletrain audit 'runs/a b' --from 96 --show 24"


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
    guard.note(cause_of_skip(0, [], 0, 8), is_usual=True)
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
    found = spikes(SpikeGuard(policy), [*NOISE, *NOISE, *[9.0] * 3, *NOISE, *[8.0] * 3])
    assert [step for step, _ in found] == [12, 20]
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


def test_losses_that_stay_high_after_a_told_spike_are_the_new_level() -> None:
    policy = Guard(spike_window=10, spike_sigmas=6, spike_steps=3)
    found = spikes(SpikeGuard(policy), [*NOISE, *NOISE, *[9.0] * 30, *[30.0] * 3])
    assert [(step, spike.median) for step, spike in found] == [(12, 3.0), (42, 9.0)]


def test_a_spike_is_found_across_a_stop_and_begins_before_it() -> None:
    policy = Guard(spike_window=10, spike_steps=3)
    before = SpikeGuard(policy)
    assert spikes(before, [*NOISE, *NOISE, 9.0, 9.0]) == []
    found = SpikeGuard(policy, json.loads(json.dumps(before.seen))).note(9.0, 13, 96, 8)
    assert (found.first_step, found.first_sample, found.samples) == (11, 80, 24)


def test_a_spike_goes_back_to_before_the_update_that_its_first_loss_is_of() -> None:
    with pytest.raises(GoBack) as back:
        SpikeGuard(Guard(on_spike="roll_back")).judge(Spike(9.0, 3.0, 0.1, 11, 80, 24))
    assert (back.value.last_step, back.value.end) == (9, 104)


def watching(precision: str = "fp32", stages: tuple[int, ...] = ()) -> Watch:
    guard = {"spike_window": 4, "spike_steps": 1, "on_spike": "stop", "on_nonfinite": "stop"}
    recipe = Recipe.model_validate({"run": {"dir": "."}, "train": {"precision": precision}, "guard": guard})
    return Watch(recipe, Records([], Events(None, 0), RunProgress(None)), {}, stages=stages)


def test_a_new_mixture_has_losses_of_its_own() -> None:
    for stages, is_spike in (((0, 40), False), ((0, 41), True), ((0,), True)):
        watch = watching(stages=stages)
        for step in range(1, 6):
            watch.loss(3.0, RunState(step, step * 8), 8)
        with pytest.raises(TrainingError) if is_spike else nullcontext():
            watch.loss(9.0, RunState(6, 48), 8)


def test_an_update_left_out_because_of_the_loss_scale_of_fp16_is_usual() -> None:
    skipped = SimpleNamespace(skipped=True, weight=64, micro_losses=lambda: [1.0])
    watching("fp16").update(skipped, RunState(1, 8), 8)
    with pytest.raises(TrainingError, match="guard.on_nonfinite is stop"):
        watching("bf16").update(skipped, RunState(1, 8), 8)
    skipped.micro_losses = lambda: [float("nan")]
    with pytest.raises(TrainingError, match="guard.on_nonfinite is stop"):
        watching("fp16").update(skipped, RunState(1, 8), 8)


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


def stragglers(guard: StragglerGuard, seconds: list[list[float]]) -> list[tuple[int, str, int]]:
    """Logged step, change and rank."""
    found = [(step, guard.note(each)) for step, each in enumerate(seconds)]
    return [(step, told[0], told[1]) for step, told in found if told is not None]


def test_a_rank_that_stays_slow_is_told_once_and_once_more_when_it_has_recovered() -> None:
    guard = StragglerGuard(Guard(straggler_ratio=1.5, straggler_logs=3))
    even, slow = [1.0, 1.1, 1.0, 1.2], [1.0, 1.1, 1.8, 1.0]
    assert stragglers(guard, [even, slow, slow, slow, slow, even, even]) == [(3, "slow", 2), (5, "recovered", 2)]


def test_ranks_that_are_slow_in_turn_or_for_a_moment_are_no_stragglers() -> None:
    guard = StragglerGuard(Guard(straggler_ratio=1.5, straggler_logs=2))
    assert stragglers(guard, [[1, 2], [2, 1], [1, 2], [1, 1], [2, 1], [1, 1.5], [2, 1]]) == []
    assert stragglers(StragglerGuard(Guard(straggler_logs=1)), [[1.0], [9.0]]) == []  # one rank has no others


def slow_second_rank() -> list[str]:
    """The lines that rank 0 tells of four logged steps in which rank 1 needs five times as long."""
    said: list[str] = []

    class Screen(RunProgress):
        def say(self, line: str) -> None:
            said.append(line)

    recipe = Recipe.model_validate({"run": {"dir": "."}})
    watch = Watch(recipe, Records([], Events(None, dist.rank()), Screen(None)), {})
    for step in range(1, 5):
        values = watch.seconds(0.5 if dist.rank() else 0.1, step)
    return [*said, f"{values['rank_seconds_median']:g} {values['rank_seconds_max']:g}"]


def test_a_slow_rank_is_named_with_its_host() -> None:
    line, values = run_ranks(slow_second_rank, 2)[0]
    assert re.fullmatch(r"note    rank 1 on \S+ is slow: 0.500 s a step of its own where the median is 0.100 s", line)
    assert values == "0.1 0.5"


def flipped_weight(stage: int) -> str | None:
    """What is told when one bit of a weight of rank 1 is flipped, as a faulty memory does."""
    engine = Engine(TinyTask(), engine_dict(stage, "bf16", dist.size()), OPTIM, torch.device("cpu"))
    per_rank = 8 // dist.size()
    batch = TinyRows().fetch(torch.arange(per_rank).numpy() + per_rank * dist.rank())
    recipe = Recipe.model_validate({"run": {"dir": "."}})
    watch = Watch(recipe, Records([], Events(None, dist.rank()), RunProgress(None)), {})
    engine.train_step([batch], 0.1, 64)
    watch.weights(engine.weights_digest(), RunState(step=1))
    if dist.rank() == 1 and stage < 3:
        with torch.no_grad():
            next(engine._engine.module.parameters()).view(-1).view(torch.int16)[7] ^= 1
    try:
        watch.weights(engine.weights_digest(), RunState(step=1))
    except CorruptionError as error:
        return str(error)
    return None


def flipped_weights() -> list[str | None]:
    return [flipped_weight(stage) for stage in (0, 1, 2, 3)]


def test_a_flipped_bit_of_one_rank_is_found_where_ranks_hold_the_same_weights() -> None:
    for found in run_ranks(flipped_weights, 4):
        assert found[3] is None  # no rank holds another's
        for line in found[:3]:
            assert line is not None
            assert re.match(r"after step 1 the weights of rank 1 on \S+ are not those of the other ranks", line)
            assert "not saved; take the node out" in line


def test_of_two_ranks_that_differ_neither_is_called_right() -> None:
    for found in run_ranks(flipped_weights, 2):
        assert found[0] is not None
        assert re.match(r"after step 1 the weights of rank 0 on \S+, rank 1 on \S+ are not the same", found[0])
