"""Activation checkpointing: the same numbers in every mode, and less kept in memory."""

import weakref
from collections import Counter
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scaletrain.errors import ConfigError
from scaletrain.model import cpu_kernels
from scaletrain.model.checkpointing import apply_activation_checkpointing
from tests.model.tiny import GPT2, KINDS, LLAMA, gradients, make_batch, make_model, number_documents

DOCUMENTS = number_documents([40], [17, 1, 22], [1, 3, 36])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["rows", "documents"])
@pytest.mark.parametrize("mode", ["selective", "full", "offload", "every_1", "every_2"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_loss_and_gradients_are_the_same_in_every_mode(
    kind: str, mode: str, documents: Tensor | None, dtype: torch.dtype
) -> None:
    ids, labels = make_batch(KINDS[kind])
    found = []
    for each in ("none", mode):
        model = make_model(KINDS[kind]).to(dtype)
        apply_activation_checkpointing(model, each)
        loss = model(ids, labels, documents)
        loss.backward()
        found.append((loss.item(), gradients(model)))
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        assert torch.equal(gradient, found[1][1][name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["rows", "documents"])
def test_each_mode_computes_again_what_it_says(documents: Tensor | None, dtype: torch.dtype) -> None:
    counts = {
        mode: _backward_counts(mode, documents, dtype) for mode in ("none", "selective", "every_2", "full", "offload")
    }
    assert counts["none"]["attention"] == counts["selective"]["attention"] == 0
    assert counts["every_2"]["attention"] == 1  # of two blocks
    assert counts["full"]["attention"] == 2
    assert counts["none"]["products"] == counts["selective"]["products"]
    assert (
        counts["every_2"]["products"] == counts["none"]["products"] + 4
    )  # qkv, output, gate, up; nothing asks for down
    assert counts["full"]["products"] == counts["none"]["products"] + 8
    assert counts["offload"] == counts["full"]
    assert counts["none"]["norms"] < counts["selective"]["norms"] == counts["full"]["norms"]


class _Counter(TorchDispatchMode):
    """Counts the operators that run: those whose kept result is handed out are never seen here."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[function.name()] += 1
        return function(*args, **(kwargs or {}))


def _backward_counts(mode: str, documents: Tensor | None, dtype: torch.dtype) -> dict[str, int]:
    model = make_model(LLAMA).to(dtype)
    apply_activation_checkpointing(model, mode)
    loss = model(*make_batch(LLAMA), documents)
    with _Counter() as counter, patch.object(cpu_kernels, "rms_norm", wraps=cpu_kernels.rms_norm) as norm:
        loss.backward()
    kernels = (
        "scaletrain::blocked_attention",
        "scaletrain::native_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
    )
    return {
        "products": counter.seen["aten::mm"] + counter.seen["aten::addmm"],
        "attention": sum(counter.seen[kernel] for kernel in kernels),
        "norms": norm.call_count,
    }


@pytest.mark.parametrize("mode", ["every_0", "every_n", "some", ""])
def test_an_unknown_mode_is_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown: choose none, selective, full, offload or every_N"):
        apply_activation_checkpointing(make_model(GPT2), mode)


def test_offloaded_inputs_are_copies_and_the_only_thing_kept() -> None:
    """Of three blocks the first two's; the embedding's result, block 0's input, is let go."""
    model = make_model(replace(LLAMA, num_layers=3))
    apply_activation_checkpointing(model, "offload")
    results: list[weakref.ref[Tensor]] = []
    for module in (model.embedding, *model.blocks):
        module.register_forward_hook(lambda module, inputs, y: results.append(weakref.ref(y)))
    ids, labels = make_batch(LLAMA)
    loss = model(ids, labels)
    assert [ref() is None for ref in results] == [True, True, False, False]  # inputs of block 2 and of the final norm
    loss.backward(retain_graph=True)
    first = {name: gradient.clone() for name, gradient in gradients(model).items()}
    loss.backward()
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, 2 * first[name]), name


def test_two_forward_passes_before_their_backward_passes_do_not_mix() -> None:
    found = []
    for mode in ("none", "offload"):
        model = make_model(LLAMA)
        apply_activation_checkpointing(model, mode)
        losses = [model(*make_batch(LLAMA, seed=seed)) for seed in (1, 2)]
        for loss in losses:
            loss.backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
