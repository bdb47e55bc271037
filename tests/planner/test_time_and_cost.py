"""Bytes sent, seconds, money: hand-computed."""

import math

import pytest

from scaletrain.config.hardware import cpu, hardware
from scaletrain.model.count import flops_per_token, recomputed_flops_per_token
from scaletrain.planner.communication import gradient_bytes, sent_bytes, weight_bytes
from scaletrain.planner.cost import DEFAULT_NODE_MTBF_HOURS, checkpoint_interval, cost_of
from scaletrain.planner.memory import standing
from scaletrain.planner.time import LINK_SHARE, Cluster, step_time
from tests.planner.made import workload

P = 6_738_415_616
RING = 7 / 8


@pytest.mark.parametrize(
    ("stage", "times"),
    # An all-reduce is 2; stages 1 and 2 all-reduce and gather; stage 3 drops and gathers again: 7 B is over its limit.
    [(0, 2), (1, 3), (2, 3), (3, 3)],
)
def test_bytes_sent_are_multiples_of_the_weights(stage: int, times: int) -> None:
    assert sent_bytes(workload(stage)) == pytest.approx(times * RING * 2 * P)


def test_weights_below_stage_3s_limits_are_gathered_once() -> None:
    limits = {"max_live": 10**10, "max_reuse": 10**10}
    assert weight_bytes(workload(3, zero=limits)) == pytest.approx(RING * 2 * P)
    assert weight_bytes(workload(3)) == pytest.approx(2 * RING * 2 * P)


def test_accumulation_sends_more_from_stage_2_on() -> None:
    sent = [gradient_bytes(workload(stage, accumulation=4)) / gradient_bytes(workload(stage)) for stage in range(4)]
    assert sent == [1, 1, 4, 4]
    assert sent_bytes(workload(1, ranks=1)) == 0


def cluster(nodes: int, network_gbps: float = 400) -> Cluster:
    return Cluster(hardware("h100"), nodes, 8, network_gbps / 8 * 1e9)


def test_a_step_is_arithmetic_update_and_what_of_the_network_is_not_hidden() -> None:
    work = workload(1)
    time = step_time(work, cluster(1), share=0.5)
    flops = flops_per_token(work.arch, 4096) * 4096
    again = recomputed_flops_per_token(work.arch, 4096, "full") * 4096
    assert time.forward + time.backward == pytest.approx((flops + again) / (989e12 * 0.5))
    assert time.update == pytest.approx(-(-P // 8) * 28 / 3350e9)
    gather = weight_bytes(work) / (450e9 * LINK_SHARE)
    hidden = gradient_bytes(work) / (450e9 * LINK_SHARE)
    assert time.exposed == pytest.approx(gather + max(0, hidden - time.backward))
    assert time.tokens_per_second == pytest.approx(8 * 4096 / time.seconds)


def test_a_slower_network_shows_where_it_cannot_hide() -> None:
    assert cluster(1, 10).link == 450e9  # nothing leaves the node
    fast, slow = (step_time(workload(3, ranks=16), cluster(2, gbps)) for gbps in (400, 10))
    assert slow.exposed > fast.exposed
    assert slow.backward == fast.backward


def test_offload_and_recomputation_cost_time() -> None:
    plain = step_time(workload(2, checkpointing="none"), cluster(1))
    assert step_time(workload(2), cluster(1)).backward > plain.backward
    assert step_time(workload(2, zero={"offloads_optimizer": True}), cluster(1)).update > 10 * plain.update


def test_products_in_fp8_take_less_time_and_rounding_takes_some() -> None:
    plain, fp8 = (step_time(workload(1, fp8=is_fp8), cluster(1), share=0.5) for is_fp8 in (False, True))
    arch = workload(1).arch
    products = 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008) * 4096  # FLOPs forward: qkv and output, gate, up and down
    rate = 989e12 * 0.5
    assert plain.forward - fp8.forward == pytest.approx(products * (1 - 989 / 1979) / rate)
    again = recomputed_flops_per_token(arch, 4096, "full") * 4096 - 32 * 2 * 4096 * 4096 * 4096
    # A token's inputs of qkv, output, up with gate, and down, and what comes out; each read in bf16 twice.
    factors = 4096 * (4096 + 4096 + 4096 + 11008 + 3 * 4096 + 4096 + 2 * 11008 + 4096) + products // (2 * 32 * 4096)
    rounding = 2 * 3 * 32 * factors / 3350e9
    spared = (2 * products + again) * (1 - 989 / 1979) / rate
    assert plain.backward - fp8.backward == pytest.approx(spared - rounding)


def test_llama_3s_interruptions_are_the_default() -> None:
    assert pytest.approx(54 * 24 * 2048 / 419) == DEFAULT_NODE_MTBF_HOURS
    cost = cost_of(3600.0, devices=16_384, nodes=2048, save_seconds=1.0, interval=600.0)
    assert cost.run_mtbf / 3600 == pytest.approx(54 * 24 / 419)


def test_the_interval_is_youngs_with_dalys_terms() -> None:
    young = math.sqrt(2 * 10 * 40_000)
    assert checkpoint_interval(10, 40_000) == pytest.approx(young, rel=0.02)
    ratio = 10 / 80_000
    assert checkpoint_interval(10, 40_000) == pytest.approx(young * (1 + math.sqrt(ratio) / 3 + ratio / 9) - 10)
    assert checkpoint_interval(30_000, 40_000) == 40_000


def test_cost_counts_device_hours_and_what_faults_take() -> None:
    known = {"devices": 16, "nodes": 2, "save_seconds": 2.0, "node_mtbf_hours": 1000.0}
    cost = cost_of(3600.0 * 100, interval=600.0, price=2.5, **known)
    # A save each 600 s, and each 500 hours half of an interval and the restart.
    assert cost.goodput == pytest.approx(1 - 2 / 602 - (301 + 300) / (500 * 3600), abs=1e-5)
    assert cost.device_hours == pytest.approx(1600 / cost.goodput)
    assert cost.money == pytest.approx(2.5 * cost.device_hours)
    assert cost_of(1.0, devices=1, nodes=1, save_seconds=1.0, interval=9.0).money is None


def test_no_interval_loses_less_than_the_best() -> None:
    known = {"devices": 16, "nodes": 64, "save_seconds": 30.0, "node_mtbf_hours": 200.0}
    best = cost_of(3600.0, interval=1000.0, **known).best_interval
    kept = [cost_of(3600.0, interval=factor * best, **known).goodput for factor in (0.25, 0.8, 1, 1.25, 4)]
    assert max(kept) == kept[2] == cost_of(3600.0, interval=1000.0, **known).best_goodput
    assert kept[0] < kept[1]
    assert kept[4] < kept[3]


def test_a_run_that_dies_more_often_than_it_saves_never_ends() -> None:
    rare = cost_of(3600.0, devices=8, nodes=1000, save_seconds=60.0, interval=3600.0, node_mtbf_hours=10)
    assert rare.goodput == 0
    assert rare.hours == math.inf
    assert 0 < rare.best_goodput < 0.1


def test_on_a_cpu_nothing_of_the_network_is_hidden() -> None:
    for stage in range(4):
        work = workload(stage, device="cpu", accumulation=2)
        time = step_time(work, cluster(1))
        assert time.exposed == pytest.approx(sent_bytes(work) / (450e9 * LINK_SHARE))
        tensors = 7 * 1.5 * 0.9e-3 if stage == 3 else 0.0  # each gathered once more than without recomputing
        assert time.host == pytest.approx(2 * (2e-3 + 32 * (1.3 * 0.7e-3 + tensors)))


def test_a_gpus_host_costs_where_it_is_slower() -> None:
    """Micro-batches of few tokens wait for Python, larger ones do not."""
    few, many = (step_time(workload(1, context=size), cluster(1)) for size in (16, 4096))
    assert few.host == pytest.approx(1e-3 + 32 * 1.3 * 0.4e-3 - few.forward - few.backward)
    assert many.host == 0


def test_what_is_offloaded_travels_in_each_micro_batch() -> None:
    """Of the weights a rank's part, twice; of the gradients, to which those of three more are added on the GPU."""
    away = {"offloads_optimizer": True, "offloads_parameters": True}
    time = step_time(workload(3, context=16, accumulation=4, zero=away), cluster(1))
    moved = 2 * -(-P // 8) * (4 * 2 + 7) / 25e9
    assert time.host == pytest.approx(moved - time.forward - time.backward)
    assert step_time(workload(3, context=16, accumulation=4), cluster(1)).host < time.host


def test_each_adapter_of_a_node_carries_a_ring() -> None:
    assert cluster(2).link == 8 * 50e9
    assert cluster(2, 800).link == 450e9  # then NVLink is slower
    assert Cluster(cpu(1e12, "made"), 2, 8, 1e9).link == 1e9  # gloo has one


def test_zeropp_sends_less_and_holds_a_copy_for_the_node() -> None:
    """Weights in 8 bits, in the backward pass from the node alone; gradients in 4 bits."""
    pp = {"copy_ranks": 8, "quantizes_weights": True, "quantizes_gradients": True}
    work = workload(3, ranks=64, zero=pp)
    forward, backward, reduced = (63 / 64 * P, 7 / 8 * P, 63 / 64 * 0.5 * P)
    assert sent_bytes(work) == pytest.approx(forward + backward + reduced)
    copy = sum(part.bytes for part in standing(work)) - sum(part.bytes for part in standing(workload(3, ranks=64)))
    assert copy == 2 * -(-P // 8)


def test_ranks_that_share_samples_exchange_them_in_each_layer() -> None:
    """Queries, keys, values and the result, 4,096 wide each, in three passes."""
    work = workload(1, sharing=4)
    alone = workload(1)
    more = 3 * 32 * 3 / 4 * 1024 * 4 * 4096 * 2
    assert sent_bytes(work) - sent_bytes(alone) == pytest.approx(more)
    plain = step_time(alone, cluster(1))
    assert step_time(work, cluster(1)).exposed >= more / (450e9 * LINK_SHARE) > plain.exposed * 0


def test_on_a_cpu_gradients_go_through_buckets_at_stages_1_and_2() -> None:
    passes = [step_time(workload(stage, device="cpu"), cluster(1)) for stage in range(4)]
    moved = 2 * (4 * P + 2 * -(-P // 8)) / 3350e9
    assert passes[1].backward - passes[0].backward == pytest.approx(moved)
    assert passes[2].backward == passes[1].backward
    assert passes[3].backward == passes[0].backward
    alone = [step_time(workload(stage, device="cpu", ranks=1), cluster(1)).backward for stage in (0, 1)]
    assert alone[0] == alone[1]


def test_what_selective_checkpointing_computes_again_takes_the_memory() -> None:
    none, selective = (step_time(workload(checkpointing=mode), cluster(1)) for mode in ("none", "selective"))
    kept = [workload(checkpointing=mode).activations.head for mode in ("none", "selective")]
    assert selective.backward - none.backward == pytest.approx(3 * (kept[0] - kept[1]) / 3350e9)
    assert selective.forward == none.forward
