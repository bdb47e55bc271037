"""Scores of numbers equal scikit-learn's and scipy's; what is not defined is left out with a reason."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from scaletrain.tasks.scores.regression import REGRESSION_NAMES, regression


def test_numbers_as_scikit_learn_and_scipy_score_them() -> None:
    random = np.random.default_rng(0)
    references = random.normal(size=60)
    predictions = references + random.normal(size=60)
    values = regression(references.tolist(), predictions.tolist()).values
    assert tuple(values) == REGRESSION_NAMES
    assert values["mse"] == pytest.approx(metrics.mean_squared_error(references, predictions))
    assert values["mae"] == pytest.approx(metrics.mean_absolute_error(references, predictions))
    assert values["r2"] == pytest.approx(metrics.r2_score(references, predictions))
    assert values["pearson"] == pytest.approx(stats.pearsonr(references, predictions)[0])
    assert values["spearman"] == pytest.approx(stats.spearmanr(references, predictions)[0])
    assert all(type(value) is float for value in values.values())


def test_equal_predictions_correlate_with_nothing() -> None:
    scores = regression([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert scores.values == {"mse": pytest.approx(2 / 3), "mae": pytest.approx(2 / 3), "r2": 0.0}
    assert scores.details["left_out"] == dict.fromkeys(("pearson", "spearman"), "the predictions are all equal")


@pytest.mark.parametrize("references", [[1.0], [1.0, 1.0]])
def test_equal_references_have_no_variance_to_explain(references: list[float]) -> None:
    scores = regression(references, [3.0, 2.0][: len(references)])
    assert [*scores.values] == ["mse", "mae"]
    assert scores.details["left_out"] == dict.fromkeys(("r2", "pearson", "spearman"), "the references are all equal")


def test_a_prediction_that_is_no_number_leaves_all_out() -> None:
    scores = regression([1.0, 2.0], [1.0, float("nan")])
    assert scores.values == {}
    assert scores.details["left_out"] == dict.fromkeys(REGRESSION_NAMES, "a prediction is not finite")


def test_no_examples_have_no_scores() -> None:
    assert regression([], []).values == {}
