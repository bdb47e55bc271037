"""Examples of task.kind=sft: conversations whose last message is the assistant's."""

from collections.abc import Mapping
from functools import lru_cache
from string import Formatter
from typing import Any

from scaletrain.config.finetune_schema import FinetuneData, TaskSection
from scaletrain.config.problems import closest, shown
from scaletrain.data.examples.record import (
    Record,
    UnfitError,
    described,
    has,
    list_of,
    text_of,
    the_file_has,
    value_of,
)
from scaletrain.errors import ConfigError

Message = dict[str, str]
# The fields that tell how a file writes conversations; of a file with several, the first shape is read.
SHAPES: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("conversations",),
    ("instruction", "input", "output"),
    ("prompt", "response"),
    ("source", "target"),
)
_ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ("system", "user", "assistant", "tool")}
_NEXT = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def read_conversation(record: Record, data: FinetuneData, task: TaskSection) -> dict[str, Any]:
    """The record as messages."""
    del task  # as the other readers
    messages = _messages(record, data)
    _check_order(messages)
    if data.system is not None and messages[0]["role"] != "system":
        messages.insert(0, _message("system", data.system))
    return {"messages": tuple(messages)}


def check_templates(data: FinetuneData) -> None:
    """ConfigError for a data.prompt or data.response that no record could fill."""
    for name, template in (("data.prompt", data.prompt), ("data.response", data.response)):
        if template is not None:
            _parts(name, template)
    if data.response is not None and all(field is None for _, field in _parts("data.response", data.response)):
        raise ConfigError(
            f"data.response={shown(data.response)} names no column: each answer would be the same; write {{column}}"
        )


def _messages(record: Record, data: FinetuneData) -> list[Message]:
    if data.prompt is not None and data.response is not None:
        prompt = _filled("data.prompt", data.prompt, record, data.columns)
        return _exchange(prompt, _filled("data.response", data.response, record, data.columns))
    shape = _shape(record, data.columns)
    if len(shape) == 1:
        turns = list_of(value_of(record, shape[0], data.columns), shape[0])
        return [_read_message(turn, number) for number, turn in enumerate(turns, 1)]
    first, last = shape[0], shape[-1]
    prompt = text_of(value_of(record, first, data.columns), first)
    if first == "instruction" and has(record, "input", data.columns):
        extra = value_of(record, "input", data.columns)
        if str(extra or "").strip():
            prompt = f"{prompt}\n\n{text_of(extra, 'input')}"
    return _exchange(prompt, text_of(value_of(record, last, data.columns), last))


def _shape(record: Record, columns: Mapping[str, str]) -> tuple[str, ...]:
    """The first shape that data.columns speaks of, else the first that the record has."""
    for shape in SHAPES:
        if not columns.keys().isdisjoint(shape):
            return shape
    for shape in SHAPES:
        if shape[0] in record.values:
            return shape
    near = ((field, closest(field, record.values)) for shape in SHAPES for field in shape)
    hint = next((f": did you mean data.columns={{{field}: {name}}}?" for field, name in near if name), "")
    remedy = hint or ": name them in data.columns, or write data.prompt and data.response"
    raise UnfitError(
        "no column messages, conversations, instruction and output, prompt and response, or source and target "
        f"({the_file_has(record.values)}){remedy}"
    )


def _exchange(prompt: str, response: str) -> list[Message]:
    return [_message("user", prompt), _message("assistant", response)]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _read_message(message: Any, number: int) -> Message:
    """A message as role and content, or as from and value (ShareGPT)."""
    if not isinstance(message, dict):
        raise UnfitError(f"message {number} is {described(message)} and should be an object with role and content")
    keys = ("role", "content") if "role" in message else ("from", "value")
    if not set(keys) <= message.keys():
        found = ", ".join(map(str, message)) or "none"
        raise UnfitError(f"message {number} lacks role and content, or from and value (its keys: {found})")
    role = _ROLES.get(message[keys[0]]) if isinstance(message[keys[0]], str) else None
    if role is None:
        raise UnfitError(f"message {number} is from {shown(message[keys[0]])}: a role is one of {', '.join(_ROLES)}")
    return _message(role, text_of(message[keys[1]], f"content of message {number} ({role})"))


def _check_order(messages: list[Message]) -> None:
    if not messages:
        raise UnfitError("no messages")
    before = ""
    for number, message in enumerate(messages, 1):
        role, expected = message["role"], _NEXT[before]
        if role not in expected:
            place = f"after {before}" if before else "at the beginning"
            raise UnfitError(f"message {number} is from {role}: {place} comes {' or '.join(expected)}")
        before = role
    if before != "assistant":
        raise UnfitError(f"the last message is from {before} and should be the assistant's, to learn from")


def _filled(name: str, template: str, record: Record, columns: Mapping[str, str]) -> str:
    """The template with the record's columns in it; an empty one may stand in it beside others that are not."""
    text: list[str] = []
    cells: list[str] = []
    for literal, field in _parts(name, template):
        text.append(literal)
        if field is None:
            continue
        column = columns.get(field, field)
        if column not in record.values:
            close = closest(column, record.values)
            hint = f": did you mean {{{close}}}?" if close else ""
            raise UnfitError(f"{name} speaks of {{{field}}} ({the_file_has(record.values)}){hint}")
        value = record.values[column]
        if isinstance(value, list | dict):
            raise UnfitError(f"column {column} is {described(value)} and should be text, for {name}")
        cells.append("" if value is None else str(value))
        text.append(cells[-1])
    if cells and not any(cell.strip() for cell in cells):
        raise UnfitError(f"empty columns for {name}")
    return text_of("".join(text), name)


@lru_cache(maxsize=8)
def _parts(name: str, template: str) -> tuple[tuple[str, str | None], ...]:
    """(text, column after it) of a template; a column's name is taken as it stands, so it gives no way into a value."""
    try:
        parts = tuple(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"{name}={shown(template)} is no template ({error}): write {{column}}, and {{{{ for a brace"
        ) from error
    if bad := [field for _, field, form, way in parts if field is not None and (not field or form or way)]:
        raise ConfigError(f"{name}={shown(template)} has {{{bad[0]}}} with a format or no name: write {{column}} alone")
    return tuple((literal, field) for literal, field, _, _ in parts)
