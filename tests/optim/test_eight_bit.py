"""Moments in 8 bits, read as float32 and packed again."""

import sys

import pytest
import torch

from scaletrain.errors import ConfigError
from scaletrain.optim.eight_bit import Packed, adamw_8bit, moment, pack_moments

SIZES = (5000, 256 * 20, 4095)  # with a block that is not whole, without one, and too small for 8 bits


def trained(steps: int, seed: int = 1) -> torch.optim.Optimizer:
    """An optimizer after some updates, on gradients of many sizes, most of them below 0 in the first tensor."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(size, generator=generator).requires_grad_() for size in SIZES]
    optimizer = adamw_8bit([{"params": tensors}], lr=1e-3, betas=(0.9, 0.95))
    for _ in range(steps):
        for number, tensor in enumerate(tensors):
            tensor.grad = torch.randn(tensor.shape, generator=generator) * 10.0 ** (-3 * number) - float(number == 0)
        optimizer.step()
    return optimizer


def unpack(optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
    """Its states as a checkpoint is read into them."""
    kept = {}
    for tensor, state in optimizer.state.items():
        kept[tensor] = {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
        for kind in ("exp_avg", "exp_avg_sq"):
            held = moment(state, kind)
            assert held is not None
            state[kind] = held.floats() if isinstance(held, Packed) else held.clone()
    return kept


@pytest.mark.parametrize("steps", [1, 7])
def test_what_8_bits_held_is_held_again_to_the_bit(steps: int) -> None:
    optimizer = trained(steps)
    assert any(bool((state["state1"] == 0).any()) for state in optimizer.state.values()), "none ends at -0.993"
    kept = unpack(optimizer)
    for tensor, before in kept.items():
        for name in before:
            if name.startswith(("state", "absmax")):
                optimizer.state[tensor][name].zero_()
    pack_moments(optimizer)
    for tensor, before in kept.items():
        state = optimizer.state[tensor]
        assert state.pop("step") == steps
        assert state.keys() == before.keys()
        assert all(torch.equal(state[name], value) for name, value in before.items())


def test_an_optimizer_that_has_not_begun_takes_them_too() -> None:
    old, new = trained(3), trained(0)
    unpack(old)
    for before, after in zip(old.param_groups[0]["params"], new.param_groups[0]["params"], strict=True):
        new.state[after] = {kind: old.state[before][kind] for kind in ("exp_avg", "exp_avg_sq")} | {"step": 3}
    pack_moments(old)
    pack_moments(new)
    for before, after in zip(old.param_groups[0]["params"], new.param_groups[0]["params"], strict=True):
        one, other = old.state[before], new.state[after]
        assert one.keys() == other.keys()
        for kind in ("exp_avg", "exp_avg_sq"):
            first, second = moment(one, kind), moment(other, kind)
            assert torch.equal(as_floats(first), as_floats(second))


def as_floats(held: Packed | torch.Tensor | None) -> torch.Tensor:
    assert held is not None
    return held.floats() if isinstance(held, Packed) else held


def test_other_values_are_rounded_to_the_nearest_code() -> None:
    optimizer = trained(1)
    tensor = optimizer.param_groups[0]["params"][1]
    values = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5))
    state = optimizer.state[tensor]
    state["exp_avg"], state["exp_avg_sq"] = values.clone(), values.square()
    pack_moments(optimizer)
    for kind, whole in (("exp_avg", values), ("exp_avg_sq", values.square())):
        held = moment(state, kind)
        assert isinstance(held, Packed)
        rows, found = whole.view(-1, 256), held.floats().view(-1, 256)
        greatest = rows.abs().amax(1, keepdim=True)
        steps = (held.table[None, None] * greatest[..., None] - rows[..., None]).abs().amin(-1)
        torch.testing.assert_close((found - rows).abs(), steps, rtol=0, atol=1e-6)


def test_a_part_is_read_from_any_place() -> None:
    optimizer = trained(4)
    held = moment(optimizer.state[optimizer.param_groups[0]["params"][0]], "exp_avg")
    assert isinstance(held, Packed)
    whole = held.floats()
    for begin, length in ((0, 5), (250, 20), (256, 256), (1000, 3000), (4990, 10), (7, 0)):
        part = held.narrow(begin, length)
        assert part.numel() == length
        assert torch.equal(part.floats(), whole[begin : begin + length])
        if length > 3:
            assert torch.equal(part.narrow(2, length - 3).floats(), whole[begin + 2 : begin + length - 1])


def test_it_is_refused_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="adamw_8bit needs bitsandbytes, .*: pip install 'scaletrain"):
        adamw_8bit([{"params": [torch.zeros(1)]}])
