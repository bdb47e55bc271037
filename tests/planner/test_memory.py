"""Planned memory: hand-computed cases of each stage, and rules that any plan keeps."""

from dataclasses import replace

import pytest

from scaletrain.planner.memory import Memory, Moment, Part, memory_of, standing
from scaletrain.planner.resident import FURTHER_LIBRARIES, LATE_LIBRARIES
from scaletrain.planner.workload import Workload
from scaletrain.planner.zero import Zero, read_zero
from tests.planner.made import SEVEN, workload

P = 6_738_415_616  # Llama 7B, Touvron et al. 2023
EIGHTH = -(-P // 8)
BUCKET = 50_000_000


def state(work: Workload) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by part, of the device and of the host."""
    parts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for part in standing(work):
        place = parts[part.is_host]
        place[part.name] = place.get(part.name, 0) + part.bytes
    return parts


def moment(memory: Memory, name: str) -> Moment:
    return next(one for one in memory.moments if one.name == name)


def test_the_example_has_as_many_parameters_as_the_paper_says() -> None:
    assert workload().parameters == P


@pytest.mark.parametrize(
    ("stage", "precision", "expected"),
    [
        (0, "bf16", {"weights": 2 * P, "float32 masters": 4 * P, "optimizer moments": 8 * P}),
        (0, "fp32", {"weights": 4 * P, "optimizer moments": 8 * P}),
        (1, "bf16", {"weights": 2 * P, "float32 masters": 4 * EIGHTH, "optimizer moments": 8 * EIGHTH}),
        (2, "bf16", {"weights": 2 * P, "float32 masters": 4 * EIGHTH, "optimizer moments": 8 * EIGHTH}),
        # In float32 stages 1 to 3 keep a copy of their part all the same.
        (1, "fp32", {"weights": 4 * P, "float32 masters": 4 * EIGHTH, "optimizer moments": 8 * EIGHTH}),
        (
            3,
            "bf16",
            {
                "weights": 2 * EIGHTH,
                "float32 masters": 4 * EIGHTH,
                "optimizer moments": 8 * EIGHTH,
                "gradients of its part": 2 * EIGHTH,
                "communication buckets": 2 * BUCKET,
            },
        ),
        (
            3,
            "fp32",
            {
                "weights": 4 * EIGHTH,
                "float32 masters": 4 * EIGHTH,
                "optimizer moments": 8 * EIGHTH,
                "gradients of its part": 4 * EIGHTH,
                "communication buckets": 4 * BUCKET,
            },
        ),
    ],
)
def test_state_of_a_rank_by_hand(stage: int, precision: str, expected: dict[str, int]) -> None:
    assert state(workload(stage, precision=precision)) == (expected, {})


def test_offload_moves_the_optimizer_and_the_weights_to_the_host() -> None:
    vocabulary = 2 * 32000 * 4096
    device, host = state(workload(2, zero={"offloads_optimizer": True}))
    assert device == {"weights": 2 * P, "a gradient on its way": vocabulary}
    assert host == {
        "float32 masters": 4 * EIGHTH,
        "optimizer moments": 8 * EIGHTH,
        "float32 gradients": 4 * EIGHTH,
        "weights on their way": 2 * EIGHTH,
        "a gradient on its way": vocabulary,
    }
    device, host = state(workload(3, zero={"offloads_optimizer": True, "offloads_parameters": True}))
    assert device == {"communication buckets": 2 * BUCKET}
    assert host["weights"] == 2 * EIGHTH


def test_pinned_memory_comes_in_powers_of_two() -> None:
    _, host = state(workload(1, zero={"offloads_optimizer": True, "pins": True}))
    assert host["float32 masters"] == 1 << 32 > 4 * EIGHTH
    copy = moment(memory_of(workload(1, copies_state=True)), "save").host
    assert copy == 1 << 34 > 12 * EIGHTH
    assert moment(memory_of(workload(1, copies_state=True, device="cpu")), "save").host == 12 * EIGHTH


def test_an_update_needs_its_gradients_in_float32() -> None:
    tied = 32000 * 4096  # the embedding is a group of its own, with the norms
    group = -(-(P - tied - (2 * 32 + 1) * 4096) // 8)
    update = moment(memory_of(workload(1)), "update")
    held = 2 * P + 12 * EIGHTH
    assert update.device == held + 2 * EIGHTH + (2 + 4) * group


def test_buckets_count_whole_on_a_gpu_and_as_they_fill_on_a_cpu() -> None:
    def buckets(stage: int, device: str, name: str) -> int:
        parts = moment(memory_of(workload(stage, device=device)), name).parts
        return sum(part.bytes for part in parts if part.name == "communication buckets")

    last = "backward pass of block 31"
    assert buckets(0, "cuda", last) == 0
    assert buckets(1, "cpu", "loss") == buckets(1, "cuda", "loss") == 0
    assert buckets(3, "cuda", "loss") == 2 * BUCKET  # it stays
    # The head alone is larger than two buckets; what is summed over the ranks is joined in one tensor.
    assert buckets(1, "cuda", last) == 2 * 2 * BUCKET + 2 * BUCKET
    small = replace(SEVEN, num_layers=1, vocab_size=1024, hidden_size=256, ffn_hidden_size=512)
    filled = moment(memory_of(workload(1, device="cpu", arch=small)), "backward pass of block 0")
    head, block = 1024 * 256, 256 * 256 * 4 + 3 * 256 * 512 + 2 * 256
    assert Part("communication buckets", 2 * (head + block)) in filled.parts


def test_stage_3_gathers_up_to_its_limit_and_nothing_on_one_rank() -> None:
    def gathered(**more: object) -> int:
        parts = moment(memory_of(workload(3, **more)), "loss").parts
        return sum(part.bytes for part in parts if part.name == "gathered weights")

    once = 32000 * 4096  # one matrix is larger than what is gathered at once
    assert gathered() == 2 * (10**9 + once)
    assert gathered(zero={"max_live": 3 * 10**9}) == 2 * (3 * 10**9 + once)
    assert gathered(ranks=1) == 0


def test_accumulated_gradients_are_whole_at_stages_0_and_1_and_split_at_stage_2() -> None:
    def more(stage: int) -> int:
        one, many = (moment(memory_of(workload(stage, accumulation=n)), "loss").device for n in (1, 4))
        return many - one

    assert [more(stage) for stage in range(4)] == [2 * P, 2 * P, 2 * EIGHTH, 0]


def test_each_rank_builds_the_model_in_host_memory_below_stage_3() -> None:
    assert [moment(memory_of(workload(stage)), "start").host for stage in range(4)] == [4 * P, 4 * P, 4 * P, 0]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("offload", [False, True])
def test_more_ranks_never_need_more_memory_a_rank(stage: int, device: str, offload: bool) -> None:
    work = [workload(stage, ranks=n, device=device, zero={"offloads_optimizer": offload}) for n in (2, 3, 8, 64, 512)]
    peaks = [memory_of(one).peak_bytes for one in work]
    assert peaks == sorted(peaks, reverse=True)
    assert offload or peaks[0] > peaks[-1]


def test_each_stage_needs_no_more_than_the_one_before() -> None:
    peaks = [memory_of(workload(stage)).peak_bytes for stage in range(4)]
    assert peaks == sorted(peaks, reverse=True)


def test_more_checkpointing_and_smaller_batches_need_less() -> None:
    def peak(mode: str, micro: int) -> int:
        return memory_of(workload(2, checkpointing=mode, micro_batch=micro)).peak_bytes

    assert peak("none", 16) > peak("selective", 16) > peak("full", 16) > peak("full", 8)


def test_zero_is_read_with_deepspeeds_defaults() -> None:
    assert read_zero({"zero_optimization": {"stage": 3}}) == Zero(3, overlaps=True)
    assert read_zero({"zero_optimization": {"stage": 2}}) == Zero(2)
    assert read_zero({}) == Zero(0)
    said = {
        "stage": 2,
        "reduce_bucket_size": 7,
        "overlap_comm": True,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "use_multi_rank_bucket_allreduce": False,
    }
    assert read_zero({"zero_optimization": said}) == Zero(
        2, True, pins=True, overlaps=True, reduce_bucket=7, reduces_by_all_reduce=False
    )


def test_on_a_cpu_device_and_host_are_one() -> None:
    memory = memory_of(workload(1, device="cpu", copies_state=True, arch=SEVEN))
    assert memory.is_one
    assert memory.peak_bytes == max(one.whole for one in memory.moments)


def test_a_process_on_a_cpu_holds_freed_memory_and_libraries_too() -> None:
    for precision, more in (("bf16", 96 << 20), ("fp32", 0)):  # float32 gradients are in a block of their own
        memory = memory_of(workload(1, device="cpu", precision=precision))
        update = {part.name: part.bytes for part in moment(memory, "update").parts}
        assert update["libraries that load late"] == LATE_LIBRARIES
        most = max(part.bytes for one in memory.moments for part in one.parts if part.name == "activations")
        assert update["freed, kept by the C library"] == most + more
    assert not any("C library" in part.name for one in memory_of(workload(1)).moments for part in one.parts)


def test_libraries_that_a_recipe_needs_are_in_its_process() -> None:
    plain, more = (memory_of(workload(1, device="cpu", libraries=names)) for names in ((), ("datasets", "mlflow")))
    assert more.peak_bytes - plain.peak_bytes == FURTHER_LIBRARIES["datasets"] + FURTHER_LIBRARIES["mlflow"]
    assert memory_of(workload(1, libraries=("datasets",))) == memory_of(workload(1))


def test_muons_matrices_have_one_moment() -> None:
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    adam, muon = (state(workload(0, optimizer=name))[0]["optimizer moments"] for name in ("adamw", "muon"))
    assert adam - muon == 4 * matrices
    assert state(workload(1, optimizer="muon"))[0]["optimizer moments"] == pytest.approx(muon / 8, rel=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_moments_in_8_bits_take_a_quarter_and_are_read_in_float32(stage: int) -> None:
    adam, eight = (memory_of(workload(stage, optimizer=name)) for name in ("adamw", "adamw_8bit"))
    held = {part.name: part.bytes for part in moment(eight, "load").parts}
    whole = {part.name: part.bytes for part in moment(adam, "load").parts}["optimizer moments"]
    assert held["optimizer moments"] == pytest.approx(whole * (2 + 1 / 32) / 8, rel=1e-6)
    assert held["moments as they are read"] == pytest.approx(whole, rel=1e-6)
    assert eight.peak_bytes < adam.peak_bytes


def test_inputs_of_blocks_may_wait_in_host_memory() -> None:
    full, offload = (moment(memory_of(workload(checkpointing=mode)), "loss") for mode in ("full", "offload"))
    inputs = 31 * 4096 * 4096 * 2  # of all blocks but the last: tokens x width x 2 bytes, a power of two
    assert offload.host == full.host + inputs
    assert offload.device == full.device - inputs
