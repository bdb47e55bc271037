"""Scores of tagged words: of the entities that BIO tags mark, or of each word's tag."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from scaletrain.tasks.scores.classification import confusion, confusion_scores
from scaletrain.tasks.scores.labels import PARTS, by_label, label_names, label_scores
from scaletrain.tasks.scores.libraries import require
from scaletrain.tasks.scores.result import Scores

NEEDS = ("seqeval",)
Sentences = Sequence[Sequence[str]]


def entity_types(tags: Iterable[str]) -> tuple[str, ...]:
    """The X of B-X and I-X, sorted."""
    return tuple(sorted({tag[2:] for tag in tags if tag.startswith(("B-", "I-"))}))


def entity_names(tags: Iterable[str]) -> tuple[str, ...]:
    each = (by_label(part, kind) for kind in entity_types(tags) for part in PARTS)
    return ("accuracy", *PARTS, "f1_macro", *each)


def entities(references: Sentences, predictions: Sentences) -> Scores:
    """Of the entities in IOB2 tags, one list of tags a sentence: right are those of equal type, begin and end.

    Strict: a predicted I-X that no B-X or I-X stands before is no entity (CoNLL's old script takes it for one).
    `precision`, `recall` and `f1` count all entities alike, as CoNLL does; `f1_macro` is the mean over the types that
    occur; `accuracy` is the share of words with the right tag.
    """
    pairs = [pair for sentence in zip(references, predictions, strict=True) for pair in zip(*sentence, strict=True)]
    if not pairs:
        return Scores({})
    accuracy = sum(wanted == given for wanted, given in pairs) / len(pairs)
    wanted, given = _found(references), _found(predictions)
    types = sorted({kind for _, _, _, kind in wanted | given})
    scores = label_scores(_count(wanted & given, types), _count(wanted, types), _count(given, types), types)
    if not scores:
        fault = "neither the references nor the predictions have an entity"
        return Scores({"accuracy": accuracy}, {"left_out": dict.fromkeys((*PARTS, "f1_macro"), fault)})
    values = {"accuracy": accuracy, **{part: scores[f"{part}_micro"] for part in PARTS}}
    names = ("f1_macro", *(by_label(part, kind) for kind in types for part in PARTS))
    return Scores({**values, **{name: scores[name] for name in names}})


def word_tag_names(tags: Sequence[str]) -> tuple[str, ...]:
    return ("accuracy", *label_names(tags))


def word_tags(references: Sentences, predictions: Sentences, tags: Sequence[str]) -> Scores:
    """Of each word's tag by itself, over all words; the names are those of scores/labels.py."""
    index = {tag: place for place, tag in enumerate(tags)}
    wanted, given = (np.array([index[tag] for tag in chain(*s)], dtype=np.int64) for s in (references, predictions))
    return Scores(confusion_scores(confusion(wanted, given, len(tags)), tags) if len(wanted) else {})


def _found(sentences: Sentences) -> set[tuple[int, int, int, str]]:
    """(sentence, start, end, type) of each entity."""
    require("a score of entities", *NEEDS)
    from seqeval.scheme import IOB2, Entities

    found = chain(*Entities([list(sentence) for sentence in sentences], IOB2).entities)
    return {(entity.sent_id, entity.start, entity.end, entity.tag) for entity in found}


def _count(found: set[tuple[int, int, int, str]], types: Sequence[str]) -> np.ndarray:
    counts = Counter(kind for _, _, _, kind in found)
    return np.array([counts[kind] for kind in types], dtype=np.int64)
