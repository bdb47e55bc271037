"""Which files a path means, of which format each is, and which of them are for validation."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scaletrain.data.foreign.llmc import is_llmc
from scaletrain.data.foreign.npy import MAGIC
from scaletrain.data.foreign.token_file import read_bytes, reading
from scaletrain.data.shards import Split
from scaletrain.errors import DataError

_SUFFIXES = (".bin", ".npy", ".ds")
_INDEX = ".idx"
_PREPARED = re.compile(r"docs-\d{5,}\.npy|prepare\.json")  # of a dataset whose index.json is not there (yet)
_SPLITS: dict[str, Split | None] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": None,
}


@dataclass(frozen=True)
class Found:
    """The files of each split in order; `root` is the folder that they are named by."""

    root: Path
    format: str
    splits: dict[Split, list[Path]]


def is_foreign(path: Path) -> bool:
    """Whether the path looks like another tool's tokens: a file, the prefix of a Megatron pair, or a folder of such."""
    if path.is_dir():
        return not any(_PREPARED.fullmatch(file.name) for file in _entries(path)) and any(_list_folder(path))
    return path.suffix in (*_SUFFIXES, _INDEX) if path.is_file() else _has_suffix(path, _INDEX)


def find_files(path: Path) -> Found:
    """The files of a path for which `is_foreign` holds, all of one format; DataError if they are not."""
    splits: dict[Split, list[Path]] = {"train": [], "validation": []}
    if path.is_dir():
        for split, file in _list_folder(path):
            if split is None:
                raise DataError(
                    f"{file} is a test file by its name, neither for training nor for validation: move it out of "
                    f"{path}, or name the files to use by themselves"
                )
            splits[split].append(file)
        if not splits["train"]:
            raise DataError(
                f"{path} holds only validation files, such as {splits['validation'][0]}: add training files"
            )
        root = path
    else:
        is_prefix = not path.is_file()
        splits["train"] = [path.with_name(path.name + ".bin") if is_prefix else _tokens_of(path)]
        root = path.parent
    return Found(root, _one_format([*splits["train"], *splits["validation"]], path), splits)


def _one_format(files: list[Path], path: Path) -> str:
    formats: dict[str, Path] = {}
    for file in files:
        formats.setdefault(_format_of(file), file)
    if len(formats) > 1:
        listed = ", ".join(f"{file.name} ({name})" for name, file in formats.items())
        raise DataError(f"{path} holds files of several formats: {listed}; keep one in a folder")
    return next(iter(formats))


def _format_of(file: Path) -> str:
    if file.suffix == ".ds":
        return "datatrove"
    if file.suffix == ".npy":
        return "numpy" if read_bytes(file, len(MAGIC)) == MAGIC else "headerless .npy"
    if file.with_suffix(_INDEX).is_file():
        return "Megatron"
    return "llm.c" if is_llmc(file) else "headerless .bin"


def _list_folder(folder: Path) -> Iterator[tuple[Split | None, Path]]:
    """Token files of the folder, and of its folders train and validation, each by name; None: for neither."""
    for file in _files_of(folder):
        yield _split_of(file.stem), file
    for entry in _entries(folder):
        split = _SPLITS.get(entry.name.lower())
        if split is not None and entry.is_dir():  # a folder named test is passed over
            yield from ((split, file) for file in _files_of(entry))


def _files_of(folder: Path) -> list[Path]:
    """The .bin file for a Megatron pair, there or not."""
    entries = [entry for entry in _entries(folder) if entry.suffix in (*_SUFFIXES, _INDEX)]
    return sorted({_tokens_of(entry) for entry in entries if not entry.is_dir()})


def _entries(folder: Path) -> list[Path]:
    with reading(folder):
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _split_of(name: str) -> Split | None:
    """By a word of the name: val.bin, fineweb_val_000001.bin, validation-00.npy; not valley.bin."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), "train")


def _tokens_of(path: Path) -> Path:
    return path.with_suffix(".bin") if path.suffix == _INDEX else path


def _has_suffix(path: Path, suffix: str) -> bool:
    return bool(path.name) and path.with_name(path.name + suffix).is_file()
