"""The labels of classified or tagged examples: which there are, which the training data lacks, how often each comes."""

from collections import Counter
from collections.abc import Iterator, Sequence

from scaletrain.config.finetune_schema import TaskSection
from scaletrain.data.examples.example import Example
from scaletrain.errors import DataError

_TOLD = 5  # labels and places in a message; the rest are counted


def label_set(examples: Sequence[Example], task: TaskSection) -> tuple[str, ...]:
    """The labels in the order of their numbers: task.labels, else those of the training examples; none of regression.

    Sorted, as numbers if all are whole numbers; among tags, O comes first.
    """
    if task.labels or task.regression:
        return task.labels
    found = class_counts(examples, ())
    if len(found) < 2 and not task.multi_label:
        raise DataError(
            f"data.train has only the label {next(iter(found), 'none')} in {len(examples):,} examples: there is "
            "nothing to tell apart; add examples of others"
        )
    if all(_is_whole_number(label) for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found, key=lambda label: (task.kind != "tag" or label != "O", label)))


def check_labels(labels: Sequence[str], examples: Sequence[Example], what: str = "data.validation") -> None:
    """DataError if examples of `what` have labels that are not among `labels`: no model could give them."""
    known, places = set(labels), dict[str, str]()
    for example in examples:
        for label in _labels(example):
            if label not in known:
                places.setdefault(label, example.place)
    if places:
        told = ", ".join(f"{label} ({place})" for label, place in list(places.items())[:_TOLD])
        more = f" and {len(places) - _TOLD} more" if len(places) > _TOLD else ""
        raise DataError(
            f"{what} has labels that data.train lacks: {told}{more}; name all labels in task.labels, or take these "
            "examples out"
        )


def class_counts(examples: Sequence[Example], labels: Sequence[str]) -> dict[str, int]:
    """How many examples, or words, have each label, first those of `labels`, in their order."""
    counts = Counter(label for example in examples for label in _labels(example))
    return {label: counts[label] for label in (*labels, *(label for label in counts if label not in set(labels)))}


def _labels(example: Example) -> Iterator[str]:
    value = example.values["tags"] if "tags" in example.values else example.values["label"]
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        yield from value


def _is_whole_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()
