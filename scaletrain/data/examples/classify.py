"""Examples of task.kind=classify: a text or a pair of texts with a label, several labels or a number."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from scaletrain.config.finetune_schema import FinetuneData, TaskSection
from scaletrain.config.problems import closest, shown
from scaletrain.data.examples.record import Record, UnfitError, described, has, text_of, value_of, whole


def read_classified(record: Record, data: FinetuneData, task: TaskSection) -> dict[str, Any]:
    """The record as text, pair and label."""
    text = text_of(value_of(record, "text", data.columns), "text")
    pair = None
    if has(record, "pair", data.columns):
        pair = value_of(record, "pair", data.columns)
        if pair is not None or "pair" in data.columns:
            pair = text_of(pair, "pair")
    value = value_of(record, "label", data.columns)
    label: float | str | tuple[str, ...]
    if task.regression:
        label = _number(value)
    elif task.multi_label:
        label = _labels(value, data.label_separator, task.labels)
    else:
        label = label_of(value, task.labels, "label")
    return {"text": text, "pair": pair, "label": label}


def label_of(value: Any, labels: Sequence[str], name: str) -> str:
    """A label as text, one of `labels` if there are any; a number may be its place among them, from 0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers that has gaps is stored as floats
    if isinstance(value, bool):
        label = str(value).lower()
    elif isinstance(value, int):
        label = str(value)
        if labels and label not in labels and 0 <= value < len(labels):
            return labels[value]
    elif value is None or (isinstance(value, float) and math.isnan(value)):  # not a number: a gap in a column of floats
        raise UnfitError(f"empty {name}")
    elif isinstance(value, str | float):
        label = whole(str(value).strip(), name)
    else:
        raise UnfitError(f"{name} is {described(value)} and should be one label")
    if not label:
        raise UnfitError(f"empty {name}")
    if labels and label not in labels:
        close = closest(label, labels)
        hint = f": did you mean {close}?" if close else ""
        raise UnfitError(f"{name} {shown(label)} is not one of task.labels ({_some(labels)}){hint}")
    return sys.intern(label)  # a data set has few labels and many examples


def _labels(value: Any, separator: str | None, labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        if separator is None:
            raise UnfitError(f"label is one text ({shown(value)}): set data.label_separator, or give a list")
        value = [part for part in value.split(separator) if part.strip()]
    elif not isinstance(value, list):
        raise UnfitError(f"label is {described(value)} and should be a list of labels")
    return tuple(dict.fromkeys(label_of(part, labels, "label") for part in value))


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float | str) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UnfitError(f"label {shown(value)} is not a number")
    return number


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
