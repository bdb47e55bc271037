"""Records of JSON: an object a line, a list of objects, or SQuAD's articles, paragraphs and questions."""

import json
from collections.abc import Iterator
from typing import Any

from scaletrain.config.finetune_schema import FinetuneData
from scaletrain.data.examples.example import Fault
from scaletrain.data.examples.record import Record, described
from scaletrain.data.examples.text_file import NOT_UTF8, read_lines
from scaletrain.data.prepare.text_readers import open_bytes
from scaletrain.errors import DataError


def read_jsonl(path: str, data: FinetuneData) -> Iterator[Record | Fault]:
    """An object a line; blank lines are none."""
    del data  # as the other readers
    for number, text, problem in read_lines(path):
        if problem:
            yield Fault(f"{path}:{number}", problem)
        elif line := text.strip():
            try:
                yield _record(json.loads(line), f"{path}:{number}")
            except json.JSONDecodeError as error:
                yield Fault(f"{path}:{number}", f"no JSON ({error.msg}, column {error.colno})")
            except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
                yield Fault(f"{path}:{number}", f"no JSON that can be read ({error})")


def read_json(path: str, data: FinetuneData) -> Iterator[Record | Fault]:
    """A list of objects, by itself or as `data` of one object; articles of SQuAD where they have paragraphs."""
    content, name = _load(path), path
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content, name = content["data"], f"{path}:data"
        if data.format == "squad" or (content and isinstance(content[0], dict) and "paragraphs" in content[0]):
            yield from _read_articles(content, name)
            return
    if data.format == "squad" or not isinstance(content, list):
        found = f"an object with {', '.join(content) or 'no key'}" if isinstance(content, dict) else described(content)
        wanted = "" if data.format == "squad" else "a list of objects, or "
        raise DataError(f'{path} is {found} and should be {wanted}an object with "data", a list of articles (SQuAD)')
    for number, value in enumerate(content):
        yield _record(value, f"{name}[{number}]" if name != path else f"{path}:[{number}]")


def _record(value: Any, place: str) -> Record | Fault:
    if isinstance(value, dict):
        return Record(value, place)
    return Fault(place, f"{described(value)} and should be an object")


def _load(path: str) -> Any:
    with open_bytes(path) as file:
        content = file.read()
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line} is {NOT_UTF8}") from error
    except json.JSONDecodeError as error:
        remedy = "set data.format=jsonl, for an object a line" if error.msg == "Extra data" else "repair the file"
        raise DataError(f"{path}:{error.lineno} is no JSON ({error.msg}, column {error.colno}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON that can be read ({error}): repair the file") from error


def _read_articles(articles: list[Any], name: str) -> Iterator[Record | Fault]:
    for article, place in _inside(articles, name):
        for paragraph, below in _inside(_part(article, "paragraphs"), f"{place}.paragraphs"):
            context = paragraph.get("context") if isinstance(paragraph, dict) else None
            for question, at in _inside(_part(paragraph, "qas"), f"{below}.qas"):
                if isinstance(question, dict) and context is not None:
                    answers: dict[str, Any] = {"answers": []} if question.get("is_impossible") else {}
                    yield Record({**question, "context": context, **answers}, at)
                else:
                    yield Fault(at, "a question should be an object, in a paragraph with a context")


def _part(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _inside(values: Any, name: str) -> Iterator[tuple[Any, str]]:
    if not isinstance(values, list):
        raise DataError(f"{name} is {described(values)} and should be a list, as in SQuAD's JSON: repair the file")
    for number, value in enumerate(values):
        yield value, f"{name}[{number}]"
