"""What the run does about updates that were left out: each is told with its cause, and too many end the run."""

from dataclasses import dataclass

from scaletrain.config.schema import Guard
from scaletrain.errors import TrainingError


@dataclass
class SkipGuard:
    """Counts updates left out in a row, of this launch."""

    policy: Guard
    in_a_row: int = 0

    def note(self, cause: str | None) -> None:
        """Hears of a step: why its update was left out, or None. TrainingError when the run should end.

        All ranks hear the same and so raise together.
        """
        self.in_a_row = self.in_a_row + 1 if cause is not None else 0
        if cause is None:
            return
        if self.in_a_row >= self.policy.max_skips:
            raise TrainingError(
                f"{self.in_a_row} updates in a row were left out (guard.max_skips={self.policy.max_skips}), the last "
                f"one because of {cause}: lower optim.lr, look at the samples, or resume with a higher guard.max_skips"
            )
        if self.policy.on_nonfinite == "stop" and not cause.startswith(NOTHING_TO_LEARN):
            raise TrainingError(
                f"an update was left out because of {cause}, and guard.on_nonfinite is stop: look at the samples, "
                "lower optim.lr, or resume with guard.on_nonfinite=skip"
            )


NOTHING_TO_LEARN = "a batch in which no token bears loss"


def cause_of_skip(weight: int, finite: list[bool], first_sample: int, samples: int) -> str:
    """In words why an update was left out, and where in the run's order its samples stand.

    `weight`: loss-bearing tokens of the batch; `finite`: for each rank, whether its loss was.
    """
    where = f" (samples {first_sample:,} to {first_sample + samples - 1:,} of the run)"
    if not weight:
        return NOTHING_TO_LEARN + where
    bad = [str(rank) for rank, is_finite in enumerate(finite) if not is_finite]
    if not bad:
        return "gradients that are not finite, though each rank's loss is" + where
    return f"a loss that is not finite on rank{'s' if len(bad) > 1 else ''} {', '.join(bad)}" + where
