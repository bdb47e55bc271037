"""Reads labelled examples: files -> records by the files' columns -> what the task learns from, or a fault."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import zstandard

from scaletrain.config.finetune_schema import FinetuneData, TaskKind, TaskSection
from scaletrain.config.problems import closest
from scaletrain.data.examples.classify import read_classified
from scaletrain.data.examples.conll import read_conll, read_conllu
from scaletrain.data.examples.example import Example, Examples, Fault
from scaletrain.data.examples.files import File, find_files
from scaletrain.data.examples.json_files import read_json, read_jsonl
from scaletrain.data.examples.parallel_text import read_parallel
from scaletrain.data.examples.po_file import read_po
from scaletrain.data.examples.record import Record, UnfitError
from scaletrain.data.examples.sft import SHAPES, check_templates, read_conversation
from scaletrain.data.examples.span_qa import read_asked
from scaletrain.data.examples.tables import read_csv, read_parquet, read_tsv
from scaletrain.data.examples.tag import read_tagged
from scaletrain.errors import ConfigError, DataError

FORMATS: dict[str, Callable[[str, FinetuneData], Iterator[Record | Fault]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "squad": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "conll": read_conll,
    "conllu": read_conllu,
    "lines": read_parallel,
    "po": read_po,
}
TASKS: dict[TaskKind, Callable[[Record, FinetuneData, TaskSection], dict[str, Any]]] = {
    "classify": read_classified,
    "tag": read_tagged,
    "span_qa": read_asked,
    "sft": read_conversation,
}
FIELDS: dict[TaskKind, tuple[str, ...]] = {
    "classify": ("text", "pair", "label"),
    "tag": ("tokens", "tags"),
    "span_qa": ("id", "question", "context", "answers"),
    "sft": tuple(field for shape in SHAPES for field in shape),
}


def read_examples(paths: str | tuple[str, ...], data: FinetuneData, task: TaskSection, what: str) -> Examples:
    """All examples of the files in their order; of data.train the first data.max_examples that can be used.

    `what` is the recipe's key that names `paths`. What is wrong with single examples stands in the result, where
    Examples.check looks; a file that cannot be read, or holds no records at all, is a DataError at once.
    """
    _check_columns(data, task)
    check_templates(data)
    most = data.max_examples if what == "data.train" else None
    kept: list[Example] = []
    faults: list[Fault] = []
    for file in find_files(paths, data.format, what):
        before, own = len(kept), list[Fault]()
        for found in _read_file(file, data, task):
            if isinstance(found, Fault):
                own.append(found)
                continue
            kept.append(found)
            if len(kept) == most:
                return Examples(kept, faults + own, what)
        faults += own if len(kept) > before else _joined(own, file.path)
    if not kept and not faults:
        raise DataError(f"{what}={paths if isinstance(paths, str) else ' '.join(paths)} holds no example: fill it")
    return Examples(kept, faults, what)


def _read_file(file: File, data: FinetuneData, task: TaskSection) -> Iterator[Example | Fault]:
    read = TASKS[task.kind]
    try:
        for record in FORMATS[file.format](file.path, data):
            if isinstance(record, Fault):
                yield record
                continue
            try:
                yield Example(read(record, data, task), record.place)
            except UnfitError as error:
                yield Fault(record.place, str(error))
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(f"{file.path} is damaged or not what its name says ({error}): copy it again") from error
    except OSError as error:
        raise DataError(f"{error.filename or file.path} cannot be read: {error.strerror or error}") from error


def _joined(faults: list[Fault], path: str) -> list[Fault]:
    """The faults of a file without any good example; one for all where they say the same, such as a missing column."""
    groups = [(problem, list(group)) for problem, group in groupby(faults, key=lambda fault: fault.problem)]
    if len(groups) != 1 or len(faults) == 1:
        return faults
    return [Fault(path, groups[0][0], len(faults))]


def _check_columns(data: FinetuneData, task: TaskSection) -> None:
    fields = FIELDS[task.kind]
    for name, column in data.columns.items():
        if name not in fields:
            close = closest(name, fields)
            remedy = f"did you mean {close}?" if close else f"the fields are {', '.join(fields)}"
            raise ConfigError(
                f"data.columns.{name}={column} is no field of an example of task.kind={task.kind}: {remedy}"
            )
