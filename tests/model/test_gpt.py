"""The whole model: outputs, types, and that nothing large or unwanted is registered."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scaletrain.model.checkpointing import apply_activation_checkpointing
from tests.model.tiny import KINDS, gradients, largest_difference, make_batch, make_model, number_documents

DOCUMENTS = number_documents([40], [17, 1, 22], [1, 3, 36])


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_sum_of_the_token_losses_of_the_logits(kind: str) -> None:
    model = make_model(KINDS[kind])
    ids, labels = make_batch(KINDS[kind])
    logits = model(ids)
    assert logits.shape == (*ids.shape, KINDS[kind].vocab_size)
    loss = model(ids, labels)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_gradients_are_near_the_float32_ones(kind: str) -> None:
    whole = make_model(KINDS[kind]).bfloat16().float()  # the same rounded weights in both
    half = copy.deepcopy(whole).bfloat16()
    ids, labels = make_batch(KINDS[kind])
    for model in (whole, half):
        model(ids, labels).backward()
    exact, found = gradients(whole), gradients(half)
    assert all(gradient.dtype == torch.bfloat16 for gradient in found.values())
    for name, gradient in exact.items():
        assert (found[name] - gradient).norm() < 0.06 * gradient.norm(), name


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_autocast_keeps_float32_gradients_near_the_float32_ones(kind: str) -> None:
    plain, mixed = make_model(KINDS[kind]), make_model(KINDS[kind])
    ids, labels = make_batch(KINDS[kind])
    plain(ids, labels).backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss = mixed(ids, labels)
    loss.backward()
    assert loss.item() == pytest.approx(plain(ids, labels).item(), rel=0.01)
    for name, gradient in gradients(plain).items():
        assert (gradients(mixed)[name] - gradient).norm() < 0.1 * gradient.norm(), name


def test_parameters_have_one_name_each_and_no_buffers() -> None:
    for kind, arch in KINDS.items():
        model = make_model(arch)
        assert not list(model.buffers()), kind
        assert ("head.weight" in dict(model.named_parameters())) == (not arch.tie_embeddings), kind
        assert (model.head.weight is model.embedding.weight) == arch.tie_embeddings, kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["rows", "documents"])
@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_torch_compile_traces_the_model_without_a_break(
    kind: str, documents: Tensor | None, dtype: torch.dtype
) -> None:
    model = make_model(KINDS[kind]).to(dtype)
    ids, labels = make_batch(KINDS[kind])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for each in (model, compiled):
        model.zero_grad()
        loss = each(ids, labels, documents)
        loss.backward()
        found.append((loss.item(), gradients(model)))
    # In bfloat16 compiled norms and activations are plain ones, which round elsewhere than our own kernels.
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5 if dtype == torch.float32 else 5e-4)
    assert largest_difference(found[0][1], found[1][1]) < (1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["rows", "documents"])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_cpus_loss_and_gradients(
    kind: str, mode: str, documents: Tensor | None, dtype: torch.dtype
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    whole = make_model(KINDS[kind]).bfloat16().float()
    ids, labels = make_batch(KINDS[kind])
    expected = whole(ids, labels, documents)
    expected.backward()
    model = copy.deepcopy(whole).to("cuda", dtype)
    model.zero_grad()
    apply_activation_checkpointing(model, mode)
    loss = model(ids.cuda(), labels.cuda(), None if documents is None else documents.cuda())
    loss.backward()
    tolerance = 1e-4 if dtype == torch.float32 else 0.06
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    for name, gradient in gradients(whole).items():
        assert (gradients(model)[name].cpu() - gradient).norm() < tolerance * gradient.norm(), name
