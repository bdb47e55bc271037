"""Pure parts of the benchmarks of scaling and kernels: bytes by theory, lines, rooflines, and which runs are made."""

import pytest
import torch

from benchmarks import growth
from benchmarks.kernel_variants import KERNELS, Kernel, Shape
from benchmarks.kernels import MACHINE, Timed, rows_of
from benchmarks.rank_steps import Steps
from benchmarks.record import spread
from benchmarks.roofline import Machine, bound
from benchmarks.scaling import rank_cases, rank_rows
from benchmarks.traffic import Collectives, sent, theory
from scaletrain.runtime import dist
from tests.ranks import run_ranks

BASE = Steps(layers=2, heads=2, hidden=32, vocab=128, context=16, samples=6, stage=1, steps=2)


@pytest.mark.parametrize(("stage", "volume"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_a_step_sends_what_the_paper_says(stage: int, volume: int) -> None:
    assert theory(stage, 4, 1000, 2) == volume * 3 / 4 * 2000
    assert theory(stage, 1, 1000, 2) == 0


def test_split_gradients_are_reduced_for_each_micro_batch() -> None:
    volumes = [theory(stage, 2, 1000, 2, accumulation=4) / 1000 for stage in range(4)]
    assert volumes == [2, 2, 5, 12]


def test_sent_bytes_follow_the_rings() -> None:
    assert sent({"all_reduce": 1000}, 4) == 1500
    assert sent({"reduce_scatter": 1000, "all_gather": 1000}, 4) == 1500  # an all-reduce is these two
    assert sent({"broadcast": 1000, "reduce": 1000}, 2) == 1000
    assert sent({"all_reduce": 1000}, 1) == 0


def _counted() -> dict[str, int]:
    with Collectives() as collectives:
        dist.sum_tensors(torch.ones(10))
        dist.sum_integers([1, 2])
    return dict(collectives.whole)


def test_collectives_of_all_kinds_of_numbers_are_counted() -> None:
    assert run_ranks(_counted, 2) == [{"all_reduce": 10 * 4 + 2 * 8}] * 2


def test_a_line_is_found_again() -> None:
    line = growth.fit([256, 512, 1024, 8192], [10 + 0.5 * x for x in (256, 512, 1024, 8192)])
    assert (line.intercept, line.slope) == (pytest.approx(10), pytest.approx(0.5))
    assert line.at(100) == pytest.approx(60)


def _points(values: list[float], noise: float = 0.0) -> list[growth.Spread]:
    return [spread([value * (1 - noise), value, value * (1 + noise)]) for value in values]


def test_only_growth_beyond_the_noise_is_more_than_linear() -> None:
    xs = [1, 2, 4, 8]
    assert growth.exceeding(xs, _points([11, 12, 14, 18])) == []
    assert growth.exceeding(xs, _points([11, 12, 14, 30])) == [8]
    assert growth.exceeding(xs, _points([11, 12, 14, 20], noise=0.1)) == []
    assert growth.exceeding(xs, _points([1, 4, 16, 64])) == [4, 8]
    assert growth.exceeding(xs, _points([11, 12, 13, 13])) == []  # less than linear


def test_the_longer_of_arithmetic_and_transfer_binds() -> None:
    machine = Machine(matrix_rate=100.0, copy_bandwidth=10.0)
    assert (bound(1000, 50, machine).seconds, bound(1000, 50, machine).by) == (10, "matrix")
    assert (bound(100, 50, machine).seconds, bound(100, 50, machine).by) == (5, "memory")


def test_one_rank_begins_both_kinds_and_what_does_not_divide_is_left_out() -> None:
    cases = rank_cases(BASE, [1, 2, 4], [0, 3])
    assert list(cases)[:4] == [("weak", 0, 1), ("weak", 0, 2), ("strong", 0, 2), ("weak", 0, 4)]
    assert ("strong", 0, 4) not in cases and ("weak", 3, 4) in cases
    assert cases["strong", 3, 2].samples == 3


def test_efficiency_is_taken_within_a_round() -> None:
    cases = rank_cases(BASE, [1, 2], [1])
    seconds = {"weak, ZeRO 1, 1 rank": 1.0, "weak, ZeRO 1, 2 ranks": 2.0, "strong, ZeRO 1, 2 ranks": 0.5}
    rounds = [
        {
            name: {
                "step_seconds": [each * slowness] * 3,
                "whole_bytes": {"all_reduce": 8},
                "wire_bytes": None,
                "step_bytes": 1,
            }
            for name, each in seconds.items()
        }
        for slowness in (1, 5)
    ]
    rows = {row["name"]: row for row in rank_rows(cases, rounds)}
    devices = 2 if torch.cuda.is_available() else 1
    assert rows["weak, ZeRO 1, 2 ranks"]["efficiency"] == spread([1 / devices])
    assert rows["strong, ZeRO 1, 2 ranks"]["efficiency"] == spread([2 / devices])
    assert rows["strong, ZeRO 1, 1 rank"]["x"] == 1
    assert rows["weak, ZeRO 1, 2 ranks"]["sent_bytes"] == 8


def test_contexts_share_out_the_same_tokens() -> None:
    cases = growth.cases_of(BASE, 1024, [1, 2])
    contexts = {size: steps for (what, ranks, size), steps in cases.items() if what == "context" and ranks == 2}
    assert list(contexts) == [256, 512, 1024]
    assert {steps.samples * size for size, steps in contexts.items()} == {1024}


def test_growth_is_fitted_for_each_series_and_figure() -> None:
    cases = growth.cases_of(BASE, 1024, [1])
    found = {"wire_bytes": None, "whole_bytes": {}, "step_bytes": 2048}
    rounds = [
        {
            growth.name_of(*key): {**found, "step_seconds": [float(key[2]) * steps.samples * steps.context]}
            for key, steps in cases.items()
        }
    ]
    rows = growth.rows_of(cases, rounds)
    assert {row["token_seconds"]["median"] for row in rows if row["x_name"] == "layers"} == set(growth.LAYERS)
    lines = {(line["series"], line["figure"]): line for line in growth.fits(rows)}
    line = lines["layers, 1 rank", "token_seconds"]
    assert (line["intercept"], line["slope"]) == (pytest.approx(0, abs=1e-6), pytest.approx(1))
    assert line["above_linear_at"] == []
    assert lines["context, 1 rank", "token_bytes"]["slope"] == pytest.approx(0, abs=1e-6)


def test_a_kernel_is_held_against_the_bound_of_its_round() -> None:
    kernel = Kernel({"ours": torch.neg, "other": torch.neg}, [], flops=100, moved=10)
    rounds = [
        {MACHINE: Machine(10.0, 10.0 * speed), "k: ours": Timed(1.0, 20.0), "k: other": Timed(2.0, 40.0 / speed)}
        for speed in (1, 2)
    ]
    ours, other = rows_of({"k": kernel}, rounds, {"k: ours": 7, "k: other": 8})
    assert (ours["bound"], ours["share_of_roofline"]) == ("matrix", spread([0.5]))
    assert other["ours_is_faster_by"] == spread([2.0, 1.0])
    assert (ours["peak_bytes"], other["peak_bytes"]) == (7, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KERNELS)
def test_variants_of_a_kernel_compute_the_same(name: str, dtype: torch.dtype) -> None:
    kernel = KERNELS[name](Shape(2, 24, 4, 2, 16, 96), torch.device("cpu"), dtype)
    found = []
    for compute in kernel.variants.values():
        for tensor in kernel.inputs:
            tensor.grad = None
        result = compute(*kernel.inputs)
        generator = torch.Generator().manual_seed(0)  # not ones: a norm's gradient would vanish
        result.backward(torch.randn(result.shape, generator=generator).to(result.dtype))
        found.append([result.detach(), *(tensor.grad for tensor in kernel.inputs)])
    tolerance = 1e-4 if dtype == torch.float32 else 0.06
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            assert ours is not None and theirs is not None
            torch.testing.assert_close(
                ours.float(), theirs.float(), rtol=tolerance, atol=tolerance * float(ours.abs().max())
            )
