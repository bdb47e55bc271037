"""Two runs compared: what differs is named with its step and both values."""

from dataclasses import replace

import pytest

from scaletrain.engine.comparison import Trace, compare_closely, compare_exactly

ONE = Trace(
    losses={1: 4.0, 2: 3.5, 3: 3.25, 4: 3.0},
    samples={2: "aa", 4: "bb"},
    states={2: {"weight": "01"}, 4: {"weight": "02"}},
    precision="fp32",
)


def texts(other: Trace, after: int = 2, until: int = 4) -> list[str]:
    findings = compare_exactly(ONE, other, after, until)
    assert [finding.agrees for finding in findings] == [f.text.endswith(" equal") for f in findings]
    return [finding.text for finding in findings]


def test_equal_runs_are_told_equal() -> None:
    assert texts(ONE) == texts(ONE, 0, 2) == ["losses equal", "samples equal", "state equal"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"losses": {**ONE.losses, 3: 3.2500000000000004}}, "losses differ at step 3: 3.25 and 3.2500000000000004"),
        ({"losses": {**ONE.losses, 4: float("nan")}}, "losses differ at step 4: 3.0 and nan"),
        ({"losses": {1: 4.0, 2: 3.5, 3: 3.25}}, "losses differ at step 4: 3.0 and none recorded"),
        ({"samples": {2: "aa", 4: "cc"}}, "samples differ at step 4: bb and cc"),
        ({"states": {4: {"weight": "03"}}}, "state differs at step 4: (weight 02) and (weight 03)"),
    ],
)
def test_the_first_difference_is_named(change: dict, text: str) -> None:  # type: ignore[type-arg]
    assert [found for found in texts(replace(ONE, **change)) if not found.endswith(" equal")] == [text]


def test_what_lies_outside_the_steps_is_not_compared() -> None:
    assert texts(replace(ONE, losses={**ONE.losses, 1: 9.0}, samples={4: "bb"})) == texts(ONE)


def test_losses_of_other_ranks_may_differ_by_rounding_alone() -> None:
    near = replace(ONE, losses={**ONE.losses, 3: 3.25 * (1 + 5e-5)})
    found = compare_closely(ONE, near, 2, 4)
    assert found.agrees
    assert found.text == "losses within 0.0001 (fp32): largest relative difference 5.0e-05 at step 3"
    far = replace(ONE, losses={**ONE.losses, 4: 3.001})
    found = compare_closely(ONE, far, 2, 4)
    assert not found.agrees
    assert found.text == "losses differ at step 4: 3.0 and 3.001, relative difference 3.3e-04 above 0.0001"
    assert compare_closely(replace(ONE, precision="bf16"), far, 2, 4).agrees


@pytest.mark.parametrize("losses", [{}, {3: float("nan"), 4: 3.0}])
def test_a_loss_that_is_missing_or_no_number_is_never_near(losses: dict[int, float]) -> None:
    assert "losses differ at step 3: 3.25 and nan" in compare_closely(ONE, replace(ONE, losses=losses), 2, 4).text
