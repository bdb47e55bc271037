"""Scores of predicted numbers."""

from collections.abc import Sequence

import numpy as np

from scaletrain.tasks.scores.libraries import require
from scaletrain.tasks.scores.result import Scores

NEEDS = ("scipy",)
REGRESSION_NAMES = ("mse", "mae", "r2", "pearson", "spearman")


def regression(references_N: Sequence[float], predictions_N: Sequence[float]) -> Scores:
    """Mean squared and absolute error, the share of the variance that is explained, and the two correlations.

    Numbers that are all equal correlate with nothing, and references that are explain no variance: `left_out` says so.
    """
    references, predictions = (np.asarray(numbers, dtype=np.float64) for numbers in (references_N, predictions_N))
    assert references.shape == predictions.shape
    if not len(references):
        return Scores({})
    if not np.isfinite(predictions).all():
        return Scores({}, {"left_out": dict.fromkeys(REGRESSION_NAMES, "a prediction is not finite")})
    require("a score of numbers", *NEEDS)
    from scipy.stats import pearsonr, spearmanr

    errors = predictions - references
    values = {"mse": float((errors**2).mean()), "mae": float(np.abs(errors).mean())}
    left_out = {}
    if np.ptp(references) == 0:
        left_out = dict.fromkeys(("r2", "pearson", "spearman"), "the references are all equal")
    else:
        values["r2"] = float(1 - (errors**2).sum() / ((references - references.mean()) ** 2).sum())
        if np.ptp(predictions) == 0:
            left_out = dict.fromkeys(("pearson", "spearman"), "the predictions are all equal")
        else:
            values["pearson"] = float(pearsonr(references, predictions)[0])
            values["spearman"] = float(spearmanr(references, predictions)[0])
    return Scores(values, {"left_out": left_out} if left_out else {})
