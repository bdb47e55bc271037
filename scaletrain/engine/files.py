"""Checkpoint files: hashed while they are written, and on the disk before they count."""

import os
from pathlib import Path
from typing import IO, Any

import torch
import xxhash


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
