"""The C++ kernels for bfloat16 on a CPU against float64, and what happens where they cannot be built."""

import math
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scaletrain.model import cpu_kernels, layers
from scaletrain.model.attention import causal_attention
from scaletrain.model.documents import Documents
from scaletrain.model.loss import linear_cross_entropy
from scaletrain.model.native import build
from scaletrain.model.native.attention import native_attention
from scaletrain.model.native.call import call
from scaletrain.runtime import processor

pytestmark = pytest.mark.skipif(not build.is_supported(), reason="needs AVX-512 BF16 and a g++")


def _truth(qkv: Tensor, heads: int, kv_heads: int, starts: Tensor | None) -> Tensor:
    q, k, v = torch.split(qkv.transpose(1, 2), [heads, kv_heads, kv_heads], dim=1)
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    place = torch.arange(qkv.shape[1])
    is_seen = (place[None, :] <= place[:, None])[None]
    if starts is not None:
        is_seen = is_seen & (place[None, None, :] >= starts[:, :, None])
    scores = (q @ k.transpose(2, 3)) * qkv.shape[3] ** -0.5
    return (scores.masked_fill(~is_seen[:, None], -math.inf).softmax(-1) @ v).transpose(1, 2)


def _starts(samples: int, tokens: int, cuts: list[int]) -> Tensor:
    starts = torch.zeros(samples, tokens, dtype=torch.int64)
    for sample in range(samples):
        for cut in cuts:
            starts[sample, min(cut + sample, tokens) :] = min(cut + sample, tokens)
    return starts


def _error(found: Tensor, truth: Tensor) -> float:
    return float(((found.double() - truth).norm() / truth.norm()).detach())


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("cuts", [None, [10, 11, 64, 130]], ids=["rows", "documents"])
def test_attention_and_its_gradient_are_the_formulas(
    heads: int, kv_heads: int, head_dim: int, tokens: int, cuts: list[int] | None
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    qkv = (2 * torch.randn(2, tokens, heads + 2 * kv_heads, head_dim, generator=generator)).bfloat16()
    dy = torch.randn(2, tokens, heads, head_dim, generator=generator).bfloat16()
    starts = None if cuts is None else _starts(2, tokens, cuts)
    ours, theirs = qkv.clone().requires_grad_(), qkv.double().requires_grad_()
    y, sums = native_attention(ours, heads, kv_heads, starts)
    y.backward(dy)
    truth = _truth(theirs, heads, kv_heads, starts)
    truth.backward(dy.double())
    assert ours.grad is not None and theirs.grad is not None
    assert sums.shape == (2, heads, tokens) and sums.isfinite().all()
    assert _error(y, truth) < 4e-3  # bfloat16 has 8 bits
    assert _error(ours.grad, theirs.grad) < 6e-3


def test_attention_passes_operator_checks_and_takes_strided_inputs() -> None:
    qkv = torch.randn(1, 70, 4, 64).bfloat16()[:, :, :3].requires_grad_()
    assert not qkv.is_contiguous()
    torch.library.opcheck(native_attention, (qkv, 1, 1), test_utils=["test_schema", "test_faketensor"])
    starts = torch.zeros(1, 70, dtype=torch.int64)
    torch.library.opcheck(native_attention, (qkv, 1, 1, starts), test_utils=["test_schema", "test_faketensor"])
    assert torch.equal(native_attention(qkv, 1, 1)[0], native_attention(qkv.contiguous(), 1, 1)[0])


def test_large_scores_neither_overflow_nor_lose_the_first_document() -> None:
    """A block of keys of which a query sees none comes before the ones that it sees."""
    qkv = torch.randn(1, 200, 3, 64).bfloat16() * 60
    starts = _starts(1, 200, [150])
    y, _ = native_attention(qkv, 1, 1, starts)
    assert _error(y, _truth(qkv.double(), 1, 1, starts)) < 4e-3


@pytest.mark.parametrize("place", [0, 100])
def test_what_is_not_a_number_reaches_those_that_see_it_and_no_other(place: int) -> None:
    qkv = torch.randn(1, 130, 3, 64).bfloat16()
    qkv[0, place, 1] = math.nan  # a key
    y, _ = native_attention(qkv, 1, 1)
    assert y[0, place:].isnan().all() and not y[0, :place].isnan().any()


def test_threads_change_nothing() -> None:
    qkv = torch.randn(3, 150, 6, 32).bfloat16().requires_grad_()
    found, threads = [], torch.get_num_threads()
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        y, _ = native_attention(qkv, 2, 2)
        (gradient,) = torch.autograd.grad(y.float().square().sum(), qkv)
        found.append((y.detach(), gradient))
    torch.set_num_threads(threads)
    for y, gradient in found[1:]:
        assert torch.equal(y, found[0][0]) and torch.equal(gradient, found[0][1])


def test_a_model_attends_by_it_and_odd_heads_by_products() -> None:
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    for head_dim in (64, 48):
        with Watch():
            documents = Documents(torch.zeros(1, 20, dtype=torch.int64))
            causal_attention(torch.randn(1, 20, 3, head_dim).bfloat16(), 1, 1, documents)
    names = [name for name in seen if name.startswith("scaletrain::")]
    assert names == ["scaletrain::native_attention", "scaletrain::blocked_attention"]


def _both(function: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    y.backward(torch.linspace(-2, 2, y.numel(), dtype=torch.float64).view(y.shape).bfloat16().to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("elements", [16, 4096, 100_000])
def test_activations_and_their_gradients_are_the_formulas(elements: int) -> None:
    x, up = (4 * torch.randn(2, elements, generator=torch.Generator().manual_seed(1))).bfloat16()
    for ours, truth, inputs in (
        (layers.gelu, lambda x: F.gelu(x, approximate="tanh"), (x,)),
        (layers.gated_silu, lambda gate, up: F.silu(gate) * up, (x, up)),
    ):
        assert type(ours(*(i.clone().requires_grad_() for i in inputs)).grad_fn).__name__.startswith("Native")
        for found, wanted in zip(_both(ours, inputs), _both(truth, tuple(i.double() for i in inputs)), strict=True):
            assert _error(found, wanted) < 3e-3


def test_activations_of_extremes_are_torchs() -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, 1e18, -1e18, 100.0, -100.0, 0.0] * 2).bfloat16()
    y, truth = layers.gelu(x), F.gelu(x, approximate="tanh")
    torch.testing.assert_close(y, truth, rtol=1e-2, atol=1e-30, equal_nan=True)
    for size in (3, 17):  # no multiple of a vector
        torch.testing.assert_close(layers.gelu(x[:size]), truth[:size], rtol=1e-2, atol=1e-30, equal_nan=True)


ATTEND = """
    import torch, warnings
    from scaletrain.model.attention import causal_attention
    from scaletrain.model.layers import gelu
    from scaletrain.model.native.build import library
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        y = gelu(causal_attention(torch.ones(1, 4, 3, 64).bfloat16(), 1, 1))
    for warning in told:
        print(warning.message)
    print("kernels" if library() else "products", tuple(y.shape))
"""
KERNELS, PRODUCTS = "kernels (1, 4, 1, 64)", "products (1, 4, 1, 64)"


def _attend(cache: Path, compiler: str) -> str:
    env = {"PATH": "/usr/bin:/bin", "SCALETRAIN_CACHE": str(cache), "CXX": compiler, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", textwrap.dedent(ATTEND)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def test_the_library_is_kept_and_needs_no_compiler_again(tmp_path: Path) -> None:
    assert _attend(tmp_path, "g++") == f"{KERNELS}\n"
    (built,) = (tmp_path / "kernels").iterdir()
    made = built.stat().st_mtime_ns
    assert _attend(tmp_path, "no-such-compiler") == f"{KERNELS}\n"
    assert [built] == list((tmp_path / "kernels").iterdir()) and built.stat().st_mtime_ns == made


def test_without_a_place_to_keep_it_it_is_built_for_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert _attend(tmp_path / "file", "g++") == f"{KERNELS}\n"


def test_without_a_compiler_products_do_it(tmp_path: Path) -> None:
    for compiler in ("false", "no-such-compiler"):
        assert _attend(tmp_path, compiler) == f"{PRODUCTS}\n"
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_told_once(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'attention.cpp:1: error: no such flag' >&2\nexit 1\n")
    compiler.chmod(0o755)
    told, shape = _attend(tmp_path / "cache", str(compiler)).splitlines()
    assert told == (
        f"{compiler} does not build the CPU kernels (attention.cpp:1: error: no such flag): attention takes twice the "
        "time; name a g++ in $CXX, or set CXX=false to do without"
    )
    assert shape == PRODUCTS


def test_other_processors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "flags", lambda: frozenset({"avx2", "fma"}))
    build.is_supported.cache_clear()
    try:
        assert not build.is_supported() and not build.serves_heads(64)
    finally:
        monkeypatch.undo()
        build.is_supported.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.is_supported()


@pytest.mark.parametrize("width", [16, 48, 384])
@pytest.mark.parametrize("rows", [1, 3, 500])
def test_norms_and_their_gradients_are_the_formulas(width: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x = (3 + 2 * torch.randn(rows, width, generator=generator)).bfloat16()
    weight, bias = torch.randn(2, width, generator=generator).bfloat16()
    for ours, truth, inputs in (
        (
            lambda x, w, b: cpu_kernels.layer_norm(x, w, b, 1e-5),
            lambda x, w, b: F.layer_norm(x, (width,), w, b, 1e-5),
            (x, weight, bias),
        ),
        (lambda x, w: cpu_kernels.rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, (width,), w, 1e-5), (x, weight)),
    ):
        assert type(ours(*(i.clone().requires_grad_() for i in inputs)).grad_fn).__name__ == "NativeNormBackward"
        for found, wanted in zip(_both(ours, inputs), _both(truth, tuple(i.double() for i in inputs)), strict=True):
            assert found.dtype == torch.bfloat16
            assert _error(found, wanted) < 4e-3


@pytest.mark.parametrize("words", [7, 16, 33, 1000])
def test_the_loss_and_the_gradient_of_logits_are_the_formulas(words: int) -> None:
    logits = (5 * torch.randn(60, words, generator=torch.Generator().manual_seed(words))).bfloat16()
    labels = torch.arange(60) % words
    labels[::7] = -100
    wide = logits.double().requires_grad_()
    losses = F.cross_entropy(wide, labels, reduction="none")
    kept = labels >= 0
    (wanted,) = torch.autograd.grad(losses.sum(), wide)
    found = torch.empty(60)
    call("cross_entropy", logits, labels, found, 60, words)
    torch.testing.assert_close(found.double(), losses.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[kept].double(), wanted[kept], rtol=5e-3, atol=1e-6)
    assert not found[~kept].any()


@pytest.mark.parametrize("shape", [(2, 33, 48), (1, 48), (48,)])
def test_a_layer_with_a_bias_is_the_formula(shape: tuple[int, ...]) -> None:
    layer = layers.Linear(48, 20).bfloat16()
    torch.nn.init.normal_(layer.weight, std=0.2)
    torch.nn.init.normal_(layer.bias)
    x, dy = torch.randn(shape).bfloat16().requires_grad_(), torch.randn(*shape[:-1], 20).bfloat16()
    y = layer(x)
    assert "NativeLinear" in str(y.grad_fn)
    y.backward(dy)
    rows, dy_rows = x.detach().double().reshape(-1, 48), dy.double().reshape(-1, 20)
    truth = rows @ layer.weight.detach().double().t() + layer.bias.detach().double()
    assert _error(y.reshape(-1, 20), truth) < 0.004
    assert x.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None
    assert _error(x.grad.reshape(-1, 48), dy_rows @ layer.weight.detach().double()) < 0.004
    assert _error(layer.weight.grad, dy_rows.t() @ rows) < 0.004
    assert _error(layer.bias.grad, dy_rows.sum(0)) < 0.004


def test_a_layer_that_does_not_learn_keeps_no_input() -> None:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape), lambda x: x):
        for learns in (True, False):
            layer = layers.Linear(48, 20).bfloat16().requires_grad_(learns)
            layer(torch.randn(3, 48).bfloat16().requires_grad_())
    assert kept == [(3, 48), (20, 48), (20, 48)]


def test_a_replaced_linear_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's, at ZeRO 3."""
    called = []
    replaced = F.linear
    monkeypatch.setattr(F, "linear", lambda *given: called.append(given) or replaced(*given))
    assert layers.Linear(48, 20).bfloat16()(torch.randn(3, 48).bfloat16()).shape == (3, 20)
    assert called


def test_a_label_beyond_the_vocabulary_is_refused() -> None:
    hidden, weight = torch.randn(3, 16).bfloat16(), torch.randn(20, 16).bfloat16()
    assert linear_cross_entropy(hidden, weight, torch.tensor([-100, 0, 19])).isfinite()
    with pytest.raises(IndexError, match="label 20 is not below the vocabulary's 20"):
        linear_cross_entropy(hidden, weight, torch.tensor([0, 20, 1]))


@pytest.mark.parametrize("first", ["torch", "sklearn, sentencepiece"], ids=["alone", "others-before"])
def test_the_kernels_take_the_openmp_that_torch_runs_on(first: str, tmp_path: Path) -> None:
    # In a process of its own: other tests load packages that each carry a copy.
    script = f"""
from pathlib import Path
import {first}
import torch
from scaletrain.model.native import build
def openmps():
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return {{line.split()[-1] for line in lines if "/libgomp" in line}}
before = openmps()
library = build.library()
assert library is not None and openmps() == before, (before, openmps())
torch.set_num_threads(torch.get_num_threads() + 3)
print(library.omp_get_max_threads() == torch.get_num_threads())
"""
    environment = {**os.environ, "SCALETRAIN_CACHE": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert told.stdout.split() == ["True"]


def test_a_logit_that_is_not_finite_makes_its_loss_so_but_for_minus_infinity() -> None:
    for value, is_finite in ((math.inf, False), (math.nan, False), (-math.inf, True)):
        logits, losses = torch.randn(2, 40).bfloat16(), torch.empty(2)
        logits[0, 5] = value
        call("cross_entropy", logits, torch.tensor([3, 3]), losses, 2, 40)
        assert losses.isfinite().tolist() == [is_finite, True]
        assert logits.isfinite().all(1).tolist() == [is_finite, True]
