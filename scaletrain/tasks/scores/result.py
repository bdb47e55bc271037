"""What a comparison of predictions with references gives."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scores:
    values: dict[str, float]
    """Finite numbers under the names that were told beforehand. One that is not defined for these references is absent,
    and `details["left_out"]` says why. Without any example there are none."""
    details: dict[str, Any] = field(default_factory=dict)
    """What a number does not say: matrices, signatures, reasons; as JSON holds it."""


def merged(first: Scores, second: Scores) -> Scores:
    """Both in one; what was left out is joined."""
    details = {**first.details, **second.details}
    if "left_out" in details:
        details["left_out"] = {**first.details.get("left_out", {}), **second.details.get("left_out", {})}
    return Scores({**first.values, **second.values}, details)
