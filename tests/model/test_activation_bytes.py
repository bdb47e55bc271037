"""Activations by formula equal what torch's allocator hands out, in every mode; the loss needs no memory for logits."""

from dataclasses import replace

import pytest
import torch

from benchmarks.allocator import allocated_by
from scaletrain.config.architecture import Architecture, resolve_architecture
from scaletrain.config.schema import Model
from scaletrain.errors import ConfigError
from scaletrain.model import activation_bytes
from scaletrain.model.activation_bytes import activations
from scaletrain.model.checkpointing import apply_activation_checkpointing
from scaletrain.model.chunks import CHUNK_BYTES, tokens_of_chunk
from scaletrain.model.loss import linear_cross_entropy
from tests.model.tiny import KINDS, make_batch, make_model

MODES = ["none", "selective", "full", "offload", "every_2"]
# Layers, width, heads, samples, tokens.
SIZES = {"narrow": (3, 64, 2, 12, 256), "wide": (2, 128, 4, 6, 512)}


def _architecture(kind: str, size: str) -> Architecture:
    layers, hidden, heads, _, tokens = SIZES[size]
    arch = KINDS[kind]
    kv_heads = heads * arch.num_kv_heads // arch.num_heads
    sizes = {"num_layers": layers, "hidden_size": hidden, "num_heads": heads, "num_kv_heads": kv_heads}
    return replace(arch, **sizes, ffn_hidden_size=(4 if kind == "gpt2" else 3) * hidden, max_positions=tokens)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama-untied", "qwen3"])
def test_formula_is_what_the_allocator_hands_out(kind: str, dtype: torch.dtype, size: str, mode: str) -> None:
    arch, (_, _, _, samples, tokens) = _architecture(kind, size), SIZES[size]
    model = make_model(arch).to(dtype)
    apply_activation_checkpointing(model, mode)
    ids, labels = make_batch(arch, samples, tokens)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # gradients of weights are none of the activations
    model(ids[:1], labels[:1])  # makes the table of positions
    told = activations(arch, mode, samples=samples, tokens=tokens, itemsize=dtype.itemsize)
    assert told.kept == pytest.approx(allocated_by(lambda: model(ids, labels)).kept, rel=0.01)
    # Left out: one weight's gradient at a time, and what oneDNN takes for a product and a norm for its rows, which
    # is the same for any batch.
    assert told.peak == pytest.approx(allocated_by(lambda: model(ids, labels).backward()).peak, rel=0.06)


def _gpt2(mode: str, device: str = "cpu", itemsize: int = 2) -> tuple[int, int]:
    arch = resolve_architecture(Model(preset="gpt2-124m", vocab_size=50304), 50304, 1024)
    told = activations(arch, mode, samples=8, tokens=1024, itemsize=itemsize, device=device)  # type: ignore[arg-type]
    return told.kept, told.peak


def test_each_mode_keeps_less_than_the_one_before() -> None:
    for figure in (0, 1):
        none, every_4, every_2, full = (_gpt2(mode)[figure] for mode in ("none", "every_4", "every_2", "full"))
        assert none > every_4 > every_2 > full
        assert none > _gpt2("selective")[figure] > full
    assert _gpt2("every_1") == _gpt2("full")


@pytest.mark.parametrize("is_native", [True, False])
def test_a_kernel_keeps_the_softmax_sums_and_products_do_not(monkeypatch: pytest.MonkeyPatch, is_native: bool) -> None:
    monkeypatch.setattr(activation_bytes, "serves_heads", lambda head_dim: is_native)
    kept_more = 0 if is_native else 12 * 8 * 1024 * 12 * 4  # layers, tokens, heads, float32
    assert _gpt2("none", "cuda")[0] == _gpt2("none")[0] + kept_more
    assert _gpt2("none", "cuda", 4)[0] == _gpt2("none", "cpu", 4)[0]  # there a CPU keeps them too


def test_offloaded_inputs_leave_a_gpu_but_for_two() -> None:
    arch = resolve_architecture(Model(preset="gpt2-124m", vocab_size=50304), 50304, 1024)
    sizes = {"samples": 8, "tokens": 1024, "itemsize": 2, "device": "cuda"}
    full, offload = (activations(arch, mode, **sizes) for mode in ("full", "offload"))  # type: ignore[arg-type]
    one = 8 * 1024 * 768 * 2
    assert offload.host == full.kept - offload.kept == 11 * one  # the last block's stays
    assert full.backward - offload.backward == 10 * one  # that of the block at work, and the next one's on its way
    assert _gpt2("offload") == _gpt2("full"), "on a CPU nothing is won"


def test_repeated_keys_and_values_count_on_a_gpu_in_float32() -> None:
    arch = KINDS["llama"]
    cpu, cuda = (
        activations(arch, "none", samples=1, tokens=40, itemsize=4, device=device).kept
        for device in ("cpu", "cuda")  # type: ignore[arg-type]
    )
    assert cuda - cpu == arch.num_layers * 40 * 2 * arch.hidden_size * 4


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'every_0' is unknown: choose none, selective, full, offload or every_N"):
        _gpt2("every_0")


def test_the_loss_takes_memory_for_a_chunk_of_logits_only() -> None:
    """Twice the tokens or twice the words: the same buffer. Logits and their gradient would take 4 times as much.

    The tokens are whole chunks of either vocabulary: others are divided into smaller ones of one size."""
    extra, chunk = {}, tokens_of_chunk(0, 8192, 4, "cpu")
    for tokens, words in ((4 * chunk, 8192), (8 * chunk, 8192), (4 * chunk, 16384)):
        hidden = torch.randn(tokens, 8, requires_grad=True)
        weight = torch.randn(words, 8, requires_grad=True)
        labels = torch.randint(0, words, (tokens,))
        found = allocated_by(lambda h=hidden, w=weight, y=labels: linear_cross_entropy(h, w, y))  # type: ignore[misc]
        assert found.kept == pytest.approx(4 * 8 * (tokens + words), rel=0.01)  # both gradients, and no logits
        extra[tokens, words] = found.peak - found.kept
    assert max(extra.values()) < 1.02 * min(extra.values())
    assert max(extra.values()) < 1.02 * CHUNK_BYTES["cpu"] < 4 * chunk * 8192 * 4 / 3
