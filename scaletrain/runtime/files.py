"""Files that appear whole or not at all, and what identifies their content."""

import json
import os
from pathlib import Path
from typing import Any

import xxhash

TEMPORARY = ".tmp"
_BLOCK = 4 << 20  # bytes hashed at once


def write_whole(path: Path, data: bytes | str) -> None:
    """Replaces the file `path`: a reader, a kill or a power cut sees the old content or the new, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    with temporary.open("wb") as file:
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


def allow_reading(folder: Path) -> None:
    """Gives the files of a folder the rights that this process's new files have: safetensors keeps its own private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)
