"""Two runs side by side: their losses, samples and states, and where they first differ."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scaletrain.config.schema import Precision
from scaletrain.engine.checkpoint import read_manifest
from scaletrain.runtime.checkpoint_names import step_names
from scaletrain.track.sinks import read_lines

# Largest relative difference of a loss when the ranks are others, whose gradients are added in another order. Over ten
# steps at losses of about 3 rounding made up to 2e-6 in float32 and 3e-3 in bfloat16 (tests/engine/test_elastic.py), so
# a relative 6e-7 and 1e-3. Larger models and learning rates get about 150 and 5 times that; more would hide a fault.
# What a load did wrong the digest tells, to the bit.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 5e-3, "fp16": 5e-3}

Value = TypeVar("Value")


@dataclass(frozen=True)
class Trace:
    """What a run left behind: by step the losses, and at its checkpoints the digests of samples and state."""

    losses: Mapping[int, float]
    samples: Mapping[int, str]
    states: Mapping[int, Mapping[str, str]]
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
    return Trace(
        # "nan" is read back as NaN, which equals nothing: a run that learns nothing proves nothing
        losses={line["step"]: float(line["loss"]) for line in read_lines(run / "metrics.jsonl") if "loss" in line},
        samples={m["state"]["step"]: m["state"]["sample_digest"] for m in manifests},
        states={m["state"]["step"]: m.get("digest", {}) for m in manifests},
        precision=manifests[-1]["layout"]["precision"],
    )


def compare_exactly(one: Trace, other: Trace, after: int, until: int) -> list[Finding]:
    """Losses of the steps after..until, to the bit, and samples and state at `until`."""
    steps = range(after + 1, until + 1)
    return [
        _compared("losses", one.losses, other.losses, steps, repr),
        compare_samples(one, other, until),
        _compared("state", one.states, other.states, [until], _shown_state),
    ]


def compare_samples(one: Trace, other: Trace, step: int) -> Finding:
    """Which samples were read at which positions up to `step`."""
    return _compared("samples", one.samples, other.samples, [step], str)


def compare_closely(one: Trace, other: Trace, after: int, until: int) -> Finding:
    """Losses of the steps after..until within the tolerance of their precision."""
    bound, largest, where = TOLERANCE[one.precision], -1.0, after + 1
    for step in range(after + 1, until + 1):
        a, b = one.losses.get(step, float("nan")), other.losses.get(step, float("nan"))
        difference = 0.0 if a == b else abs(a - b) / abs(a) if a else float("inf")
        if not difference <= bound:  # NaN too
            return Finding(
                False,
                f"losses differ at step {step}: {a!r} and {b!r}, relative difference {difference:.1e} above {bound:g}",
            )
        if difference > largest:
            largest, where = difference, step
    return Finding(
        True, f"losses within {bound:g} ({one.precision}): largest relative difference {largest:.1e} at step {where}"
    )


def _compared(
    what: str, one: Mapping[int, Value], other: Mapping[int, Value], steps: Iterable[int], show: Callable[[Value], str]
) -> Finding:
    for step in steps:
        a, b = one.get(step), other.get(step)
        if a is None or b is None or a != b:
            shown = [show(value) if value is not None else "none recorded" for value in (a, b)]
            return Finding(
                False, f"{what} {'differs' if what == 'state' else 'differ'} at step {step}: {' and '.join(shown)}"
            )
    return Finding(True, f"{what} equal")


def _shown_state(state: Mapping[str, str]) -> str:
    return "(" + ", ".join(f"{kind} {value}" for kind, value in state.items()) + ")"
