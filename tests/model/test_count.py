"""Counts by formula equal the module's, and torch's own count of operations."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scaletrain.config.architecture import PRESETS, Architecture, resolve_architecture
from scaletrain.config.schema import Model
from scaletrain.model.checkpointing import apply_activation_checkpointing
from scaletrain.model.count import count_parameters, flops_per_token, recomputed_flops_per_token
from scaletrain.model.gpt import GPT
from tests.model.tiny import KINDS, make_model


def _built(arch: Architecture) -> tuple[int, int]:
    with torch.device("meta"):
        model = GPT(arch)
    parameters = dict(model.named_parameters())
    outside = ("embedding.", "positions.", "head.")
    return (
        sum(p.numel() for p in parameters.values()),
        sum(p.numel() for name, p in parameters.items() if not name.startswith(outside)),
    )


@pytest.mark.parametrize("name", [*KINDS, *PRESETS])
def test_count_equals_the_module(name: str) -> None:
    arch = KINDS.get(name) or resolve_architecture(Model(preset=name), 50_257, 1024)
    count = count_parameters(arch)
    assert (count.total, count.non_embedding) == _built(arch)


def test_gpt2_has_124_million_parameters() -> None:
    arch = resolve_architecture(Model(preset="gpt2-124m", vocab_size=50_257), 50_257, 1024)
    assert count_parameters(arch).total == 124_439_808  # Hugging Face's openai-community/gpt2


def test_llama_7b_has_6_738_million_parameters() -> None:
    arch = resolve_architecture(Model(preset="llama-7b", vocab_size=32_000), 32_000, 4096)
    assert count_parameters(arch).total == 6_738_415_616  # Llama 2 7B


@pytest.mark.parametrize("kind", KINDS)
def test_flops_equal_torchs_counter(kind: str) -> None:
    """Torch counts the matrix products that run; its composed attention computes the full square."""
    model = make_model(KINDS[kind])
    ids = torch.zeros(2, 40, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids).sum().backward()
    assert counter.get_total_flops() == flops_per_token(KINDS[kind], 40, attention="full") * ids.numel()


def test_causal_attention_counts_half() -> None:
    arch = KINDS["llama"]
    full, causal = (flops_per_token(arch, 40, attention=kind) for kind in ("full", "causal"))
    assert full - causal == 6 * arch.num_layers * 40 * arch.hidden_size


def _counted(kind: str, mode: str, backend: SDPBackend) -> int:
    model = make_model(KINDS[kind])
    apply_activation_checkpointing(model, mode)
    ids = torch.zeros(2, 40, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(backend):
        model(ids, ids).backward()
    return counter.get_total_flops() // ids.numel()


@pytest.mark.parametrize("mode", ["full", "offload", "every_1", "every_2", "every_3"])
@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_flops_equal_torchs_counter(kind: str, mode: str) -> None:
    more = _counted(kind, mode, SDPBackend.MATH) - _counted(kind, "none", SDPBackend.MATH)
    assert more == recomputed_flops_per_token(KINDS[kind], 40, mode, attention="full") > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_selective_checkpointing_recomputes_no_product(kind: str) -> None:
    counts = {mode: _counted(kind, mode, SDPBackend.FLASH_ATTENTION) for mode in ("none", "selective")}
    assert counts["selective"] - counts["none"] == recomputed_flops_per_token(KINDS[kind], 40, "selective") == 0


def test_causal_attention_counts_half_when_it_is_done_again() -> None:
    arch = KINDS["llama"]
    full, causal = (recomputed_flops_per_token(arch, 40, "full", attention=kind) for kind in ("full", "causal"))
    assert full - causal == 2 * arch.num_layers * 40 * arch.hidden_size
