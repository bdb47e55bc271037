"""Files that appear whole or not at all, and what identifies their content."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError

from scaletrain.errors import ConfigError

TEMPORARY = ".tmp"
_BLOCK = 4 << 20  # bytes hashed at once


def cache_root(env: Mapping[str, str] = os.environ) -> Path:
    """Where this machine keeps what it fetched, computed or compiled: $SCALETRAIN_CACHE, or scaletrain in the user's
    cache."""
    if said := env.get("SCALETRAIN_CACHE"):
        return Path(said)
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scaletrain"


def write_whole(path: Path, data: bytes | str) -> None:
    """Replaces the file `path`: a reader, a kill or a power cut sees the old content or the new, never a part."""
    if path.is_dir():  # told before a temporary file is, which nobody named
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        file = temporary.open("wb")
    except OSError as error:
        error.filename = str(path)  # the name that a person knows
        raise
    with file:
        file.write(data if isinstance(data, bytes) else data.encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` for a JSON value."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def sync_folder(path: Path) -> None:
    """Makes the folder's names (renames, new files) survive a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def forget_pages(file: int, begin: int = 0, length: int = 0) -> None:
    """Tells the system that these bytes of an open file (a length of 0: to its end) are not needed in memory.

    Linux starts to write those that are not on the disk yet, and drops the others (mm/fadvise.c); elsewhere nothing
    happens.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, begin, length, os.POSIX_FADV_DONTNEED)


def hash_file(path: Path) -> str:
    """The file's xxh3 (128 bits, hexadecimal), read in blocks."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing_folder(folder: Path, mark: str) -> Iterator[Path]:
    """A new folder to write into, which becomes `folder` at the end: a kill leaves none that looks complete.

    An earlier one, known by its file `mark`, gives way; ConfigError for any other that is not empty. OSError, with its
    path, when the disk is full or refuses; what was written is then removed.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 (keeps a link a link); "." has no name
    if folder.exists() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise ConfigError(f"{folder} is not empty and no earlier export (no {mark}): choose another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        allow_reading(partial)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(error.errno, error.strerror, str(error.filename2 or error.filename or folder)) from error
    except SafetensorError as error:  # its own words for what the system refused
        shutil.rmtree(partial, ignore_errors=True)
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)


def allow_reading(folder: Path) -> None:
    """Gives the files of a folder the rights that this process's new files have: safetensors keeps its own private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)
