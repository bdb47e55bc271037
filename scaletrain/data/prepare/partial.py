"""The folder OUT.partial: locked by one prepare, bound to its plan, resumable until it is renamed to OUT."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from scaletrain.data.shards import INDEX, Dataset, open_dataset
from scaletrain.errors import DataError
from scaletrain.runtime.files import TEMPORARY, sync_folder, write_json

PLAN = "prepare.json"
SEGMENTS = "segments"
_LOCK = "lock"
_PATIENCE = 2.0  # seconds: the workers of a prepare killed just now need a moment to end


@dataclass(frozen=True)
class Plan:
    """What decides a dataset's content: options, and each source's name, kind, bytes and stamp."""

    options: dict[str, Any]
    sources: list[list[Any]]

    def difference(self, other: "Plan") -> str:
        """What differs, for an error line; empty when nothing does."""
        names = [name for name in self.options if self.options[name] != other.options.get(name)]
        if not names and self.options.keys() != other.options.keys():
            names = ["options of another version"]
        if self.sources != other.sources:
            names.append("input files")
        return ", ".join(names)


def partial_of(output: Path) -> Path:
    """Where a dataset is made before it gets its name."""
    return output.with_name(output.name + ".partial")


def read_plan(folder: Path) -> Plan | None:
    """The plan that a partial or complete dataset was made with; None where there is none."""
    try:
        value = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return Plan(value["options"], value["sources"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def find_complete(output: Path, plan: Plan, overwrite: bool) -> Dataset | None:
    """The dataset if it is complete with this plan, None if it is to be made; DataError if another is in the way."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / INDEX).is_file():
        raise DataError(f"output {output} exists and is no dataset: choose another --output")
    if overwrite:
        return None
    found = read_plan(output)
    difference = plan.difference(found) if found else "its prepare.json is missing"
    if difference:
        raise DataError(
            f"output {output} is a dataset made with other settings ({difference}): "
            "choose another --output, or --overwrite to replace it"
        )
    return open_dataset(output)


@contextmanager
def hold(partial: Path) -> Iterator[None]:
    """Keeps the folder for this process alone, making it if need be; DataError if another prepare has it."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        try:
            file = (partial / _LOCK).open("a")
        except FileNotFoundError:  # renamed just now by the prepare that had it
            continue
        with file:
            if not _try_lock(file, partial):
                if time.monotonic() > deadline:
                    raise DataError(f"another prepare is at work in {partial}: wait for it, or choose another --output")
            elif _is_current(partial, file):
                yield
                return
        time.sleep(0.05)


def claim(partial: Path, plan: Plan, overwrite: bool) -> bool:
    """Binds the held folder to the plan; True where a former run's work is gone on with."""
    found = read_plan(partial)
    difference = plan.difference(found) if found else "nothing"
    if not difference:
        for file in partial.rglob(f"*{TEMPORARY}"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        return any((partial / name).exists() for name in (SEGMENTS, INDEX))
    has_work = any((partial / SEGMENTS).glob("*.json")) or (partial / INDEX).exists()
    if found and has_work and not overwrite:
        raise DataError(
            f"{partial} holds an unfinished prepare with other settings ({difference}): run that command again to "
            "finish it, or use --overwrite to start anew"
        )
    discard(partial)
    write_json(partial / PLAN, asdict(plan))
    return False


def discard(partial: Path) -> None:
    """Removes everything but the lock, the plan first: without it nothing else counts."""
    (partial / PLAN).unlink(missing_ok=True)
    for entry in partial.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()


def publish(partial: Path, output: Path) -> Dataset:
    """Gives the finished folder its name; from the index on, a kill at any step leaves this to the next run."""
    open_dataset(partial)  # sizes and headers, before anything is removed
    if (partial / SEGMENTS).exists():
        shutil.rmtree(partial / SEGMENTS)
    replaced = output.with_name(output.name + ".replaced")
    if output.exists() and any(output.iterdir()):
        if replaced.exists():
            shutil.rmtree(replaced)
        output.rename(replaced)
    (partial / _LOCK).unlink(missing_ok=True)
    sync_folder(partial)
    partial.rename(output)
    sync_folder(output.parent)
    if replaced.exists():
        shutil.rmtree(replaced)
    return open_dataset(output)


def _try_lock(file: IO[str], partial: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # ENOLCK, ENOSYS or EOPNOTSUPP, by file system
        raise DataError(
            f"{partial} cannot be locked ({error.strerror}): mount its file system with locks, or choose an "
            "--output on another"
        ) from error
    return True


def _is_current(partial: Path, file: IO[str]) -> bool:
    """Whether the locked file is still the one in the folder: its owner removes it when it renames the folder."""
    try:
        return os.path.samestat((partial / _LOCK).stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
