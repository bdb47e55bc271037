"""Files that appear whole or not at all, and a full disk told in one line."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaletrain.errors import DataError

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not grow",
}
_REFUSED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the disk is read-only",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EEXIST: "a part of the path is no folder",
}
TEMPORARY = ".tmp"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into one DataError line; what is finished under `path` stays for the next run."""
    try:
        yield
    except OSError as error:
        code = error.errno or 0
        if code in _FULL:
            raise DataError(
                f"{_FULL[code]} while writing {path}: free some space (or raise the limit) and run the same command "
                "again, it goes on from what is finished"
            ) from error
        if code in _REFUSED:
            raise DataError(
                f"cannot write {error.filename or path}: {_REFUSED[code]}; choose another output"
            ) from error
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is complete whenever it is seen under its name, power loss included."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` for a JSON value."""
    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def sync_folder(path: Path) -> None:
    """Makes the folder's names (renames, new files) survive a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
