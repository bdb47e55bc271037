"""Checkpoint files: hashed while they are written, on the disk before they count, checked before they are read."""

import os
from pathlib import Path
from typing import IO, Any

import torch
import xxhash

_CHUNK = 8 << 20


class _HashingFile:
    """The file object that torch.save writes to: every byte goes through the hash on its way."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.hash, self.bytes = xxhash.xxh3_128(), 0

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.bytes += memoryview(data).nbytes
        return self._raw.write(data)

    def flush(self) -> None:
        self._raw.flush()


class HashedWriter:
    """Writes files and remembers each one's size and hash."""

    def __init__(self) -> None:
        self._done: dict[Path, tuple[int, str]] = {}

    def save(self, value: Any, path: Path) -> None:
        """torch.save to `path`, synced to the disk."""
        with path.open("wb") as raw:
            file = _HashingFile(raw)
            torch.save(value, file)  # type: ignore[arg-type]  # it only calls write and flush
            raw.flush()
            os.fsync(raw.fileno())
        self._done[path] = (file.bytes, file.hash.hexdigest())

    def forget(self) -> None:
        self._done.clear()

    def written(self, folder: Path) -> dict[str, tuple[int, str]]:
        """Name inside `folder` -> (bytes, xxh3-128) of the files written since `forget`."""
        return {str(path.relative_to(folder)): record for path, record in self._done.items()}


def file_record(path: Path) -> tuple[int, str]:
    """Size and xxh3-128 of a file on the disk."""
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def sync_folder(path: Path) -> None:
    """Makes renames and new names inside `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file `path` by `text`: a reader or a crash sees the old one or the new one, never a part."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)
