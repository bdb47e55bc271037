"""Examples of task.kind=tag: words, each with a tag."""

import sys
from collections.abc import Sequence
from typing import Any

from scaletrain.config.finetune_schema import FinetuneData, TaskSection
from scaletrain.data.examples.classify import label_of
from scaletrain.data.examples.record import Record, UnfitError, described, text_of, value_of


def read_tagged(record: Record, data: FinetuneData, task: TaskSection) -> dict[str, Any]:
    """The record as tokens and tags."""
    words = _words(value_of(record, "tokens", data.columns), "tokens")
    marks = _words(value_of(record, "tags", data.columns), "tags")
    if not words:
        raise UnfitError("empty tokens")
    if len(words) != len(marks):
        raise UnfitError(f"{len(words)} tokens and {len(marks)} tags: give each token one")
    tokens = tuple(sys.intern(text_of(word, "token")) for word in words)
    tags = tuple(label_of(mark, task.labels, "tag") for mark in marks)
    if data.tag_scheme == "bio":
        _check_bio(tokens, tags)
    return {"tokens": tokens, "tags": tags}


def is_bio(labels: Sequence[str]) -> bool:
    """Whether tags are those of the BIO scheme: what data.tag_scheme=auto goes by."""
    return any(label.startswith("B-") for label in labels) and all(
        label == "O" or (label.startswith(("B-", "I-")) and len(label) > 2) for label in labels
    )


def _words(value: Any, name: str) -> list[Any]:
    if isinstance(value, str):
        return value.split()  # a cell of a table holds words with spaces between them
    if not isinstance(value, list):
        raise UnfitError(f"{name} is {described(value)} and should be a list")
    return value


def _check_bio(tokens: Sequence[str], tags: Sequence[str]) -> None:
    before = "O"
    for number, (token, tag) in enumerate(zip(tokens, tags, strict=True), 1):
        kind = tag[2:]
        if tag != "O" and (tag[:2] not in ("B-", "I-") or not kind):
            raise UnfitError(f"tag {tag} of token {number} ({token}) is not O, B-X or I-X, as data.tag_scheme=bio says")
        if tag.startswith("I-") and before not in (f"B-{kind}", tag):
            place = f"follows {before}" if number > 1 else "is the first"
            raise UnfitError(f"tag {tag} of token {number} ({token}) {place}: only B-{kind} may begin there")
        before = tag
