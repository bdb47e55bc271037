"""AdamW with its moments in 8 bits (Dettmers et al. 2022), as bitsandbytes keeps and updates them.

Each 256 neighbouring elements of a tensor share a float32 scale, their greatest size; an element is the place, in a
table of 256 numbers between -1 and 1, of what it is divided by that. Tensors of fewer than 4,096 elements keep float32.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from scaletrain.errors import ConfigError

BLOCK = 256  # elements of a scale
_CHUNK = 4096 * BLOCK  # elements that are made float32 at once
_STATES = {"exp_avg": "1", "exp_avg_sq": "2"}  # our names of the moments, and bitsandbytes' endings


def need_eight_bits() -> None:
    """ConfigError, with how to get it, where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "optim.name=adamw_8bit needs bitsandbytes, which is not installed: pip install 'scaletrain[gpu]', or set "
            "optim.name=adamw"
        )


def adamw_8bit(groups: Iterable[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    need_eight_bits()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it misses kernels that 4 bits would take
    import bitsandbytes  # a second, and CUDA's libraries: for who asks for it

    return bitsandbytes.optim.AdamW8bit(groups, **settings)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Packed:
    """Elements offset..offset+length of a flattened moment in 8 bits."""

    codes: Tensor
    scales: Tensor
    table: Tensor
    offset: int
    length: int

    def numel(self) -> int:
        return self.length

    def narrow(self, offset: int, length: int) -> "Packed":
        return Packed(self.codes, self.scales, self.table, self.offset + offset, length)

    def floats(self) -> Tensor:
        """In float32, in new memory."""
        out = torch.empty(self.length, device=self.codes.device)
        for begin, end in _chunks(self.offset, self.offset + self.length):
            first = begin // BLOCK
            scales = self.scales[first : -(-end // BLOCK)].repeat_interleave(BLOCK)
            values = self.table[self.codes.view(-1)[begin:end].int()]
            values *= scales[begin - first * BLOCK : end - first * BLOCK]
            out[begin - self.offset : end - self.offset] = values.add_(0.0)  # no -0, which has no code
        return out


def moment(state: Mapping[str, Any], kind: str) -> Tensor | Packed | None:
    """`exp_avg` or `exp_avg_sq` of what an optimizer holds of a tensor; None where it holds none."""
    if kind in state or kind not in _STATES or f"state{_STATES[kind]}" not in state:
        return state.get(kind)
    end = _STATES[kind]
    held: Tensor = state[f"state{end}"]
    if held.dtype != torch.uint8:
        return held
    return Packed(held, state[f"absmax{end}"], state[f"qmap{end}"], 0, held.numel())


@torch.no_grad()
def pack_moments(optimizer: Any) -> None:
    """Turns moments that a checkpoint was read into, `exp_avg` and `exp_avg_sq` in float32, into the optimizer's own.

    What 8 bits held before, in blocks that begin where these do, is held again to the bit; else it is rounded.
    """
    for tensor, state in optimizer.state.items():
        if not _STATES.keys() <= state.keys():
            continue
        whole = {kind: state.pop(kind) for kind in _STATES}
        if "state1" not in state:
            state.update(_empty(optimizer, tensor))
        for kind, values in whole.items():
            held = moment(state, kind)
            if isinstance(held, Packed):
                _pack(values.view(-1), held)
            elif held is not None:
                held.copy_(values)


def _empty(optimizer: Any, tensor: Tensor) -> dict[str, Tensor]:
    """As the optimizer begins at a tensor's first step (optim/optimizer.py, init_state)."""
    if tensor.numel() < optimizer.args.min_8bit_size:
        return {f"state{end}": torch.zeros_like(tensor, requires_grad=False) for end in _STATES.values()}
    if "dynamic" not in optimizer.name2qmap:
        optimizer.fill_qmap()
    found = {}
    for end, table in zip(_STATES.values(), ("dynamic", "udynamic"), strict=True):
        found[f"state{end}"] = torch.zeros_like(tensor, dtype=torch.uint8, requires_grad=False)
        found[f"qmap{end}"] = optimizer.name2qmap[table] = optimizer.name2qmap[table].to(tensor.device)
        found[f"absmax{end}"] = torch.zeros(-(-tensor.numel() // BLOCK), device=tensor.device)
    return found


def _pack(values: Tensor, held: Packed) -> None:
    borders = (held.table[1:] + held.table[:-1]) / 2
    codes = held.codes.view(-1)
    for begin, end in _chunks(0, values.numel()):
        rows = torch.nn.functional.pad(values[begin:end], (0, -(end - begin) % BLOCK)).view(-1, BLOCK)
        scales, found = _nearest(rows, held.table, borders)
        held.scales[begin // BLOCK : begin // BLOCK + len(rows)] = scales
        codes[begin:end] = found.view(-1)[: end - begin]


def _nearest(rows: Tensor, table: Tensor, borders: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and codes of blocks. Where a block is what some scale and codes stand for, these: the table begins with
    -0.993 and ends with 1, so the greatest element may have been rounded towards zero, and its scale be greater."""
    greatest = rows.abs().amax(1)
    larger = greatest / -table[0]
    further = (larger, torch.nextafter(larger, larger * 2), torch.nextafter(larger, larger * 0))
    scales, codes = greatest, _codes(rows, greatest, borders)
    is_exact = _is_exact(rows, scales, codes, table)
    for tried in further:
        if bool(is_exact.all()):
            break
        others = _codes(rows, tried, borders)
        takes = ~is_exact & _is_exact(rows, tried, others, table)
        scales = torch.where(takes, tried, scales)
        codes = torch.where(takes[:, None], others, codes)
        is_exact |= takes
    return scales, codes.to(torch.uint8)


def _codes(rows: Tensor, scales: Tensor, borders: Tensor) -> Tensor:
    return torch.bucketize(rows / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None], borders)


def _is_exact(rows: Tensor, scales: Tensor, codes: Tensor, table: Tensor) -> Tensor:
    return (table[codes] * scales[:, None] == rows).all(1)


def _chunks(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Pieces of begin..end that, but for the first, begin at a scale's border."""
    while begin < end:
        stop = min(end, begin - begin % BLOCK + _CHUNK)
        yield begin, stop
        begin = stop
