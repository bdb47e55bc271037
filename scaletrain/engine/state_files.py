"""The tensors of a checkpoint: one safetensors file a rank, each entry a piece of a named parameter.

An entry is called KIND/PARAMETER@START: elements of the flattened parameter from START on. The metadata of each file
tells every parameter's shape, the names that tied weights also go by, and Adam's step counters. Any tool reads it:
https://huggingface.co/docs/safetensors (8 bytes with the length of a JSON header, the header, the data).
"""

import bisect
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from scaletrain.errors import CheckpointError
from scaletrain.optim.eight_bit import Packed
from scaletrain.runtime.files import forget_pages

_BLOCK = 16 << 20  # bytes handed to the disk at once
_FLOAT = 4  # bytes


def file_name(rank: int, ranks: int) -> str:
    return f"state-{rank:05d}-of-{ranks:05d}.safetensors"


@dataclass(frozen=True)
class Entry:
    """One piece to be written, as float32: one dimension, on any device, of any precision up to that, or in 8 bits."""

    kind: str
    name: str
    start: int
    values: torch.Tensor | Packed

    def floats(self) -> torch.Tensor:
        """In float32."""
        return self.values.floats() if isinstance(self.values, Packed) else self.values.detach().float()


def write_entries(path: Path, entries: Iterable[Entry], metadata: Mapping[str, Any]) -> tuple[int, str]:
    """Writes a file, on the disk when this returns. Returns its bytes and its xxh3 (128 bits).

    One entry at a time is copied to host memory, where it is not there already.
    """
    entries = list(entries)
    header: dict[str, Any] = {"__metadata__": {name: json.dumps(value) for name, value in metadata.items()}}
    at = 0
    for entry in entries:
        size = entry.values.numel() * _FLOAT
        key = f"{entry.kind}/{entry.name}@{entry.start}"
        header[key] = {"dtype": "F32", "shape": [entry.values.numel()], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, written = xxhash.xxh3_128(), 0
    with path.open("wb", buffering=0) as file:
        for view in chain([memoryview(len(text).to_bytes(8, "little") + text)], map(_bytes_of, entries)):
            for begin in range(0, len(view), _BLOCK):
                block = view[begin : begin + _BLOCK]
                digest.update(block)
                written += len(block)
                while block:  # a raw file may take a part
                    block = block[file.write(block) :]
                # The disk begins with the last block now: it would idle until the fsync, and half of the time be lost.
                forget_pages(file.fileno(), max(0, written - _BLOCK), min(written, _BLOCK))
        os.fsync(file.fileno())
    return written, digest.hexdigest()


def _bytes_of(entry: Entry) -> memoryview:
    array = entry.floats().cpu().contiguous().numpy()
    return memoryview(array.view(np.uint8))  # type: ignore[arg-type]  # numpy's stubs forget that it is a buffer


class StateFiles:
    """The pieces of a checkpoint folder, mapped: what is asked for is read, whoever wrote it."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._pieces: dict[tuple[str, str], list[tuple[int, torch.Tensor]]] = {}
        self.shapes: dict[str, list[int]] = {}
        self.tied: dict[str, str] = {}
        self.steps: dict[str, int] = {}
        self.scaler: dict[str, float] = {}
        for name in sorted(names):
            if name.startswith("state-") and name.endswith(".safetensors"):
                self._open(folder / name)
        for found in self._pieces.values():
            found.sort(key=lambda piece: piece[0])

    def _open(self, path: Path) -> None:
        raw = np.memmap(path, dtype=np.uint8, mode="c")  # copy on write: torch wants memory that may be written
        length = int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8 : 8 + length].tobytes())
        metadata = {name: json.loads(value) for name, value in header.pop("__metadata__").items()}
        self.shapes.update(metadata["shapes"])
        self.tied.update(metadata["tied"])
        self.steps.update(metadata["steps"])
        self.scaler.update(metadata["scaler"])
        data = torch.from_numpy(raw[8 + length :])
        for key, record in header.items():
            kind, _, rest = key.partition("/")
            name, _, start = rest.rpartition("@")
            begin, end = record["data_offsets"]
            values = data[begin:end].view(torch.float32) if end > begin else torch.empty(0)
            self._pieces.setdefault((kind, name), []).append((int(start), values))

    def fill(self, kind: str, name: str, start: int, out: torch.Tensor) -> None:
        """Copies elements start..start+len(out) of a parameter's `kind` into the flat `out`."""
        found = self._pieces.get((kind, name), [])
        at, end = start, start + out.numel()
        first = max(0, bisect.bisect_right(found, start, key=lambda piece: piece[0]) - 1)
        for begin, values in found[first:]:
            stop = min(begin + values.numel(), end)
            if begin > at or at >= end:
                break
            if stop > at:
                out[at - start : stop - start].copy_(values[at - begin : stop - begin])
                at = stop
        if at < end:
            raise CheckpointError(
                f"{self._folder}: {kind} of {name} ends at element {at:,}, {end:,} are needed: the checkpoint is of "
                "another model; choose a new run.dir"
            )

    def weight(self, name: str) -> torch.Tensor:
        """A parameter's float32 weights, whole."""
        out = torch.empty(self.shapes[name], dtype=torch.float32)
        self.fill("weight", name, 0, out.view(-1))
        return out
