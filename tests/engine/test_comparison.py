"""Two runs compared: what differs is named with its step and both values."""

from dataclasses import replace

import pytest

from scaletrain.engine.comparison import Trace, compare_closely, compare_exactly, compare_loaded

STATE = {"weight": "01", "exp_avg": "0a", "exp_avg_sq": "0b", "step": "0c"}
ONE = Trace(
    losses={1: 4.0, 2: 3.5, 3: 3.25, 4: 3.0},
    grad_norms={1: 0.5, 2: float("inf"), 3: 0.25, 4: 0.2},  # the update of step 2 was left out
    samples={2: "aa", 4: "bb"},
    states={2: STATE, 4: {**STATE, "weight": "02"}},
    loaded={2: STATE},
    precision="fp32",
)


def texts(other: Trace, after: int = 2, until: int = 4) -> list[str]:
    findings = compare_exactly(ONE, other, after, until)
    assert [finding.agrees for finding in findings] == [f.text.endswith(" equal") for f in findings]
    return [finding.text for finding in findings]


def test_equal_runs_are_told_equal() -> None:
    equal = ["losses equal", "gradient norms equal", "samples equal", "state equal"]
    assert texts(ONE) == texts(ONE, 0, 2) == equal


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"losses": {**ONE.losses, 3: 3.2500000000000004}}, "losses differ at step 3: 3.25 and 3.2500000000000004"),
        ({"losses": {**ONE.losses, 4: float("nan")}}, "losses differ at step 4: 3.0 and nan"),
        ({"losses": {1: 4.0, 2: 3.5, 3: 3.25}}, "losses differ at step 4: 3.0 and none recorded"),
        ({"samples": {2: "aa", 4: "cc"}}, "samples differ at step 4: bb and cc"),
        ({"grad_norms": {3: 0.25, 4: 0.3}}, "gradient norms differ at step 4: 0.2 and 0.3"),
        ({"grad_norms": {3: float("inf"), 4: 0.2}}, "gradient norms differ at step 3: 0.25 and inf"),
        (
            {"states": {4: {**STATE, "weight": "03", "step": "0d"}}},
            "state differs at step 4: weight 02 and 03, step 0c and 0d",
        ),
    ],
)
def test_the_first_difference_is_named(change: dict, text: str) -> None:  # type: ignore[type-arg]
    assert [found for found in texts(replace(ONE, **change)) if not found.endswith(" equal")] == [text]


def test_what_lies_outside_the_steps_is_not_compared() -> None:
    assert texts(replace(ONE, losses={**ONE.losses, 1: 9.0}, samples={4: "bb"})) == texts(ONE)


def test_losses_of_other_ranks_may_differ_by_rounding_alone() -> None:
    near = replace(ONE, losses={**ONE.losses, 3: 3.25 * (1 + 5e-5)})
    losses, norms = compare_closely(ONE, near, 2, 4)
    assert losses.agrees
    assert losses.text == "losses within 0.0001 (fp32): largest relative difference 5.0e-05 at step 3"
    assert norms.text == "gradient norms within 0.001 (fp32): largest relative difference 0.0e+00 at step 3"
    far = replace(ONE, losses={**ONE.losses, 4: 3.001}, grad_norms={**ONE.grad_norms, 3: 0.251})
    losses, norms = compare_closely(ONE, far, 2, 4)
    assert not losses.agrees
    assert losses.text == "losses differ at step 4: 3.0 and 3.001, relative difference 3.3e-04 above 0.0001"
    assert not norms.agrees
    assert norms.text == "gradient norms differ at step 3: 0.25 and 0.251, relative difference 4.0e-03 above 0.001"
    assert all(found.agrees for found in compare_closely(replace(ONE, precision="bf16"), far, 2, 4))
    halved = replace(ONE, grad_norms={step: norm / 2 for step, norm in ONE.grad_norms.items()})
    assert [found.agrees for found in compare_closely(replace(ONE, precision="bf16"), halved, 2, 4)] == [True, False]


def test_an_update_that_was_left_out_on_both_sides_is_alike() -> None:
    assert [found.agrees for found in compare_closely(ONE, ONE, 0, 4)] == [True, True]
    applied = replace(ONE, grad_norms={**ONE.grad_norms, 2: 0.4})
    assert [found.agrees for found in compare_closely(ONE, applied, 0, 4)] == [True, False]


def test_the_kinds_of_a_state_that_was_not_loaded_as_saved_are_named() -> None:
    found = compare_loaded(ONE, ONE, 2)
    assert (found.agrees, found.text) == (True, "state loaded as saved (weight 01, moments, counters)")
    for changed, text in (
        ({**STATE, "exp_avg": "ff", "step": "0d"}, "exp_avg 0a and ff, step 0c and 0d"),
        ({"weight": "01"}, "exp_avg 0a and none recorded, exp_avg_sq 0b and none recorded, step 0c and none recorded"),
    ):
        found = compare_loaded(ONE, replace(ONE, loaded={2: changed}), 2)
        assert (found.agrees, found.text) == (False, f"state loaded is not as saved at step 2: {text}")


def test_a_kind_that_only_another_optimizer_has_is_compared_too() -> None:
    with_momentum = replace(ONE, states={2: {**STATE, "momentum_buffer": "0e"}})
    found = compare_loaded(with_momentum, replace(ONE, loaded={2: {**STATE, "momentum_buffer": "ff"}}), 2)
    assert found.text == "state loaded is not as saved at step 2: momentum_buffer 0e and ff"
    assert not compare_loaded(with_momentum, replace(ONE, loaded={2: STATE}), 2).agrees


def test_a_digest_that_was_recorded_on_neither_side_is_no_proof() -> None:
    none = replace(ONE, states={}, loaded={})
    assert not compare_loaded(none, none, 2).agrees
    state = compare_exactly(none, none, 2, 4)[-1]
    assert not state.agrees
    assert state.text.startswith("state differs at step 4: weight none recorded and none recorded, exp_avg ")


@pytest.mark.parametrize("losses", [{}, {3: float("nan"), 4: 3.0}])
def test_a_loss_that_is_missing_or_no_number_is_never_near(losses: dict[int, float]) -> None:
    assert "losses differ at step 3: 3.25 and nan" in compare_closely(ONE, replace(ONE, losses=losses), 2, 4)[0].text
