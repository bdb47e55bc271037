"""Inputs as the user writes them (files, globs, folders, hf: names) as a sorted list of sources."""

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path

from scaletrain.data.prepare.readers import READERS
from scaletrain.data.prepare.table_readers import HUB, load_rows
from scaletrain.data.prepare.text_readers import COMPRESSED
from scaletrain.data.prepare.units import Reading, Source
from scaletrain.errors import DataError

# Kinds by suffix. A folder gives the files with one of these; other files must be asked for, by name or --glob.
SUFFIXES: dict[str, str] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_SAVED = ("dataset_dict.json", "state.json")  # what datasets.save_to_disk leaves


def find_sources(inputs: Sequence[str], pattern: str | None, kind: str | None, reading: Reading) -> list[Source]:
    """Every source once, inputs in the given order, a folder's or glob's files sorted; DataError if there is none."""
    if kind is not None and kind not in READERS:
        raise DataError(f"--format {kind} is not known: it is one of {', '.join(READERS)}")
    sources: dict[str, Source] = {}
    for text in inputs:
        try:
            found = list(_expand(text, pattern, kind, reading))
        except OSError as error:
            raise DataError(_unreadable(error)) from error
        if not found:
            raise DataError(_nothing(text, pattern))
        for source in found:
            sources.setdefault(source.name, source)
    if sum(source.bytes for source in sources.values()) == 0:
        raise DataError(f"input {' '.join(inputs)} is empty: {len(sources)} file(s) without a byte")
    return list(sources.values())


def kind_of(path: Path) -> str:
    """The reader for a file: by its suffix (a compression suffix aside), text for any other."""
    name = path.with_suffix("") if path.suffix in COMPRESSED else path
    return SUFFIXES.get(name.suffix.lower(), "text")


def _expand(text: str, pattern: str | None, kind: str | None, reading: Reading) -> Iterator[Source]:
    path = Path(text)
    if text.startswith(HUB):
        rows = load_rows(text, reading.dataset_split, reading.field)
        yield Source(text, "datasets", rows.data.nbytes, str(rows._fingerprint))
    elif path.is_dir() and any((path / name).is_file() for name in _SAVED):
        yield _saved_dataset(path)
    elif path.is_dir():
        if pattern:
            _check_readable(path, Path(pattern).parts)
        files = path.glob(pattern) if pattern else (file for file in _visible_files(path) if _is_known(file, kind))
        yield from (_file(file, kind) for file in sorted(files) if file.is_file())
    elif path.is_file():
        yield _file(path, kind)
    elif glob.has_magic(text):
        fixed = tuple(takewhile(lambda part: not glob.has_magic(part), path.parts))
        _check_readable(Path(*fixed), path.parts[len(fixed) :])
        names = glob.glob(text, recursive=True)  # noqa: PTH207  (Path.glob refuses absolute patterns)
        yield from (_file(Path(name), kind) for name in sorted(names) if Path(name).is_file())


def _visible_files(folder: Path) -> Iterator[Path]:
    """The files below `folder`, hidden ones and linked folders aside; DataError for a folder that cannot be read.

    Path.rglob and glob.glob pass over such a folder and say nothing.
    """
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _check_readable(folder: Path, pattern: Sequence[str]) -> None:
    """DataError for a folder below `folder` that a glob of these parts would look into and cannot read."""
    is_deep = "**" in pattern
    exact = pattern.index("**") if is_deep else len(pattern) - 1  # so many parts name folders, one a level
    for parent, folders, _ in os.walk(folder, onerror=_refuse):
        level = len(Path(parent).relative_to(folder).parts)
        if level < exact:
            folders[:] = [name for name in folders if fnmatch(name, pattern[level])]
        elif not is_deep:
            folders.clear()


def _refuse(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        return  # a glob below a folder that is not there matches nothing
    raise DataError(_unreadable(error)) from error


def _unreadable(error: OSError) -> str:
    return (
        f"input {error.filename} cannot be read ({error.strerror}): make it readable, or name the others by --input or "
        "--glob"
    )


def _is_known(file: Path, kind: str | None) -> bool:
    name = file.with_suffix("") if file.suffix in COMPRESSED else file
    return kind is not None or name.suffix.lower() in SUFFIXES


def _file(path: Path, kind: str | None) -> Source:
    status = path.stat()
    return Source(str(path), kind or kind_of(path), status.st_size, str(status.st_mtime_ns))


def _saved_dataset(path: Path) -> Source:
    files = [file.stat() for file in _visible_files(path) if file.suffix == ".arrow"]
    stamp = max((status.st_mtime_ns for status in files), default=0)
    return Source(str(path), "datasets", sum(status.st_size for status in files), str(stamp))


def _nothing(text: str, pattern: str | None) -> str:
    path = Path(text)
    if path.is_dir() and pattern:
        return f"input {text} has no file that matches --glob {pattern!r}"
    if path.is_dir():
        return f"input {text} has no file ending in {' '.join(SUFFIXES)}: name others with --glob, such as '**/*.py'"
    if glob.has_magic(text):
        return f"input {text} matches no file"
    return f"input {text} does not exist (a dataset of the Hugging Face hub is written {HUB}NAME)"
