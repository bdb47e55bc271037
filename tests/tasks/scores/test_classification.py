"""Scores of labels equal scikit-learn's, under the names told beforehand; what is not defined is left out."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from scaletrain.tasks.scores.classification import classification, classification_names
from scaletrain.tasks.scores.multi_label import multi_label, multi_label_names

PARTS = ("precision", "recall", "f1")
ENDINGS = {"weighted": "", "macro": "_macro", "micro": "_micro"}
CASES = given(seed=st.integers(0, 10**6), num=st.integers(1, 30), labels=st.integers(1, 5))


def _labels(count: int) -> list[str]:
    return ["ham", "spam", "macro", "a b", "5"][:count]


@settings(deadline=None)
@CASES
def test_one_label_an_example_as_scikit_learn_scores_it(seed: int, num: int, labels: int) -> None:
    random, names = np.random.default_rng(seed), _labels(labels)
    references, logits = random.integers(0, labels, num), random.normal(size=(num, labels))
    scores = classification(references.tolist(), logits, names)
    given_ = logits.argmax(1)
    assert scores.values["accuracy"] == pytest.approx(metrics.accuracy_score(references, given_))
    for average, ending in ENDINGS.items():
        expected = metrics.precision_recall_fscore_support(references, given_, average=average, zero_division=0)
        assert [scores.values[part + ending] for part in PARTS] == pytest.approx(expected[:3])
    if len({*references, *given_}) > 1:  # scikit-learn warns of a single one
        assert scores.values["matthews"] == pytest.approx(metrics.matthews_corrcoef(references, given_), abs=1e-12)
    else:
        assert scores.values["matthews"] == 0.0
    counts = [[int(((references == a) & (given_ == b)).sum()) for b in range(labels)] for a in range(labels)]
    assert scores.details["confusion"] == {"labels": names, "rows": "references", "counts": counts}
    assert {*scores.values, *scores.details.get("left_out", {})} <= {*classification_names(names)}
    assert all(type(value) is float and math.isfinite(value) for value in scores.values.values())
    json.dumps(scores.details, allow_nan=False)


@settings(deadline=None)
@CASES
def test_several_labels_an_example_as_scikit_learn_scores_them(seed: int, num: int, labels: int) -> None:
    random, names = np.random.default_rng(seed), _labels(labels)
    references, logits = random.random((num, labels)) < random.random(labels), random.normal(size=(num, labels))
    scores = multi_label(references, logits, names)
    given_ = logits >= 0
    assert scores.values["subset_accuracy"] == pytest.approx((references == given_).all(1).mean())
    occur = np.flatnonzero((references | given_).any(0))
    if labels > 1:
        for average, ending in ENDINGS.items() if len(occur) else ():
            expected = metrics.precision_recall_fscore_support(
                references, given_, labels=occur, average=average, zero_division=0
            )
            assert [scores.values[part + ending] for part in PARTS] == pytest.approx(expected[:3])
    for index in occur:
        f1 = metrics.f1_score(references[:, index], given_[:, index], zero_division=0)
        name = "f1_label_macro" if names[index] == "macro" else f"f1_{names[index]}"
        assert scores.values[name] == pytest.approx(f1)
    if all(0 < share < 1 for share in references.mean(0)):
        areas = [metrics.roc_auc_score(references[:, index], logits[:, index]) for index in range(labels)]
        assert scores.values["roc_auc"] == pytest.approx(np.mean(areas))
    else:
        assert "roc_auc" not in scores.values
        assert scores.details["left_out"]["roc_auc"].startswith("all references or none have ")
    assert {*scores.values} <= {*multi_label_names(names)}
    assert all(type(value) is float and math.isfinite(value) for value in scores.values.values())


def test_an_example_by_hand() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])  # ham spam spam ham
    scores = classification([0, 0, 1, 1], logits, ["ham", "spam"])
    assert scores.details["confusion"]["counts"] == [[1, 1], [1, 1]]
    assert scores.values["accuracy"] == scores.values["f1_spam"] == scores.values["precision_ham"] == 0.5
    assert scores.values["matthews"] == 0.0
    assert scores.values["roc_auc"] == 2.5 / 4  # of spam: .27 .73 for ham, .95 .27 for spam; a tie counts a half


def test_roc_auc_with_two_labels_and_with_more() -> None:
    random = np.random.default_rng(0)
    references, logits = random.integers(0, 2, 50), random.normal(size=(50, 2))
    two = classification(references.tolist(), logits, ["a", "b"])
    assert two.values["roc_auc"] == pytest.approx(metrics.roc_auc_score(references, logits[:, 1] - logits[:, 0]))
    references, logits = random.integers(0, 3, 50), random.normal(size=(50, 3)).astype(np.float16)
    exact = np.exp(logits.astype(np.float64))
    exact /= exact.sum(1, keepdims=True)
    areas = [metrics.roc_auc_score(references == label, exact[:, label]) for label in range(3)]
    assert classification(references.tolist(), logits, ["a", "b", "c"]).values["roc_auc"] == pytest.approx(
        np.mean(areas)
    )


@pytest.mark.parametrize(
    ("references", "logit", "labels", "reason"),
    [
        ([0, 0], 1.0, ["ham", "spam"], "the references have no spam"),
        ([0, 0], 1.0, [*"abcdefgh"], "the references have no b, c, d, e, f ..."),
        ([0, 1], float("inf"), ["ham", "spam"], "a predicted score is not finite"),
        ([0, 0], 1.0, ["ham"], "there is one label only"),
    ],
)
def test_without_a_roc_curve_the_reason_is_told(
    references: list[int], logit: float, labels: list[str], reason: str
) -> None:
    scores = classification(references, np.full((2, len(labels)), logit), labels)
    assert "roc_auc" not in scores.values
    assert scores.details["left_out"] == {"roc_auc": reason}


def test_several_labels_without_a_roc_curve() -> None:
    references = np.array([[1, 0], [1, 1]])
    scores = multi_label(references, np.array([[1.0, -1.0], [2.0, 1.0]]), ["a", "b"])
    assert scores.details["left_out"] == {"roc_auc": "all references or none have a"}
    scores = multi_label(np.eye(2), np.array([[1.0, -1.0], [np.nan, 1.0]]), ["a", "b"])
    assert scores.details["left_out"] == {"roc_auc": "a predicted score is not finite"}


def test_a_label_named_like_an_average_keeps_a_name_of_its_own() -> None:
    names = classification_names(["macro", "micro", "x"])
    assert len(names) == len({*names})
    assert {"f1_macro", "f1_label_macro", "recall_label_micro", "f1_x"} <= {*names}


def test_names_are_all_told_when_all_is_defined() -> None:
    logits = np.random.default_rng(1).normal(size=(40, 3))
    labels = ["a", "b", "c"]
    assert [*classification([0, 1, 2, 1] * 10, logits, labels).values] == [*classification_names(labels)]
    references = np.random.default_rng(2).random((40, 3)) < 0.5
    assert [*multi_label(references, logits, labels).values] == [*multi_label_names(labels)]


def test_no_examples_have_no_scores() -> None:
    assert classification([], np.zeros((0, 2)), ["a", "b"]).values == {}
    assert multi_label(np.zeros((0, 2)), np.zeros((0, 2)), ["a", "b"]).values == {}
