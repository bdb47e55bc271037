"""Scores of a classification with one label an example."""

from collections.abc import Sequence

import numpy as np

from scaletrain.tasks.scores.labels import label_names, label_scores
from scaletrain.tasks.scores.libraries import require
from scaletrain.tasks.scores.result import Scores

NEEDS = ("sklearn",)


def classification_names(labels: Sequence[str]) -> tuple[str, ...]:
    return ("accuracy", *label_names(labels), "matthews", "roc_auc")


def classification(references_N: Sequence[int], logits_NC: np.ndarray, labels: Sequence[str]) -> Scores:
    """Of label indices and the scores before the softmax; the label of the highest is predicted.

    `matthews` is Matthews' correlation coefficient, 0 where all predictions or all references are equal. `roc_auc` is
    the area under the ROC curve of the second label's probability, with more labels the mean of each against the rest.
    """
    if not len(references_N):
        return Scores({})
    references = np.asarray(references_N, dtype=np.int64)
    logits = np.asarray(logits_NC, dtype=np.float64)
    counts_CC = confusion(references, logits.argmax(1), len(labels))
    values = {**confusion_scores(counts_CC, labels), "matthews": _matthews(counts_CC)}
    details = {"confusion": {"labels": list(labels), "rows": "references", "counts": counts_CC.tolist()}}
    fault = _no_roc_auc(counts_CC, logits, labels)
    if fault:
        return Scores(values, {**details, "left_out": {"roc_auc": fault}})
    return Scores({**values, "roc_auc": _roc_auc(references, logits)}, details)


def confusion(references_N: np.ndarray, predictions_N: np.ndarray, num_labels: int) -> np.ndarray:
    """(C, C): how often a reference (row) got a prediction (column)."""
    counts_CC = np.zeros((num_labels, num_labels), dtype=np.int64)
    np.add.at(counts_CC, (references_N, predictions_N), 1)
    return counts_CC


def confusion_scores(counts_CC: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """Accuracy and the scores by label; the micro averages equal the accuracy, as each example has one label."""
    right = np.diag(counts_CC)
    accuracy = float(right.sum() / counts_CC.sum())
    return {"accuracy": accuracy, **label_scores(right, counts_CC.sum(1), counts_CC.sum(0), labels)}


def _matthews(counts_CC: np.ndarray) -> float:
    """From the confusion matrix (Gorodkin 2004); scikit-learn's function wants all examples again."""
    counts = counts_CC.astype(np.float64)
    total, wanted, predicted = counts.sum(), counts.sum(1), counts.sum(0)
    spread = (total**2 - predicted @ predicted) * (total**2 - wanted @ wanted)
    return float((np.trace(counts) * total - wanted @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


def _no_roc_auc(counts_CC: np.ndarray, logits_NC: np.ndarray, labels: Sequence[str]) -> str | None:
    """Why there is no ROC curve."""
    absent = [label for label, count in zip(labels, counts_CC.sum(1), strict=True) if not count]
    if len(labels) < 2:
        return "there is one label only"
    if absent:
        return f"the references have no {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}"
    return None if np.isfinite(logits_NC).all() else "a predicted score is not finite"


def _roc_auc(references_N: np.ndarray, logits_NC: np.ndarray) -> float:
    require("eval_roc_auc", *NEEDS)
    from sklearn.metrics import roc_auc_score

    powers_NC = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
    probabilities_NC = powers_NC / powers_NC.sum(1, keepdims=True)
    scores = probabilities_NC[:, 1] if probabilities_NC.shape[1] == 2 else probabilities_NC
    return float(roc_auc_score(references_N, scores, multi_class="ovr", average="macro"))
