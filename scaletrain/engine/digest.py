"""A number that tells a training state, however it is cut into pieces: over ranks, ZeRO stages and files.

Each element counts as the integer of its float32 bits times an odd 64-bit multiplier of its kind, parameter and
position; all is added modulo 2**64. So the sums of pieces and of ranks add up to that of the whole, and a change of one
element always changes it (an odd multiplier loses no difference). Two elements that change places in one block always
change it too, as the block's multipliers differ in their lowest 33 bits and a difference of two float32 has fewer than
32 zeros at its end; anything else goes unseen once in 2**32 or less. It guards against faults, not against forgers.
"""

from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
import torch
import xxhash

from scaletrain.data.shuffle import mix
from scaletrain.engine import fragments
from scaletrain.engine.fragments import Piece
from scaletrain.engine.state_files import Entry
from scaletrain.errors import CheckpointError

STEP = "step"  # Adam's counters, the further kind
KINDS = (*fragments.KINDS, STEP)  # of AdamW's state, which every state has; another optimizer's may have more
# Positions that share a multiplier by name; 0.6 MB in work, which stays in cache. From 32,768 on torch would share the
# work among threads, also in the thread that writes behind training.
BLOCK = 32_000
_KEY = 0x243F6A8885A308D3  # its multipliers differ in their lowest 33 bits; tests/engine/test_digest.py looks

Sums = dict[str, int]  # kind -> sum modulo 2**64


def sums(entries: Iterable[Entry], kinds: Iterable[str] = fragments.KINDS) -> Sums:
    """The sum of each of `kinds`, and of the counters, over some pieces of a state; 0 for a kind without any.

    About 0.15 s a GB of float32 on one thread of an AMD EPYC (pytest -m slow tests/engine/test_digest.py -s); tensors
    on a GPU are read there.
    """
    found = dict.fromkeys((*kinds, STEP), 0)
    for entry in entries:
        found[entry.kind] = (found[entry.kind] + _sum_of(entry)) % 2**64
    return found


def sum_of_steps(held: Iterable[Piece], counts: Mapping[str, int]) -> int:
    """The same over Adam's step counters, as if each element of a parameter had its own."""
    total = sum(counts.get(piece.name, 0) * piece.numel * _multiplier(STEP, piece.name, 0) for piece in held)
    return total % 2**64


def shown(found: Mapping[str, int]) -> dict[str, str]:
    """As a manifest stores them: JSON numbers end at 2**53."""
    return {kind: f"{value:016x}" for kind, value in found.items()}


def check(found: Mapping[str, int], stored: Mapping[str, str], checkpoint: str) -> None:
    """CheckpointError with the kinds of a loaded state that are not those which were saved."""
    now = shown(found)
    if differing := [kind for kind in stored if stored[kind] != now.get(kind)]:
        kinds = ", ".join(f"{kind} (saved {stored[kind]}, loaded {now.get(kind)})" for kind in differing)
        raise CheckpointError(
            f"{checkpoint}: the state that was loaded is not the one that was saved: {kinds} differ: rename this "
            "folder to go on from the checkpoint before it, and report this, for the files themselves are whole"
        )


def _sum_of(entry: Entry) -> int:
    if not entry.values.numel():
        return 0
    bits = entry.floats().view(torch.int32)
    multipliers = _multipliers(bits.device)
    products = torch.empty(BLOCK, dtype=torch.int64, device=bits.device)
    first, inside = divmod(entry.start, BLOCK)
    parts = [bits[: BLOCK - inside], *torch.split(bits[BLOCK - inside :], BLOCK)]
    found = []
    for part in parts:
        end = inside + part.numel()
        found.append(_multiply(part, multipliers[inside:end], products[inside:end]).sum())
        inside = 0
    by_block = torch.stack(found).tolist()  # one wait for the device
    return sum(total * _multiplier(entry.kind, entry.name, first + n) for n, total in enumerate(by_block))


def _multiply(bits: torch.Tensor, multipliers: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Products as int64, which wrap around, in `out`."""
    out.copy_(bits)
    if out.device.type != "cpu":
        return out.mul_(multipliers)
    np.multiply(out.numpy(), multipliers.numpy(), out=out.numpy())  # torch's own takes 2.5 times as long
    return out


@cache
def _multipliers(device: torch.device) -> torch.Tensor:
    """An odd one for each position of a block."""
    with np.errstate(over="ignore"):
        drawn = mix(np.arange(BLOCK, dtype=np.uint64), np.uint64(_KEY)) | np.uint64(1)
    return torch.from_numpy(drawn.view(np.int64)).to(device)


def _multiplier(kind: str, name: str, block: int) -> int:
    return xxhash.xxh3_64_intdigest(f"{kind}/{name}@{block}".encode()) | 1
