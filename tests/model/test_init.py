"""Initial weights: their statistics, the first loss, and independence of the partition."""

import math
from contextlib import contextmanager

import pytest
import torch

from scaletrain.model.gpt import GPT
from scaletrain.model.init import init_parameters
from tests.model.tiny import GPT2, KINDS, LLAMA, make_batch, make_model
from tests.ranks import run_ranks


@pytest.mark.parametrize("kind", KINDS)
def test_initial_loss_is_log_vocab(kind: str) -> None:
    arch = KINDS[kind]
    ids, labels = make_batch(arch, samples=8)
    loss = make_model(arch, disturbed=False)(ids, labels) / (labels != -100).sum()
    assert loss.item() == pytest.approx(math.log(arch.vocab_size), rel=0.02)


@pytest.mark.parametrize("arch", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_deviations_are_those_of_gpt2(arch) -> None:
    for name, parameter in make_model(arch, disturbed=False).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            wanted = 0.02 / math.sqrt(2 * arch.num_layers) if residual else 0.02
            assert parameter.std().item() == pytest.approx(wanted, rel=0.05), name
            assert abs(parameter.mean().item()) < wanted / 10, name


def test_same_seed_same_weights_and_another_seed_others() -> None:
    first, again, other = (make_model(LLAMA, seed, disturbed=False).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_weights_in_bfloat16_are_the_rounded_float32_ones() -> None:
    half = GPT(LLAMA).bfloat16()
    init_parameters(half, 3)
    whole = GPT(LLAMA)
    init_parameters(whole, 3)
    for (name, ours), theirs in zip(half.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs.bfloat16()), name


def test_only_the_writing_rank_writes_and_every_parameter_is_gathered() -> None:
    model = make_model(GPT2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    gathered = []

    @contextmanager
    def gather(parameter):
        gathered.append(parameter)
        yield False

    init_parameters(model, 0, gather)
    assert [id(p) for p in gathered] == [id(p) for p in model.parameters()]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_weights_do_not_depend_on_partition() -> None:
    """ZeRO-3 on two ranks, built under zero.Init: the same bits as a plain model, and the same loss and gradients."""
    for kind in ("gpt2", "qwen3"):
        results = run_ranks(_partitioned, 2, kind)
        plain = make_model(KINDS[kind], 7, disturbed=False)
        ids, labels = make_batch(KINDS[kind])
        loss = plain(ids, labels)
        loss.backward()
        for weights, found, gradient in results:
            for name, parameter in plain.named_parameters():
                assert torch.equal(torch.from_numpy(weights[name]), parameter), name
            assert found == pytest.approx(loss.item(), rel=1e-6)
            torch.testing.assert_close(torch.from_numpy(gradient), plain.embedding.weight.grad, rtol=1e-5, atol=1e-5)


def _partitioned(kind: str):
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    from scaletrain.model.checkpointing import apply_activation_checkpointing

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a C++ build of 35 s for inference's sake
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = GPT(KINDS[kind])
    assert model.embedding.weight.numel() == 0
    assert (model.head.weight is model.embedding.weight) == KINDS[kind].tie_embeddings

    @contextmanager
    def gather(parameter):
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            yield torch.distributed.get_rank() == 0

    init_parameters(model, 7, gather)
    apply_activation_checkpointing(model, "selective")
    weights = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[name] = parameter.detach().clone().numpy()
    optimizer = torch.optim.AdamW(model.parameters())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    loss = engine(*make_batch(KINDS[kind]))
    engine.backward(loss)
    return weights, loss.item(), safe_get_full_grad(model.embedding.weight).numpy()
