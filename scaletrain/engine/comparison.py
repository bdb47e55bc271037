"""Two runs side by side: their losses, gradients, samples and states, and where they first differ."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TypeVar

from scaletrain.config.schema import Precision
from scaletrain.engine.checkpoint import read_manifest
from scaletrain.engine.digest import KINDS
from scaletrain.runtime.checkpoint_names import step_names
from scaletrain.runtime.run_files import EVENTS, METRICS
from scaletrain.track.sinks import read_lines

# Largest relative difference of a loss when the ranks are others, whose gradients are added in another order. Over ten
# steps at losses of about 3 rounding made up to 2e-6 in float32 and 3e-3 in bfloat16 (tests/engine/test_elastic.py), so
# a relative 6e-7 and 1e-3. Larger models and learning rates get about 150 and 5 times that; more would hide a fault.
# What a load did wrong the digest tells, to the bit.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 5e-3, "fp16": 5e-3}
# The same of the norm of the gradients, which differs more: on one rank after four, at learning rates of 1e-3 to 1e-2,
# up to 9e-7 in float32 and 2.7e-2 in bfloat16, where a loss differed by 1e-7 and 7e-5. What is to be found is a norm
# that is off by a factor, such as the number of ranks, which Adam hides from the losses.
NORM_TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.2}

Value = TypeVar("Value")
State = Mapping[str, str]  # digest by kind: weights, moments and counters


@dataclass(frozen=True)
class Trace:
    """What a run left behind: by step losses and norms of the gradients; at its checkpoints the digests of samples and
    state; and where it resumed the digest of the state that it had then."""

    losses: Mapping[int, float]
    grad_norms: Mapping[int, float]
    samples: Mapping[int, str]
    states: Mapping[int, State]
    loaded: Mapping[int, State]
    precision: Precision


@dataclass(frozen=True)
class Finding:
    """One thing that was compared: whether it agrees, and what a person reads of it."""

    agrees: bool
    text: str


def read_trace(run: Path) -> Trace:
    """Of a run folder that holds a checkpoint; CheckpointError when one cannot be read."""
    root = run / "checkpoints"
    manifests = [read_manifest(root / name) for name in step_names(root)]
    lines = [line for line in read_lines(run / METRICS) if "loss" in line]
    resumes = [event for event in read_lines(run / EVENTS) if event["event"] == "resume"]
    return Trace(
        # "nan" is read back as NaN, which equals nothing: a run that learns nothing proves nothing
        losses={line["step"]: float(line["loss"]) for line in lines},
        grad_norms={line["step"]: _norm(float(line["grad_norm"])) for line in lines},
        samples={m["state"]["step"]: m["state"]["sample_digest"] for m in manifests},
        states={m["state"]["step"]: m.get("digest", {}) for m in manifests},
        loaded={event["step"]: event.get("digest", {}) for event in resumes},
        precision=manifests[-1]["layout"]["precision"],
    )


def _norm(value: float) -> float:
    """Of an update that was left out, as fp16 does while it looks for its loss scale, one is as good as another."""
    return value if isfinite(value) else float("inf")


def compare_exactly(one: Trace, other: Trace, after: int, until: int) -> list[Finding]:
    """Losses and gradients of the steps after..until, to the bit, and samples and state at `until`."""
    steps = range(after + 1, until + 1)
    return [
        _compared("losses", one.losses, other.losses, steps, repr),
        _compared("gradient norms", one.grad_norms, other.grad_norms, steps, repr),
        compare_samples(one, other, until),
        _compare_states(one.states.get(until, {}), other.states.get(until, {}), until),
    ]


def compare_samples(one: Trace, other: Trace, step: int) -> Finding:
    """Which samples were read at which positions up to `step`."""
    return _compared("samples", one.samples, other.samples, [step], str)


def compare_loaded(saved: Trace, resumed: Trace, step: int) -> Finding:
    """The state that a resume at `step` computed from what it held against the one that was saved."""
    stored, found = saved.states.get(step, {}), resumed.loaded.get(step, {})
    if differing := _differing(stored, found):
        return Finding(False, f"state loaded is not as saved at step {step}: {', '.join(differing)}")
    return Finding(True, f"state loaded as saved (weight {stored['weight']}, moments, counters)")


def compare_closely(one: Trace, other: Trace, after: int, until: int) -> list[Finding]:
    """Losses and gradients of the steps after..until within the tolerance of their precision."""
    steps = range(after + 1, until + 1)
    return [
        _near("losses", one.losses, other.losses, steps, TOLERANCE, one.precision),
        _near("gradient norms", one.grad_norms, other.grad_norms, steps, NORM_TOLERANCE, one.precision),
    ]


def _near(
    what: str,
    one: Mapping[int, float],
    other: Mapping[int, float],
    steps: range,
    bounds: Mapping[Precision, float],
    precision: Precision,
) -> Finding:
    bound, largest, where = bounds[precision], -1.0, steps[0]
    for step in steps:
        a, b = one.get(step, float("nan")), other.get(step, float("nan"))
        difference = 0.0 if a == b else abs(a - b) / abs(a) if a else float("inf")
        if not difference <= bound:  # NaN too
            return Finding(
                False,
                f"{what} differ at step {step}: {a!r} and {b!r}, relative difference {difference:.1e} above {bound:g}",
            )
        if difference > largest:
            largest, where = difference, step
    return Finding(
        True, f"{what} within {bound:g} ({precision}): largest relative difference {largest:.1e} at step {where}"
    )


def _compared(
    what: str, one: Mapping[int, Value], other: Mapping[int, Value], steps: Iterable[int], show: Callable[[Value], str]
) -> Finding:
    for step in steps:
        a, b = one.get(step), other.get(step)
        if a is None or b is None or a != b:
            shown = [show(value) if value is not None else "none recorded" for value in (a, b)]
            return Finding(False, f"{what} differ at step {step}: {' and '.join(shown)}")
    return Finding(True, f"{what} equal")


def _compare_states(one: State, other: State, step: int) -> Finding:
    differing = _differing(one, other)
    return Finding(
        not differing, f"state differs at step {step}: {', '.join(differing)}" if differing else "state equal"
    )


def _differing(one: State, other: State) -> list[str]:
    """The kinds of two states that are not the same, with both values; one that was not recorded is never the same."""
    return [
        f"{kind} {one.get(kind, 'none recorded')} and {other.get(kind, 'none recorded')}"
        for kind in dict.fromkeys((*KINDS, *one, *other))
        if kind not in one or one[kind] != other.get(kind)
    ]
