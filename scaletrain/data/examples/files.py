"""The files that data.train and data.validation name, each with its format."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scaletrain.config.problems import closest
from scaletrain.data.examples.parallel_text import PAIR
from scaletrain.data.prepare.text_readers import COMPRESSED
from scaletrain.errors import DataError

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".conll": "conll",
    ".conllu": "conllu",
    ".po": "po",
}


class File(NamedTuple):
    """A file, or two texts with a | between their names."""

    path: str
    format: str


def find_files(paths: str | tuple[str, ...], kind: str, what: str) -> list[File]:
    """Each file once, in the order in which `paths` names them, a glob's files sorted; `kind` is data.format."""
    names = [paths] if isinstance(paths, str) else list(paths)
    try:
        files = [file for name in names for file in _expand(name, kind, what)]
    except OSError as error:
        raise DataError(f"{what}: {error.filename} cannot be read: {error.strerror or error}") from error
    return list(dict.fromkeys(files))


def _expand(name: str, kind: str, what: str) -> Iterator[File]:
    if kind == "lines" or (kind == "auto" and PAIR in name and not Path(name).exists()):
        yield _pair(name, what)
    elif Path(name).is_dir():
        raise DataError(f"{what}={name} is a folder: name its files, such as {name.rstrip('/')}/*.jsonl")
    elif Path(name).exists():
        yield File(name, _format(name, kind, what))
    elif glob.has_magic(name):
        found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  (Path.glob refuses absolute patterns)
        files = [path for path in found if Path(path).is_file()]
        if not files:
            raise DataError(f"{what}={name} matches no file: correct the pattern")
        yield from (File(path, _format(path, kind, what)) for path in files)
    else:
        raise _missing(name, what)


def _pair(name: str, what: str) -> File:
    parts = name.split(PAIR)
    if len(parts) != 2 or not all(parts):
        raise DataError(
            f"{what}={name} should be the names of two texts of equal lines with {PAIR} between them, such as "
            f"train.de{PAIR}train.en"
        )
    for part in parts:
        if not Path(part).is_file():
            raise _missing(part, what)
    return File(name, "lines")


def _format(path: str, kind: str, what: str) -> str:
    if kind != "auto":
        return kind
    name = Path(path)
    suffix = (name.with_suffix("") if name.suffix in COMPRESSED else name).suffix.lower()
    if suffix not in _SUFFIXES:
        raise DataError(
            f"{what}={path} ends in {suffix or 'no suffix'}, which tells no format: set data.format to what it holds"
        )
    return _SUFFIXES[suffix]


def _missing(name: str, what: str) -> DataError:
    path = Path(name)
    if "://" in name:
        return DataError(f"{what}={name} is a URL, and labelled files are read from a disk: copy it there")
    near = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    close = closest(path.name, near)
    return DataError(f"{what}={name} does not exist: {f'did you mean {close}?' if close else 'correct the path'}")
