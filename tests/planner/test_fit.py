"""What fits, what makes it fit, and what a search finds."""

from dataclasses import replace
from itertools import pairwise

import pytest

from scaletrain.config.hardware import hardware
from scaletrain.planner.fit import (
    FRAGMENTATION,
    GPU_RESERVE,
    HOST_RESERVE,
    PROCESS_BYTES,
    Room,
    Variant,
    micro_batches,
    remedy,
)
from scaletrain.planner.memory import memory_of
from scaletrain.planner.plan import Plan
from scaletrain.planner.search import MODES, Found, ordered, search
from scaletrain.planner.time import Cluster, StepTime
from scaletrain.planner.workload import Workload
from scaletrain.planner.zero import Zero
from tests.planner.made import workload

BUCKET = 50_000_000
PRESETS = {
    "zero1.json": Zero(1, overlaps=True, reduce_bucket=BUCKET),
    "zero3.json": Zero(3, overlaps=True, reduce_bucket=BUCKET),
    "zero3-offload.json": Zero(3, True, True, overlaps=True, reduce_bucket=BUCKET),
}


def test_margins_are_part_of_what_is_needed() -> None:
    memory = memory_of(workload(1))
    assert Room(0).need(memory) == GPU_RESERVE + int(memory.peak_bytes * (1 + FRAGMENTATION))
    assert Room(0, is_cpu=True).need(memory) == PROCESS_BYTES + int(memory.peak_bytes * 1.05)
    need = Room(0).need(memory)
    assert Room(need).holds(memory)
    assert not Room(need - 1).holds(memory)
    assert Room(need + 7).spare(memory) == 7


@pytest.mark.parametrize(
    ("room_gb", "stage", "mode", "micro", "expected"),
    [
        (80, 1, "none", 4, ("train.micro_batch_size=2",)),
        (45, 1, "none", 1, ("train.activation_checkpointing=selective",)),
        (24, 1, "full", 1, ("deepspeed=zero3.json",)),
        (12, 1, "full", 1, ("deepspeed=zero3-offload.json",)),
        (24, 1, "none", 2, ("train.activation_checkpointing=full", "deepspeed=zero3.json")),
        (1, 1, "none", 4, None),
    ],
)
def test_the_first_change_that_makes_it_fit(
    room_gb: float, stage: int, mode: str, micro: int, expected: tuple[str, ...] | None
) -> None:
    work, room = workload(stage, checkpointing=mode, micro_batch=micro), Room(int(room_gb * 1e9))
    assert not room.holds(memory_of(work))
    found = remedy(work, room, PRESETS)
    assert (None if found is None else found.overrides) == expected
    if found is not None:
        assert room.holds(memory_of(found.work))
        assert found.work.micro_batch * found.work.accumulation == micro


def test_host_memory_is_judged_where_it_is_known() -> None:
    """Without the copy for saving a node holds less; a file that offloads less holds less still."""
    work = workload(3, copies_state=True, zero={"offloads_optimizer": True})
    memory = memory_of(work)
    need = memory.host_peak.host + HOST_RESERVE
    assert Room(10**12).host_spare(memory) == 0
    assert Room(10**12, host=need).holds(memory)
    assert not Room(10**12, host=need - 1).holds(memory)
    without = remedy(work, Room(10**12, host=need - 1), PRESETS)
    assert without is not None and without.overrides == ("checkpoint.background=false",)
    less = remedy(without.work, Room(80 * 10**9, host=HOST_RESERVE + 10**9), PRESETS)
    assert less is not None and less.overrides == ("deepspeed=zero3.json",)
    wide = planned(work, Room(10**12, host=need - 1), Cluster(hardware("h100"), 1, 8, 50e9))
    assert not wide.fits
    assert "zero3-offload.json" not in {one.variant.overrides[0].partition("=")[2] for one in search(wide, PRESETS)}


def test_what_a_run_would_refuse_is_not_proposed() -> None:
    """FP8 at ZeRO 3 where blocks are kept."""
    wide = planned(workload(1, fp8=True), Room(10**12), Cluster(hardware("h100"), 1, 8, 50e9))
    found = [one.variant.work for one in search(wide, PRESETS)]
    assert {work.checkpointing for work in found if work.zero.stage == 3} == {"full", "offload"}
    assert {work.checkpointing for work in found if work.zero.stage == 1} == set(MODES)
    change = remedy(workload(1, fp8=True, checkpointing="none"), Room(24 * 10**9), PRESETS)
    assert change is not None and change.work.zero.stage == 3 and change.work.checkpointing == "full"


def planned(work: Workload, room: Room, cluster: Cluster) -> Plan:
    return Plan(work, cluster, room, steps=10, keep_last=2)


def test_micro_batches_divide_what_a_rank_reads() -> None:
    assert micro_batches(workload(micro_batch=2, accumulation=6)) == [4, 2, 1]
    assert micro_batches(workload(micro_batch=3, accumulation=2)) == [3, 2, 1]


def test_a_search_keeps_to_the_memory_and_gives_the_fastest_first() -> None:
    work = workload(micro_batch=1, accumulation=8)
    cluster = Cluster(hardware("a100-40"), 1, 8, 25e9)
    room = Room(hardware("a100-40").memory)
    found = search(planned(work, room, cluster), PRESETS)
    assert found
    assert all(room.holds(one.memory) for one in found)
    rates = [one.time.tokens_per_second for one in found]
    assert all(after <= 1.0101 * before for before, after in pairwise(rates))
    assert all(one.variant.work.micro_batch * one.variant.work.accumulation == 8 for one in found)
    larger = search(planned(work, Room(10**12), cluster), PRESETS)
    assert len(larger) == 3 * len(MODES) * 4 > len(found)
    assert search(planned(work, Room(10**9), cluster), PRESETS) == []


def test_of_equally_fast_ways_the_plainest_is_first() -> None:
    plain, away = {"checkpointing": "none", "micro_batch": 4}, {"offloads_optimizer": True}
    ways = [
        workload(0, **plain),
        workload(0, checkpointing="none", accumulation=4),
        workload(0, micro_batch=4, checkpointing="selective"),
        workload(1, **plain),
        workload(1, **plain, zero=away),
    ]
    seconds = [1.009, 1.0, 1.004, 1.001, 1.002]  # all within a percent of the fastest
    slower = workload(0, **plain)
    tried = [(work, StepTime(time, 0, 0, 0, 1)) for work, time in zip([*ways, slower], [*seconds, 1.02], strict=True)]
    found = [Found(Variant(work, ()), memory_of(work), time) for work, time in tried]
    assert ordered(reversed(found), 10**15) == found
    sizes = sorted(one.memory.peak_bytes for one in found[:5])
    roomy = ordered(found, sizes[0])
    assert roomy[0].memory.peak_bytes == sizes[0]
    assert roomy[5] == found[5], "room counts for less than speed"


def test_a_search_is_of_what_the_recipe_reads_in_a_step() -> None:
    work = replace(workload(), micro_batch=2, accumulation=2)
    found = search(planned(work, Room(10**12), Cluster(hardware("h100"), 1, 8, 50e9)), PRESETS)
    assert {one.time.tokens for one in found} == {8 * 4 * 4096}
