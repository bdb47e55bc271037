"""DeepSpeed's JSON: strict reading, the key table against the installed DeepSpeed, and who wins over the recipe."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.config import deepspeed_file
from scaletrain.config.deepspeed import (
    BatchPlan,
    batch_plan,
    check_keys,
    engine_config,
    load_deepspeed,
    offloads_optimizer,
    offloads_parameters,
    settle,
    zero_stage,
)
from scaletrain.config.schema import Data, Optim, Recipe, Run, Train
from scaletrain.errors import ConfigError

GENERATOR = Path(__file__).with_name("deepspeed_keys.py")


def recipe(train: dict[str, Any] | None = None, optim: dict[str, Any] | None = None) -> Recipe:
    return Recipe(
        run=Run(dir="runs/x"),
        data=Data(path="dataset"),
        deepspeed="my.json",
        train=Train(max_steps=10, **train or {}),
        optim=Optim(**optim or {}),
    )


def refusal(preset: dict[str, Any], mine: Recipe | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        settle(mine or recipe(), preset)
    assert str(caught.value).startswith("my.json: ")
    return str(caught.value)


# --- the file


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": 1,}', "my.json:1: not JSON ("),
        ('{\n// why\n"a": 1}', "my.json:2: not JSON ("),
        ("[1]", "my.json: a DeepSpeed config is a JSON object {...}, this file holds [1]"),
        ('{"fp16": {"enabled": true, "enabled": false}}', "my.json: the key enabled is given twice in one section"),
        ('{"a": 1, "a": 2, "b": 1, "b": 1}', "my.json: 2 problems\n  the key a is given twice"),
    ],
)
def test_the_file_is_read_strictly(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "my.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_deepspeed(path)
    assert line in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: the DeepSpeed config cannot be read \(No such file"):
        load_deepspeed(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ConfigError, match=r"latin\.json: the DeepSpeed config is not UTF-8 text"):
        load_deepspeed(tmp_path / "latin.json")


# --- the keys


@pytest.mark.skipif(
    importlib.metadata.version("deepspeed") != deepspeed_file.key_table()["deepspeed"],
    reason="the table is of another DeepSpeed",
)
def test_the_shipped_table_is_what_the_installed_deepspeed_reads() -> None:
    code = f"import json, runpy; print(json.dumps(runpy.run_path({str(GENERATOR)!r})['build']()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == deepspeed_file.key_table()


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"zero_optimizaton": {"stage": 2}}, "zero_optimizaton is unknown to DeepSpeed 0.19"),
        ({"zero_optimizaton": {"stage": 2}}, "did you mean zero_optimization?"),
        ({"zero_optimization": {"stge": 2}}, "zero_optimization.stge is unknown"),
        ({"zero_optimization": {"stge": 2}}, "did you mean zero_optimization.stage?"),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            "zero_optimization.offload_optimizer.devise is unknown",
        ),
        ({"stage": 2}, "stage belongs to zero_optimization.stage"),
        ({"offload_param": {}}, "offload_param belongs to zero_optimization.offload_param"),
        ({"loss_scale_windw": 2}, "did you mean fp16.loss_scale_window?"),
        ({"qqqqq": 2}, "qqqqq is unknown to DeepSpeed 0.19.8: remove it"),
        ({"elasticity": {"enabled": False}}, "elasticity is gone from DeepSpeed: Elastic training has been removed"),
        ({"zero_optimization": {"mics_shard_size": 4}}, "zero_optimization.mics_shard_size is gone from DeepSpeed"),
        ({"zero_optimization": True}, "zero_optimization=true should be a section: {"),
        ({"aio": {"thread_count": 1}}, "aio.thread_count is unknown"),
    ],
)
def test_an_unknown_key_of_any_level_is_refused(config: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_keys(config, "my.json")
    assert str(caught.value).startswith("my.json: ")
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"zero_optimization": {"overlap_comm": "sometimes"}},
            "zero_optimization.overlap_comm=sometimes should be true",
        ),
        (
            {"zero_optimization": {"overlap_comm": 1}},
            "zero_optimization.overlap_comm=1 should be true or false: mend it",
        ),
        (
            {"zero_optimization": {"sub_group_size": 1.5}},
            "zero_optimization.sub_group_size=1.5 should be a whole number",
        ),
        ({"zero_optimization": {"sub_group_size": float("inf")}}, "sub_group_size=Infinity should be a whole number"),
        ({"zero_optimization": {"sub_group_size": True}}, "sub_group_size=true should be a whole number"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "gpu"}}},
            "device=gpu should be one of none, cpu, nvme",
        ),
        ({"zero_optimization": {"offload_optimizer": {"device": []}}}, "device=[] should be one of none, cpu, nvme"),
        ({"zero_optimization": {"offload_optimizer": {"ratio": "half"}}}, "ratio=half should be a number"),
        ({"zero_optimization": {"offload_optimizer": True}}, "offload_optimizer=true should be a section: {buffer_c"),
        ({"bf16": {"check_grad_overflow": {}}}, "bf16.check_grad_overflow={} should be true or false"),
        ({"fp16": {"loss_scale": "dynamic"}}, "fp16.loss_scale=dynamic should be a number"),
        ({"tensorboard": {"job_name": 5}}, "tensorboard.job_name=5 should be a text"),
        ({"optimizer": {"params": 5}}, "optimizer.params=5 should be a section {...}"),
    ],
)
def test_a_value_of_another_type_is_refused(config: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_keys(config, "my.json")
    assert line in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_numbers_are_taken_as_deepspeed_takes_them() -> None:
    zero = {"reduce_bucket_size": 5e8, "sub_group_size": 10**400, "overlap_comm": "auto", "allgather_bucket_size": None}
    check_keys({"zero_optimization": zero, "fp16": {"loss_scale": 0}}, "my.json")


def test_all_unknown_keys_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"3 problems\n  aa is.*\n  fp16\.bb is.*\n  amp is gone") as caught:
        check_keys({"aa": 1, "fp16": {"bb": 1}, "amp": {}, "bf16": {"enabled": True}}, "my.json")
    assert len(str(caught.value).splitlines()) == 4


def test_what_deepspeeds_documentation_shows_is_known() -> None:
    zero = {
        "stage": 3,
        "stage3_prefetch_bucket_size": "auto",
        "prefetch_bucket_size": 1,
        "stage3_gather_fp16_weights_on_model_save": True,
        "offload_optimizer": {"device": "nvme", "nvme_path": "/x", "buffer_count": 4, "pin_memory": True, "ratio": 0.3},
        "offload_param": {"device": "cpu", "buffer_size": 1e8, "max_in_cpu": 1e9},
        "cpu_offload": False,
        "zero_hpz_partition_size": 8,
        "zenflow": {"topk_ratio": 0.1, "overlap_step": True},
        "leaf_module": {"classes": ["x"]},
    }
    config = {
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "anything": 1}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
        "bfloat16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16, "hysteresis": 2, "auto_cast": False},
        "activation_checkpointing": {"partition_activations": False, "number_checkpoints": None},
        "comms_logger": {"enabled": True, "verbose": False, "prof_ops": ["all_reduce"]},
        "flops_profiler": {"enabled": True, "profile_step": 1, "detailed": True, "output_file": None},
        "aio": {"block_size": 1048576, "queue_depth": 8, "single_submit": False, "overlap_events": True},
        "checkpoint": {"tag_validation": "Warn", "load_universal": False, "parallel_write": {"pipeline_stage": False}},
        "data_types": {"grad_accum_dtype": "fp32"},
        "tensorboard": {"enabled": True, "output_path": "x", "job_name": "y"},
        "wandb": {"enabled": False, "project": "x"},
        "csv_monitor": {"enabled": False},
        "comet": {"enabled": False},
        "autotuning": {"enabled": False, "arg_mappings": {"train_micro_batch_size_per_gpu": "--batch"}},
        "compile": {"deepcompile": False},
        "data_efficiency": {
            "data_sampling": {"curriculum_learning": {"enabled": True, "curriculum_metrics": {"x": {}}}},
            "data_routing": {"random_ltd": {"enabled": True, "total_layer_num": 24}},
        },
        "sequence_parallel_size": 1,
        "tensor_parallel": {"autotp_size": 1, "partition_config": {"layer_specs": []}},
        "timers": {"throughput": {"enabled": True, "synchronized": True}},
        **dict.fromkeys(["train_batch_size", "steps_per_print", "wall_clock_breakdown", "communication_data_type"], 1),
        **dict.fromkeys(["zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "prescale_gradients"], True),
    }
    check_keys(config, "my.json")


# --- the recipe and the file


def test_auto_and_absent_leave_everything_to_the_recipe() -> None:
    mine = recipe({"global_batch_size": 16, "precision": "fp32"}, {"lr": 1e-3})
    preset = {
        **dict.fromkeys(["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"], "auto"),
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "auto", "params": {"lr": "auto", "betas": "auto", "torch_adam": True}},
        "scheduler": {"type": "auto", "params": {"warmup_num_steps": "auto"}},
    }
    assert settle(mine, preset) == mine
    assert settle(mine, {}) == mine


def test_a_concrete_value_is_adopted_where_the_recipe_says_nothing() -> None:
    preset = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "optimizer": {"type": "Adam", "params": {"lr": 1e-5, "betas": [0.8, 0.9], "eps": 1e-7, "weight_decay": 0}},
    }
    settled = settle(recipe({"precision": None}), preset)
    assert (settled.train.global_batch_size, settled.train.micro_batch_size) == (64, 4)
    assert settled.train.precision == "bf16"
    optim = settled.optim
    assert (optim.grad_clip, optim.lr, optim.betas, optim.eps) == (0.5, 1e-5, (0.8, 0.9), 1e-7)
    assert optim.weight_decay == 0
    assert settle(settled, preset) == settled


def test_contradictions_are_told_at_once_with_both_places_and_values() -> None:
    mine = recipe({"global_batch_size": 16, "precision": "fp32"}, {"lr": 1e-3, "betas": (0.9, 0.95), "grad_clip": 1.0})
    preset = {
        "train_batch_size": 32,
        "gradient_clipping": 1,  # equal: fine
        "bf16": {"enabled": True},
        "optimizer": {"params": {"lr": 0.1, "betas": [0.9, 0.999]}},
    }
    first, *lines = refusal(preset, mine).splitlines()
    assert first == "my.json: 4 problems"
    assert "train_batch_size=32 in this file, but train.global_batch_size=16 in the recipe: remove one" in lines[0]
    assert 'write "auto" in this file (the recipe then decides)' in lines[0]
    assert "optimizer.params.lr=0.1 in this file, but optim.lr=0.001 in the recipe" in lines[1]
    assert "optimizer.params.betas=[0.9, 0.999] in this file, but optim.betas=[0.9, 0.95] in the recipe" in lines[2]
    assert "bf16.enabled=true in this file, but train.precision=fp32 in the recipe" in lines[3]


@pytest.mark.parametrize(
    ("preset", "mine", "result"),
    [
        ({"bf16": {"enabled": True}}, None, "bf16"),
        ({"bfloat16": {"enabled": True}}, None, "bf16"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": False}}, None, "fp16"),
        ({"fp16": {"enabled": False}}, None, None),  # left to the device: bf16 or fp32
        ({"bf16": {"enabled": False}}, None, "fp32"),
        ({"bf16": {"enabled": False}}, "fp16", "fp16"),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": False}}, "fp32", "fp32"),
        ({"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}, "bf16", "bf16"),
    ],
)
def test_the_precision_follows_both(preset: dict[str, Any], mine: str | None, result: str | None) -> None:
    assert settle(recipe({"precision": mine}), preset).train.precision == result


@pytest.mark.parametrize(
    ("preset", "mine", "line"),
    [
        ({"fp16": {"enabled": False}}, "fp16", "fp16.enabled=false in this file, but train.precision=fp16"),
        ({"bf16": {"enabled": False}}, "bf16", "bf16.enabled=false in this file, but train.precision=bf16"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, None, "bf16 and fp16 are given together: keep one"),
        ({"bf16": {"enabled": True}, "bfloat16": {"enabled": False}}, None, "are given together: keep one"),
        ({"bfloat16": {"enabled": False}, "bf16": {"enabled": False}}, None, "bf16 and bfloat16 are given together"),
        ({"bf16": {"enabled": "yes"}}, None, 'bf16.enabled=yes should be true, false or "auto"'),
    ],
)
def test_a_contradicting_precision_is_refused(preset: dict[str, Any], mine: str | None, line: str) -> None:
    assert line in refusal(preset, recipe({"precision": mine}))


@pytest.mark.parametrize(
    ("preset", "line"),
    [
        (
            {"optimizer": {"type": "Lamb"}},
            "optimizer.type=Lamb is not followed: optim.name and its section decide the optimizer",
        ),
        ({"optimizer": {"params": {"momentum": 0.9}}}, "optimizer.params.momentum=0.9 is not followed: optim.name and"),
        ({"optimizer": {"params": {"adam_w_mode": False}}}, "optimizer.params.adam_w_mode=false is not followed"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler=WarmupLR is not followed: optim.schedule and optim.warmup_st"),
        ({"scheduler": {"params": {"warmup_num_steps": 5}}}, "scheduler={"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled=true is not followed: train.precision decides"),
        ({"data_efficiency": {"enabled": True}}, "data_efficiency.enabled=true is not followed: the data section"),
        ({"compile": {"deepcompile": True}}, "compile.deepcompile=true is not followed: train.compile decides; remove"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op=sum is not followed"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size=2 is not followed: every rank is a data-parallel rank"),
        (
            {"activation_checkpointing": {"cpu_checkpointing": True}},
            "activation_checkpointing.cpu_checkpointing=true is not followed: train.activation_checkpointing decides",
        ),
        (
            {"train_batch_size": 0},
            "train.global_batch_size=0 should be at least 1 (from train_batch_size=0 in this file)",
        ),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage=4 is not a ZeRO stage"),
        ({"zero_optimization": {"stage": [2]}}, "zero_optimization.stage=[2] is not a ZeRO stage"),
        ({"zero_optimization": {"stage": "2"}}, "zero_optimization.stage=2 is not a ZeRO stage"),
        ({"zero_optimization": {"stage": 2.0}}, "zero_optimization.stage=2.0 is not a ZeRO stage"),
        (
            {"zero_optimization": {"stage": 1, "compute_grad_norm": False}},
            "zero_optimization.compute_grad_norm=false is not followed: each step's gradient norm is logged",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            "zero_optimization.offload_optimizer.device=nvme is not followed: its files would go into a checkpoint",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            'unverified; write "cpu"',
        ),
        (
            {"zero_optimization": {"stage": 2, "cpu_offload": True}},
            'zero_optimization.cpu_offload=true is an old key: write offload_optimizer: {"device": "cpu"}, or remove',
        ),
        (
            {"zero_optimization": {"stage": 3, "cpu_offload_param": False}},
            'zero_optimization.cpu_offload_param=false is an old key: write offload_param: {"device": "cpu"}',
        ),
        (
            {"zero_optimization": {"stage": 3, "stage3_gather_fp16_weights_on_model_save": True}},
            "is an old key: write stage3_gather_16bit_weights_on_model_save, or remove it",
        ),
        (
            {"checkpoint": {"load_universal": True}},
            "is not followed: a resume takes any ranks, ZeRO stage and precision by itself",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer has no effect at stage 0: set zero_optimization.stage to 1, 2 or 3",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param has no effect at stage 2: set zero_optimization.stage to 3",
        ),
    ],
)
def test_what_the_trainer_would_not_follow_is_refused(preset: dict[str, Any], line: str) -> None:
    check_keys(preset, "my.json")
    assert line in refusal(preset)


def test_an_optimizer_type_that_is_not_the_recipes_is_refused() -> None:
    adamw, muon = recipe(), recipe(optim={"name": "muon"})
    line = "optimizer.type=Muon in this file, but optim.name=adamw in the recipe: remove the first or change one"
    assert line in refusal({"optimizer": {"type": "Muon"}}, adamw)
    assert "optimizer.type=AdamW in this file, but optim.name=muon" in refusal({"optimizer": {"type": "AdamW"}}, muon)
    assert settle(muon, {"optimizer": {"type": "Muon", "params": {"lr": 0.5}}}).optim.lr == 0.5


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_muon_and_8_bits_are_not_offloaded(stage: int) -> None:
    offloaded = {"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}}}
    line = "optim.name=muon with zero_optimization.offload_optimizer is not done: the CPU would make the updates orth"
    assert line in refusal(offloaded, recipe(optim={"name": "muon"}))
    line = "optim.name=adamw_8bit with zero_optimization.offload_optimizer is not done: DeepSpeed's Adam for CPUs has"
    assert line in refusal(offloaded, recipe(optim={"name": "adamw_8bit"}))
    assert settle(recipe(), offloaded) == recipe()


# --- what DeepSpeed gets


@given(ranks=st.integers(1, 64), accumulation=st.integers(1, 16), micro=st.integers(1, 32), says_micro=st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_batch_plan_multiplies_to_the_global_batch(
    ranks: int, accumulation: int, micro: int, says_micro: bool
) -> None:
    size = ranks * accumulation * micro
    plan = batch_plan(recipe({"global_batch_size": size, "micro_batch_size": micro if says_micro else None}), ranks)
    assert plan == BatchPlan(size, micro, accumulation) if says_micro else BatchPlan(size, micro * accumulation, 1)
    assert plan.micro_batch * plan.accumulation * ranks == plan.global_batch


def test_ranks_that_share_samples_read_as_one() -> None:
    shared = recipe({"global_batch_size": 8, "micro_batch_size": 2, "sequence_parallel": 2})
    assert batch_plan(shared, 4) == BatchPlan(8, 2, 2)
    config = engine_config(shared, {}, ranks=4, precision="fp32")
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [config[name] for name in sizes] == [16, 2, 2], "DeepSpeed's own rule: the product with the 4 ranks"


@pytest.mark.parametrize(
    ("train", "ranks", "line"),
    [
        (
            {"global_batch_size": 16, "micro_batch_size": 5},
            2,
            "train.global_batch_size=16 is not a multiple of 10 = train.micro_batch_size 5 x 2 ranks: use 10 or 20, or",
        ),
        (
            {"global_batch_size": 10},
            4,
            "train.global_batch_size=10 is not a multiple of 4 ranks: use 8 or 12, or another",
        ),
        (
            {"global_batch_size": 2},
            4,
            "train.global_batch_size=2 is not a multiple of 4 ranks: use 4, or another number",
        ),
        (
            {"global_batch_size": 8, "sequence_parallel": 3},
            4,
            "train.sequence_parallel=3 does not divide the number of ranks, 4: so many share each sample; start a",
        ),
        (
            {"global_batch_size": 5, "sequence_parallel": 2},
            4,
            "train.global_batch_size=5 is not a multiple of 2 groups of 2 ranks: use 4 or 6, or another",
        ),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(train: dict[str, Any], ranks: int, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        batch_plan(recipe(train), ranks)
    assert line in str(caught.value)


def test_the_engine_config_is_complete_and_holds_no_auto() -> None:
    preset = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "offload_optimizer": {"device": "auto"}},
        "fp16": {"enabled": "auto", "initial_scale_power": 12},
        "bfloat16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
        "scheduler": {"type": "auto"},
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "communication_data_type": None,
    }
    before = json.dumps(preset)
    config = engine_config(
        recipe({"global_batch_size": 24, "micro_batch_size": 3}, {"grad_clip": 0.7}), preset, ranks=4, precision="fp16"
    )
    assert config == {
        "zero_optimization": {"stage": 2},
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.7,
        "bf16": {"enabled": False},
        "fp16": {"enabled": True, "initial_scale_power": 12},
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},
    }
    assert json.dumps(preset) == before


def test_keys_of_the_preset_that_the_trainer_follows_are_kept() -> None:
    preset = {
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}},
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "wall_clock_breakdown": True,
        "steps_per_print": 7,
        "gradient_accumulation_steps": 2,
        "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]},
    }
    config = engine_config(recipe({"micro_batch_size": 4}), preset, ranks=1, precision="bf16")
    for key in ("zero_optimization", "bf16", "wall_clock_breakdown", "steps_per_print", "comms_logger"):
        assert config[key] == preset[key]
    assert engine_config(recipe({"micro_batch_size": 4}), preset, ranks=1, precision="fp32")["bf16"] == {
        "enabled": False
    }


def test_an_accumulation_that_the_batch_sizes_contradict_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        engine_config(recipe(), {"gradient_accumulation_steps": 4}, ranks=2, precision="fp32")
    assert str(caught.value).startswith(
        "my.json: gradient_accumulation_steps=4, but train.global_batch_size 8 / (train.micro_batch_size 4 x 2 ranks) ="
    )


def test_the_stage_and_the_offload_are_read_in_every_spelling() -> None:
    assert [zero_stage({"zero_optimization": {"stage": stage}}) for stage in (0, 1, 2, 3, "auto")] == [0, 1, 2, 3, 0]
    assert zero_stage({}) == 0
    with pytest.raises(
        ConfigError, match=r"zero_optimization\.stage=true is not a ZeRO stage: what is split is 0 \(no"
    ):
        zero_stage({"zero_optimization": {"stage": True}})
    assert offloads_optimizer({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})
    assert not offloads_optimizer({"zero_optimization": {"offload_optimizer": {"device": "none"}}})
    assert not offloads_optimizer({"zero_optimization": {"offload_optimizer": None}})
    assert offloads_parameters({"zero_optimization": {"offload_param": {"device": "cpu"}}})
    assert not offloads_parameters({})
