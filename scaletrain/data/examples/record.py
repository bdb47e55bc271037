"""A record of a file, by the file's own columns, and how a task takes its fields out of it."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from scaletrain.config.problems import closest, shown

_TOLD_COLUMNS = 20  # of a file's columns in a message


class Record(NamedTuple):
    """What stands at one place of a file."""

    values: Mapping[str, Any]
    place: str


class UnfitError(Exception):
    """Why a record is no example of its task; it is told as a Fault, with the record's place."""


def has(record: Record, field: str, columns: Mapping[str, str]) -> bool:
    """Whether the record has our field, or the recipe's data.columns says that it must have it."""
    return field in columns or field in record.values


def value_of(record: Record, field: str, columns: Mapping[str, str]) -> Any:
    """Our field of the record, whatever the file calls its column."""
    name = columns.get(field, field)
    if name not in record.values:
        close = closest(name, record.values)
        remedy = f": did you mean {close}?" if close else f": name the column that holds it in data.columns.{field}"
        raise UnfitError(f"no column {name} ({the_file_has(record.values)}){remedy}")
    return record.values[name]


def the_file_has(columns: Iterable[str]) -> str:
    """The file's columns in words, the first ones if there are many."""
    names = list(map(str, columns))
    more = f" and {len(names) - _TOLD_COLUMNS} more" if len(names) > _TOLD_COLUMNS else ""
    return f"the file has {', '.join(names[:_TOLD_COLUMNS]) or 'none'}{more}"


def text_of(value: Any, name: str) -> str:
    """`value` as text that is not blank."""
    if value is None:
        raise UnfitError(f"empty {name}")
    if not isinstance(value, str):
        raise UnfitError(f"{name} is {described(value)} and should be text")
    if not value or value.isspace():
        raise UnfitError(f"empty {name}")
    return whole(value, name)


def whole(text: str, name: str) -> str:
    """`text` if UTF-8 can hold it: JSON may escape half of a character (`\\ud83d`), which no tokenizer takes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UnfitError(f"{name} has half of a surrogate pair (\\u{ord(text[error.start]):04x})") from None
    return text


def list_of(value: Any, name: str) -> list[Any]:
    """`value` as a list; a cell of a text file holds it as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UnfitError(f"{name} is text and should be a list ({shown(value)})") from None
    if not isinstance(value, list):
        raise UnfitError(f"{name} is {described(value)} and should be a list")
    return value


def described(value: Any) -> str:
    """What a JSON or parquet value is, in a person's words, with the value where it is short."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"text ({shown(value)})"
    return f"a {'truth value' if isinstance(value, bool) else 'number'} ({shown(value)})"
