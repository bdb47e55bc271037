"""Attention: our blocked kernel against torch's, causality, and rotary tables that stay exact."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scaletrain.model.attention import causal_attention
from scaletrain.model.blocked_attention import QUERY_BLOCK, blocked_attention
from scaletrain.model.layers import RotaryTable, rotate
from tests.model.tiny import GPT2, KINDS, LLAMA, make_batch, make_model


def _reference(qkv: Tensor, heads: int, kv_heads: int) -> Tensor:
    q, k, v = torch.split(qkv.transpose(1, 2), [heads, kv_heads, kv_heads], dim=1)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return y.transpose(1, 2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("tokens", [1, 7, QUERY_BLOCK, 2 * QUERY_BLOCK + 44])
def test_blocked_attention_equals_torch_in_float64(tokens: int, heads: int, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, tokens, heads + 2 * kv_heads, 16, dtype=torch.float64, generator=generator)
    ours, theirs = (qkv.clone().requires_grad_() for _ in range(2))
    y, expected = blocked_attention(ours, heads, kv_heads), _reference(theirs, heads, kv_heads)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-12)
    weights = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    # Key and value gradients are summed in float32, whatever the type.
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_blocked_attention_passes_operator_checks() -> None:
    qkv = torch.randn(1, 5, 6, 8, requires_grad=True)
    torch.library.opcheck(blocked_attention, (qkv, 2, 2))
    torch.library.opcheck(blocked_attention, (qkv, 2, 2, torch.tensor([[0, 0, 2, 2, 4]])))


def test_bfloat16_attention_on_a_cpu_is_as_near_to_the_truth_as_eager_attention() -> None:
    qkv = torch.randn(2, 300, 8, 32, generator=torch.Generator().manual_seed(0))
    truth = _reference(qkv.bfloat16().double(), 4, 2)
    ours = causal_attention(qkv.bfloat16(), 4, 2)
    q, k, v = torch.split(qkv.bfloat16().transpose(1, 2), [4, 2, 2], dim=1)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ k.transpose(2, 3)) * 32**-0.5 + torch.full((300, 300), -torch.inf).triu(1).bfloat16()
    eager = (scores.float().softmax(-1).bfloat16() @ v).transpose(1, 2)
    assert (ours - truth).norm() <= 1.2 * (eager - truth).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_changes_no_logits_before_it(kind: str, dtype: torch.dtype) -> None:
    model = make_model(KINDS[kind]).to(dtype)
    ids, _ = make_batch(KINDS[kind])
    changed = ids.clone()
    changed[:, 20] = (changed[:, 20] + 1) % KINDS[kind].vocab_size
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])


def test_rotary_positions_stay_exact_when_the_model_turns_bfloat16() -> None:
    """Neighbouring positions beyond 256 are one number in bfloat16."""
    model = make_model(LLAMA)
    before = model.rotary.rotation(48, torch.device("cpu"))
    half = copy.deepcopy(model).bfloat16()
    after = half.rotary.rotation(48, torch.device("cpu"))
    fresh = RotaryTable(LLAMA.head_dim, LLAMA.rope_theta).rotation(48, torch.device("cpu"))
    for exact, ours, new in zip(before, after, fresh, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(exact, ours)
        assert torch.equal(exact, new)
    assert not list(model.buffers())


def test_rotation_gradcheck() -> None:
    rotation = RotaryTable(6, 10.0).rotation(5, torch.device("cpu"))
    wide = tuple(t.double() for t in rotation)
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: rotate(t, wide, num_rotated=3), (x,))


def test_rotation_depends_on_relative_positions_only() -> None:
    q, k = torch.randn(2, 8)
    rotation = RotaryTable(8, 10_000.0).rotation(40, torch.device("cpu"))
    at = rotate(torch.stack([q, k]).expand(1, 40, 2, 8), rotation, num_rotated=2)[0]
    products = at[:, 0] @ at[:, 1].t()
    for distance in (0, 3, 11):
        line = products.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-4)


def test_evaluation_first_does_not_break_training() -> None:
    """Tables first made under inference_mode could not be saved for a backward pass."""
    model = make_model(LLAMA)
    ids, labels = make_batch(LLAMA)
    with torch.inference_mode():
        model(ids, labels)
    model(ids, labels).backward()
    assert model.embedding.weight.grad is not None


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(AssertionError, match="49 tokens do not fit max_positions=48"):
        make_model(GPT2)(torch.zeros(1, 49, dtype=torch.long))
