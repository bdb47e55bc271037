"""Bytes sent, seconds, money: hand-computed."""

import math

import pytest

from scaletrain.config.hardware import hardware
from scaletrain.model.count import flops_per_token, recomputed_flops_per_token
from scaletrain.planner.communication import gradient_bytes, sent_bytes, weight_bytes
from scaletrain.planner.cost import DEFAULT_NODE_MTBF_HOURS, checkpoint_interval, cost_of
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
    cost = cost_of(3600.0, devices=16_384, nodes=2048, save_seconds=1.0)
    assert cost.run_mtbf / 3600 == pytest.approx(54 * 24 / 419)


def test_the_interval_is_youngs_with_dalys_terms() -> None:
    young = math.sqrt(2 * 10 * 40_000)
    assert checkpoint_interval(10, 40_000) == pytest.approx(young, rel=0.02)
    ratio = 10 / 80_000
    assert checkpoint_interval(10, 40_000) == pytest.approx(young * (1 + math.sqrt(ratio) / 3 + ratio / 9) - 10)
    assert checkpoint_interval(30_000, 40_000) == 40_000


def test_cost_counts_device_hours_and_what_faults_take() -> None:
    cost = cost_of(3600.0 * 100, devices=16, nodes=2, save_seconds=2.0, node_mtbf_hours=1000, price=2.5)
    assert 0.9 < cost.goodput < 1
    assert cost.device_hours == pytest.approx(1600 / cost.goodput)
    assert cost.money == pytest.approx(2.5 * cost.device_hours)
    assert cost_of(1.0, devices=1, nodes=1, save_seconds=1.0).money is None


def test_a_cluster_that_dies_more_often_than_it_saves_never_ends() -> None:
    cost = cost_of(3600.0, devices=8, nodes=1000, save_seconds=600.0, node_mtbf_hours=10)
    assert cost.goodput == 0
    assert cost.hours == math.inf


def test_on_a_cpu_nothing_of_the_network_is_hidden() -> None:
    for stage in range(4):
        work = workload(stage, device="cpu")
        time = step_time(work, cluster(1))
        handling = 32 * 7 * 1.5 * 0.9e-3 if stage == 3 else 0.0  # a tensor, gathered once more than without recomputing
        assert time.exposed == pytest.approx(sent_bytes(work) / (450e9 * LINK_SHARE) + handling)


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
