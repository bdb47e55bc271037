"""What a comparison of predictions with references gives."""

from collections.abc import Mapping
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


# What a line for a person holds; the others, such as each label's own, are in the files.
_HEADLINES = (
    *("loss", "perplexity", "bits_per_byte", "accuracy", "subset_accuracy", "precision", "recall", "f1", "f1_macro"),
    *("matthews", "roc_auc", "mse", "pearson", "spearman", "exact_match", "bleu", "chrf", "ter"),
    *("rouge1", "rouge2", "rougeL"),
)


def shown(values: Mapping[str, float]) -> str:
    """The main scores in a line."""
    return "  ".join(f"{name.replace('_', ' ')} {value:,.4f}" for name, value in values.items() if name in _HEADLINES)
