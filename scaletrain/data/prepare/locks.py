"""Locks on OUT.partial: one prepare alone, or many parts at once, on one machine or on many that share a disk.

`lock` is held alone by a whole prepare or a merge, and shared by parts; `set-up.lock` by the part that settles what all
parts have in common; `parts/00003.lock` by part 3. All of them end with their process, killed or not.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Literal, TypeVar

from scaletrain.errors import DataError
from scaletrain.runtime.locks import NoLocksError, is_at, try_lock

PARTS = "parts"
_LOCK, _SET_UP = "lock", "set-up.lock"
LOCKS = (_LOCK, _SET_UP)
_PATIENCE = 2.0  # seconds: the workers of a prepare killed just now need a moment to end
_PAUSE = 0.05

Result = TypeVar("Result")


@contextmanager
def hold(partial: Path) -> Iterator[None]:
    """Keeps the folder for this process alone, making it if need be; DataError if another prepare has it."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with ExitStack() as stack:
            file = stack.enter_context(_open(partial, _LOCK))
            if not _try_lock(file, partial, "alone"):
                if time.monotonic() > deadline:
                    raise _is_busy(partial)
            elif is_at(partial / _LOCK, file.fileno()):
                yield
                return
        time.sleep(_PAUSE)


@contextmanager
def join_in(partial: Path, set_up: Callable[[bool], Result], wait: Callable[[], None]) -> Iterator[Result]:
    """Shares the folder with other parts, after `set_up(is_alone)`, which no two of them run at a time.

    `is_alone` says that no other part is at work. `wait` is called now and then while another part is setting up.
    DataError if a whole prepare or a merge has the folder.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        with ExitStack() as shared, ExitStack() as setting_up:
            first = setting_up.enter_context(_open(partial, _SET_UP))
            while not _try_lock(first, partial, "alone"):
                wait()
                time.sleep(_PAUSE * 10)
                deadline = time.monotonic() + _PATIENCE
            file = shared.enter_context(_open(partial, _LOCK))
            is_alone = _try_lock(file, partial, "alone")
            if not is_alone and not _try_lock(file, partial, "shared"):
                if time.monotonic() > deadline:
                    raise _is_busy(partial)
            elif is_at(partial / _SET_UP, first.fileno()) and is_at(partial / _LOCK, file.fileno()):
                result = set_up(is_alone)
                if is_alone and not _try_lock(file, partial, "shared"):
                    raise _is_busy(partial)
                setting_up.close()
                yield result
                return
        time.sleep(_PAUSE)


@contextmanager
def hold_part(partial: Path, number: int, count: int) -> Iterator[None]:
    """Keeps a part for this process alone; DataError if another one makes the same part."""
    deadline = time.monotonic() + _PATIENCE  # a merge that looks who is at work has the lock for a moment
    with _open(partial, _part_lock(number)) as file:
        while not _try_lock(file, partial, "alone"):
            if time.monotonic() > deadline:
                raise DataError(f"part {number}/{count} is being made in {partial} by another process: wait for it")
            time.sleep(_PAUSE)
        yield


def parts_at_work(partial: Path, count: int) -> list[int]:
    """The numbers of the parts that some process, on any machine, is making now."""
    found = []
    for number in range(1, count + 1):
        path = partial / _part_lock(number)
        if path.exists():
            with path.open("a+") as file:
                if not _try_lock(file, partial, "alone"):
                    found.append(number)
    return found


def remove_locks(partial: Path) -> None:
    """Whoever waits for one of them sees that it is gone, and looks anew."""
    for name in LOCKS:
        (partial / name).unlink(missing_ok=True)


def _part_lock(number: int) -> str:
    return f"{PARTS}/{number:05d}.lock"


def _open(partial: Path, name: str) -> IO[str]:
    while True:
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return path.open("a+")  # over NFS a shared lock needs a file open for reading, the other one for writing
        except FileNotFoundError:  # renamed just now by the prepare that had it
            continue


def _try_lock(file: IO[str], partial: Path, how: Literal["alone", "shared"]) -> bool:
    try:
        return try_lock(file.fileno(), shared=how == "shared")
    except NoLocksError as error:
        raise DataError(
            f"{partial} cannot be locked ({error.strerror}): mount its file system with locks, or choose an "
            "--output on another"
        ) from error


def _is_busy(partial: Path) -> DataError:
    return DataError(f"another prepare is at work in {partial}: wait for it, or choose another --output")
