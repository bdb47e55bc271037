"""Exact match and F1 of answers by SQuAD's rules, on cases worked out by hand."""

import pytest

from scaletrain.tasks.scores.squad import SQUAD_NAMES, answer_scores, exact_match_f1, normalise, squad


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The  Cat's\tmat.", "cats mat"),
        ("an apple, a pear", "apple pear"),
        ("Athens", "athens"),  # articles are whole words
        ("U.S.", "us"),
        ("well-known", "wellknown"),  # punctuation goes before the words are split
        ("a.b", "ab"),  # and before articles are looked for
        ("«Été»", "«été»"),  # ASCII punctuation only
        ("the", ""),
        ("", ""),
    ],
)
def test_normalised_answers(answer: str, plain: str) -> None:
    assert normalise(answer) == plain


@pytest.mark.parametrize(
    ("predicted", "references", "exact", "f1"),
    [
        ("the Normans", ["Normans"], 1, 1),
        ("in France", ["France"], 0, 2 / 3),  # precision 1/2, recall 1
        ("in France", ["Paris", "France", "in the France"], 1, 1),  # the best reference
        ("blue blue sky", ["blue sky sky"], 0, 2 / 3),  # words count as often as they stand
        ("Rome", ["Paris"], 0, 0),
        ("", [], 1, 1),  # no answer, and none given
        ("Rome", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("the", [], 1, 1),  # nothing is left of it
        ("", ["the"], 1, 1),  # SQuAD 2.0: a reference without a word is none
        ("!", ["?", "Paris"], 0, 0),  # and is not compared with where there are others
    ],
)
def test_answers_by_hand(predicted: str, references: list[str], exact: float, f1: float) -> None:
    assert answer_scores(predicted, references) == (exact, pytest.approx(f1))


def test_means_go_from_0_to_100() -> None:
    assert exact_match_f1(["France", "in France"], [["France"], ["France"]]) == {
        "exact_match": 50.0,
        "f1": pytest.approx(100 * (1 + 2 / 3) / 2),
    }
    assert exact_match_f1([], []) == {}


def test_questions_with_and_without_answers_are_told_apart() -> None:
    scores = squad(["France", "in France", "", "Rome"], [["France"], ["France"], [], []])
    assert tuple(scores.values) == SQUAD_NAMES
    assert scores.values["exact_match"] == 50.0
    assert scores.values["exact_match_has_answer"] == 50.0
    assert scores.values["f1_has_answer"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert scores.values["exact_match_no_answer"] == scores.values["f1_no_answer"] == 50.0
    assert scores.details == {"questions": 4, "with_answer": 2}


@pytest.mark.parametrize("references", [[["France"]], [[]]])
def test_questions_of_one_kind_are_scored_once(references: list[list[str]]) -> None:
    assert [*squad(["France"], references).values] == ["exact_match", "f1"]


def test_no_questions_have_no_scores() -> None:
    assert squad([], []).values == {}
