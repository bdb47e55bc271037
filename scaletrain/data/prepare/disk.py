"""A full or read-only disk, told in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
