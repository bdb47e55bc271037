"""Locks on files (flock): they end with their process, so that a kill leaves nothing to wait for."""

import contextlib
import errno
import fcntl
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
RUN_LOCK = ".lock"  # in the folder of a run: one live run at a time holds it

_open: set[int] = set()  # the descriptors of `locked`
_fork_guard = threading.Lock()


class NoLocksError(OSError):
    """The file system has no locks."""


def try_lock(handle: int, *, shared: bool = False, block: bool = False) -> bool:
    """Locks an open file, or changes the lock that it has; False if others hold it and `block` is false.

    A change that fails, or waits, may lose the lock that the file had (flock(2)).
    NFS wants a file open for writing, and for reading if the lock is shared. NoLocksError where there are none.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if block else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise NoLocksError(error.errno, error.strerror) from error
        raise
    return True


def is_at(path: Path, handle: int) -> bool:
    """Whether the open file is still the one at `path`: while we wait for its lock, its owner may move or remove it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(path: Path, *, block: bool = True, make: bool = True) -> Iterator[int | None]:
    """The descriptor of the file at `path`, locked for this process alone; None if others hold it and not `block`.

    A missing file is made; without `make` it is a FileNotFoundError. A forked child does not have the lock.
    """
    handle = _lock(path, block, make)
    try:
        yield handle
    finally:
        if handle is not None:
            _close_one(handle)


def _lock(path: Path, block: bool, make: bool) -> int | None:
    while True:
        handle, is_ours = _open_one(path, make), False
        try:
            if not try_lock(handle, block=block):
                return None
            is_ours = is_at(path, handle)
            if is_ours:
                return handle
        finally:  # also for Ctrl-C while we wait
            if not is_ours:
                _close_one(handle)


def _open_one(path: Path, make: bool) -> int:
    with _fork_guard:
        _guard_forks()
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o666)
        _open.add(handle)
        return handle


def _close_one(handle: int) -> None:
    with _fork_guard:
        _open.discard(handle)
        os.close(handle)


@functools.cache
def _guard_forks() -> None:
    """A forked child inherits descriptors, and a flock lives as long as one of them: the child closes them."""
    os.register_at_fork(before=_fork_guard.acquire, after_in_parent=_fork_guard.release, after_in_child=_close_all)


def _close_all() -> None:
    while _open:
        os.close(_open.pop())
    _fork_guard.release()
