"""Precision, recall and F1 of predicted labels, by label and on average, as scikit-learn has them.

`precision`, `recall` and `f1` are averages over the labels, weighted by how often the references have them, with two
labels as with many: none of them is "the positive one". That one's F1, which GLUE reports, is `f1_<label>`. `_macro`
counts all labels alike, `_micro` all decisions. A label that neither references nor predictions have does not enter an
average; a precision or recall of nothing is 0.
"""

from collections.abc import Sequence

import numpy as np

PARTS = ("precision", "recall", "f1")
AVERAGES = ("", "_macro", "_micro")
AVERAGED = tuple(part + average for average in AVERAGES for part in PARTS)


def by_label(part: str, label: str) -> str:
    """`f1_<label>`, or `f1_label_<label>` where an average has that name."""
    name = f"{part}_{label}"
    return f"{part}_label_{label}" if name in AVERAGED else name


def label_names(labels: Sequence[str]) -> tuple[str, ...]:
    return (*AVERAGED, *(by_label(part, label) for label in labels for part in PARTS))


def label_scores(
    right: np.ndarray, wanted: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> dict[str, float]:
    """From how often each label was predicted rightly, stands in the references, and was predicted at all; (C,) each.

    Nothing where no label occurs.
    """
    occurs = np.flatnonzero(wanted + predicted).tolist()
    if not occurs:
        return {}
    right, wanted, predicted = right[occurs], wanted[occurs], predicted[occurs]
    parts = _parts(right, wanted, predicted)
    weights = wanted / max(wanted.sum(), 1)
    averages = (
        [part @ weights for part in parts],
        [part.mean() for part in parts],
        _parts(right.sum(), wanted.sum(), predicted.sum()),
    )
    names = label_names([labels[index] for index in occurs])
    each = (part[place] for place in range(len(occurs)) for part in parts)
    return dict(zip(names, map(float, (*(value for found in averages for value in found), *each)), strict=True))


def _parts(right: np.ndarray, wanted: np.ndarray, predicted: np.ndarray) -> list[np.ndarray]:
    """Precision, recall and F1 of counts."""
    return [
        right / np.maximum(predicted, 1),
        right / np.maximum(wanted, 1),
        2 * right / np.maximum(wanted + predicted, 1),
    ]
