"""Scores of entities equal seqeval's strict IOB2 and an own count; scores of words equal scikit-learn's."""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2
from sklearn import metrics

from scaletrain.tasks.scores.entities import entities, entity_names, entity_types, word_tag_names, word_tags

TAGS = ["O", "B-per", "I-per", "B-geo-x", "I-geo-x"]
PAIRS = st.lists(st.lists(st.tuples(*[st.sampled_from(TAGS)] * 2), max_size=7), min_size=1, max_size=5)


def _split(pairs: list[list[tuple[str, str]]]) -> tuple[list[list[str]], list[list[str]]]:
    return [[a for a, _ in pair] for pair in pairs], [[b for _, b in pair] for pair in pairs]


def _strict(sentences: list[list[str]]) -> set[tuple[int, int, int, str]]:
    """B-X and every I-X that follows at once."""
    found = set()
    for number, tags in enumerate(sentences):
        for start, tag in enumerate(tags):
            if tag.startswith("B-"):
                end = start + 1
                while end < len(tags) and tags[end] == f"I-{tag[2:]}":
                    end += 1
                found.add((number, start, end, tag[2:]))
    return found


@settings(deadline=None, max_examples=300)
@given(PAIRS)
def test_entities_are_counted_strictly(pairs: list[list[tuple[str, str]]]) -> None:
    references, predictions = _split(pairs)
    scores = entities(references, predictions)
    wanted, given_ = _strict(references), _strict(predictions)
    assert {*scores.values, *scores.details.get("left_out", {})} <= {*entity_names(TAGS)}
    if not wanted | given_:
        assert "f1" not in scores.values
        return
    right = len(wanted & given_)
    assert scores.values["f1"] == pytest.approx(2 * right / (len(wanted) + len(given_)))
    report = classification_report(
        references, predictions, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )
    assert scores.values["f1_macro"] == pytest.approx(report.pop("macro avg")["f1-score"])
    micro = report.pop("micro avg")
    report.pop("weighted avg")
    for part, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert scores.values[part] == pytest.approx(micro[key])
        for kind, found in report.items():
            assert scores.values[f"{part}_{kind}"] == pytest.approx(found[key])
    assert len(scores.values) == 5 + 3 * len(report)


def test_an_example_by_hand() -> None:
    references = [["B-per", "I-per", "O", "B-geo-x"], ["O"]]
    predictions = [["B-per", "I-per", "O", "I-geo-x"], ["B-geo-x"]]  # the I-geo-x begins nothing
    values = entities(references, predictions).values
    assert values["precision"] == values["recall"] == values["f1"] == 0.5
    assert (values["f1_per"], values["f1_geo-x"], values["f1_macro"]) == (1.0, 0.0, 0.5)
    assert values["accuracy"] == 0.6


def test_texts_without_entities_have_an_accuracy_only() -> None:
    scores = entities([["O", "O"]], [["O", "O"]])
    assert scores.values == {"accuracy": 1.0}
    fault = "neither the references nor the predictions have an entity"
    assert scores.details["left_out"] == dict.fromkeys(("precision", "recall", "f1", "f1_macro"), fault)
    assert entities([["O"]], [["B-per"]]).values["f1"] == 0.0
    assert entities([], []).values == entities([[]], [[]]).values == {}


def test_the_names_of_entities_follow_from_the_tags() -> None:
    assert entity_types(TAGS) == ("geo-x", "per")
    assert entity_names(["O", "B-a", "I-a"]) == (
        *("accuracy", "precision", "recall", "f1", "f1_macro"),
        *("precision_a", "recall_a", "f1_a"),
    )
    assert "f1_label_macro" in entity_names(["B-macro"])


@settings(deadline=None)
@given(PAIRS)
def test_words_are_scored_one_by_one(pairs: list[list[tuple[str, str]]]) -> None:
    references, predictions = _split(pairs)
    values = word_tags(references, predictions, TAGS).values
    if not any(pairs):
        assert values == {}
        return
    wanted, given_ = [*chain(*references)], [*chain(*predictions)]
    assert values["accuracy"] == pytest.approx(metrics.accuracy_score(wanted, given_))
    for average, ending in {"weighted": "", "macro": "_macro"}.items():
        expected = metrics.f1_score(wanted, given_, average=average, zero_division=0)
        assert values[f"f1{ending}"] == pytest.approx(expected)
    assert {*values} <= {*word_tag_names(TAGS)}
