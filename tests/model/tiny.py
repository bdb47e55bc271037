"""Tiny architectures of every kind that the model has, and models of them whose every weight matters."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scaletrain.config.architecture import Architecture
from scaletrain.model.gpt import GPT
from scaletrain.model.init import init_parameters

GPT2 = Architecture(
    family="gpt2",
    vocab_size=160,
    max_positions=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    hidden_size=64,
    ffn_hidden_size=256,
    tie_embeddings=True,
)
LLAMA = replace(GPT2, family="llama", num_kv_heads=2, ffn_hidden_size=192)
KINDS = {
    "gpt2": GPT2,
    "gpt2-untied": replace(GPT2, tie_embeddings=False),
    "llama": LLAMA,
    "llama-untied": replace(LLAMA, tie_embeddings=False, rope_theta=500_000.0, norm_eps=1e-6),
    "llama-one-kv-head": replace(LLAMA, num_kv_heads=1),
    "llama-no-groups": replace(LLAMA, num_kv_heads=4),
    "qwen3": replace(LLAMA, qk_norm=True),
}


def make_model(arch: Architecture, seed: int = 0, *, disturbed: bool = True) -> GPT:
    """Initialised; `disturbed`: norms and biases are no longer 1 and 0, so a forgotten one shows."""
    model = GPT(arch)
    init_parameters(model, seed)
    if disturbed:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def make_batch(arch: Architecture, samples: int = 3, tokens: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random ids and shifted labels; some labels are -100."""
    generator = torch.Generator().manual_seed(seed)
    stream = torch.randint(0, arch.vocab_size, (samples, tokens + 1), generator=generator)
    labels = stream[:, 1:].clone()
    labels[0, :5] = -100
    return stream[:, :-1], labels


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Largest difference of two sets of tensors, relative to each tensor's largest value."""
    assert ours.keys() <= theirs.keys(), ours.keys() - theirs.keys()
    return max(float((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max()) for n in ours)


def number_documents(*rows: list[int]) -> Tensor:
    """documents_BT of rows given by the lengths of their documents."""
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in rows])
