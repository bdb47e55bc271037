"""Scores of a classification in which an example has any number of the labels."""

from collections.abc import Sequence

import numpy as np

from scaletrain.tasks.scores.labels import label_names, label_scores
from scaletrain.tasks.scores.libraries import require
from scaletrain.tasks.scores.result import Scores

NEEDS = ("sklearn",)


def multi_label_names(labels: Sequence[str]) -> tuple[str, ...]:
    return ("subset_accuracy", *label_names(labels), "roc_auc")


def multi_label(references_NC: np.ndarray, logits_NC: np.ndarray, labels: Sequence[str]) -> Scores:
    """Of true or false for each label, and the scores before the sigmoid: a label is predicted from one half on.

    `subset_accuracy` is the share of examples with all labels right; `roc_auc` is the mean over the labels.
    """
    if not len(references_NC):
        return Scores({})
    references = np.asarray(references_NC).astype(bool)
    logits = np.asarray(logits_NC, dtype=np.float64)
    predictions = logits >= 0
    counts = (references & predictions).sum(0), references.sum(0), predictions.sum(0)
    values = {"subset_accuracy": float((references == predictions).all(1).mean()), **label_scores(*counts, labels)}
    fault = _no_roc_auc(references, logits, labels)
    if fault:
        return Scores(values, {"left_out": {"roc_auc": fault}})
    require("eval_roc_auc", *NEEDS)
    from sklearn.metrics import roc_auc_score

    areas = [roc_auc_score(wanted, scores) for wanted, scores in zip(references.T, logits.T, strict=True)]
    return Scores({**values, "roc_auc": float(np.mean(areas))})


def _no_roc_auc(references_NC: np.ndarray, logits_NC: np.ndarray, labels: Sequence[str]) -> str | None:
    """Why there is no ROC curve."""
    shares = references_NC.mean(0)
    alike = [label for label, share in zip(labels, shares, strict=True) if share in (0, 1)]
    if alike:
        return f"all references or none have {', '.join(alike[:5])}{' ...' if len(alike) > 5 else ''}"
    return None if np.isfinite(logits_NC).all() else "a predicted score is not finite"
