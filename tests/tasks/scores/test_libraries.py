"""A library that is missing is told in one line, before anything is computed."""

import sys

import numpy as np
import pytest

from scaletrain.errors import ConfigError
from scaletrain.tasks.scores import classification, entities, multi_label, regression
from scaletrain.tasks.scores.libraries import PACKAGES, require

REMEDY = "not installed here: pip install 'scaletrain[finetune]'"


def test_what_is_there_is_not_imported() -> None:
    require("a score", *PACKAGES)
    assert "torchcrf" not in PACKAGES


def test_all_that_is_missing_stands_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sklearn", "rouge_score"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        require("task.kind=tag", "seqeval", "sklearn", "rouge_score")
    assert str(caught.value) == f"task.kind=tag needs scikit-learn, rouge-score, {REMEDY}"


@pytest.mark.parametrize(
    ("module", "score", "message"),
    [
        (
            "sklearn",
            lambda: classification.classification([0, 1], np.eye(2), ["a", "b"]),
            "eval_roc_auc needs scikit-learn",
        ),
        ("sklearn", lambda: multi_label.multi_label(np.eye(2), np.eye(2) - 0.5, ["a", "b"]), "eval_roc_auc needs scik"),
        ("scipy", lambda: regression.regression([0.0, 1.0], [0.0, 1.0]), "a score of numbers needs scipy"),
        ("seqeval", lambda: entities.entities([["O"]], [["O"]]), "a score of entities needs seqeval"),
    ],
)
def test_a_score_names_the_library_that_it_lacks(module: str, score, message: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=message) as caught:
        score()
    assert str(caught.value).endswith(REMEDY)
