"""DeepSpeed's JSON: read strictly, settled with the recipe, completed for a number of ranks. No DeepSpeed import."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from scaletrain.config.deepspeed_file import check_keys, load_deepspeed
from scaletrain.config.problems import raise_problems, shown, value_problems
from scaletrain.config.schema import BaseRecipe, Precision
from scaletrain.errors import ConfigError

__all__ = [
    "BatchPlan",
    "batch_plan",
    "check_keys",
    "engine_config",
    "load_deepspeed",
    "offloads_optimizer",
    "offloads_parameters",
    "settle",
    "zero_stage",
]

R = TypeVar("R", bound=BaseRecipe)

# What both files can say: DeepSpeed's key and the recipe's.
SHARED = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_clipping": "optim.grad_clip",
    "optimizer.params.lr": "optim.lr",
    "optimizer.params.betas": "optim.betas",
    "optimizer.params.eps": "optim.eps",
    "optimizer.params.weight_decay": "optim.weight_decay",
}
_OPTIMIZER = "optim.name and its section decide the optimizer"
# Keys of DeepSpeed that this trainer would not follow: the values that do no harm, and who decides.
DECIDED_ELSEWHERE: dict[str, tuple[tuple[Any, ...], str]] = {
    "optimizer.type": (("adam", "Adam", "adamw", "AdamW", "muon", "Muon"), _OPTIMIZER),  # see _optimizer_problems
    "optimizer.legacy_fusion": ((False,), _OPTIMIZER),
    "optimizer.params.torch_adam": ((True, False), ""),
    "optimizer.params.adam_w_mode": ((True,), _OPTIMIZER),
    "optimizer.params.bias_correction": ((True,), _OPTIMIZER),
    "torch_autocast.enabled": ((False,), "train.precision decides"),
    "activation_checkpointing.partition_activations": ((False,), "train.activation_checkpointing decides"),
    "activation_checkpointing.cpu_checkpointing": ((False,), "train.activation_checkpointing decides"),
    "activation_checkpointing.contiguous_memory_optimization": ((False,), "train.activation_checkpointing decides"),
    "gradient_allreduce_op": (("mean",), "the loss is already divided by the tokens of all ranks"),
    "managed_gradient_accumulation": ((True,), "the recipe's batch sizes decide"),
    "data_efficiency.enabled": ((False,), "the data section of the recipe decides the order of samples"),
    "dataloader_drop_last": ((False,), "every step has train.global_batch_size samples"),
    "checkpoint.load_universal": ((False,), "a resume takes any ranks, ZeRO stage and precision by itself"),
    "zero_optimization.compute_grad_norm": ((True,), "each step's gradient norm is logged and its overflow guarded"),
    "sequence_parallel_size": ((1,), "every rank is a data-parallel rank"),
    "tensor_parallel.autotp_size": ((0, 1), "every rank is a data-parallel rank"),
    "data_parallel_size": ((), "the number of ranks decides"),
    "pipeline.stages": ((1,), "every rank is a data-parallel rank"),
    "expert_parallel.enabled": ((False,), "the models are dense"),
    "hybrid_engine.enabled": ((False,), "this is training"),
    "autotuning.enabled": ((False,), "one recipe is one run"),
    "compile.deepcompile": ((False,), "train.compile decides"),
}
# Old keys that DeepSpeed puts in place of others when it reads the file, and those others.
_OLD_KEYS = {
    "cpu_offload": 'offload_optimizer: {"device": "cpu"}',
    "cpu_offload_param": 'offload_param: {"device": "cpu"}',
    "cpu_offload_use_pin_memory": "pin_memory in offload_optimizer or offload_param",
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
}
_STAGES = {0: "none", 1: "optimizer states", 2: "and gradients", 3: "and parameters"}


@dataclass(frozen=True)
class BatchPlan:
    """Samples an optimizer step, samples a forward pass on one rank, forward passes a step on one rank."""

    global_batch: int
    micro_batch: int
    accumulation: int


def batch_plan(recipe: BaseRecipe, ranks: int) -> BatchPlan:
    """How `train.global_batch_size` is split over `ranks`, of which train.sequence_parallel share each sample;
    ConfigError if it does not divide."""
    size, micro, sharing = recipe.train.global_batch_size, recipe.train.micro_batch_size, recipe.train.sequence_parallel
    if ranks % sharing:
        raise ConfigError(
            f"train.sequence_parallel={sharing} does not divide the number of ranks, {ranks}: so many share each "
            "sample; start a multiple of it, or set another value"
        )
    ranks, name = ranks // sharing, _readers(ranks, sharing)
    unit = ranks if micro is None else micro * ranks
    if size % unit:
        low = size // unit * unit
        rule = name if micro is None else f"{unit} = train.micro_batch_size {micro} x {name}"
        near = f"{low} or {low + unit}" if low else f"{unit}"
        other = "" if micro is None else "another train.micro_batch_size or "
        raise ConfigError(
            f"train.global_batch_size={size} is not a multiple of {rule}: use {near}, or {other}another number of ranks"
        )
    micro = size // ranks if micro is None else micro
    return BatchPlan(size, micro, size // (micro * ranks))


def _readers(ranks: int, sharing: int) -> str:
    """Those that read samples of their own, in words."""
    return f"{ranks} ranks" if sharing == 1 else f"{ranks // sharing} groups of {sharing} ranks"


LARGEST_BUCKET = 50_000_000  # elements, a tenth of DeepSpeed's default: 100 MB in bf16, which keeps a fast network busy


def bucket_elements(trained: int) -> int:
    """Elements of a gradient bucket where the DeepSpeed file leaves it open; `trained`: parameters."""
    return max(1, min(LARGEST_BUCKET, trained))


def zero_stage(preset: dict[str, Any]) -> int:
    """ZeRO stage of `preset`, 0 to 3; 0 where it does not say, as in DeepSpeed."""
    stage = _at(preset, "zero_optimization.stage")
    if stage is None:
        return 0
    if isinstance(stage, bool) or not isinstance(stage, int) or stage not in _STAGES:
        meaning = ", ".join(f"{number} ({what})" for number, what in _STAGES.items())
        raise ConfigError(f"zero_optimization.stage={shown(stage)} is not a ZeRO stage: what is split is {meaning}")
    return stage


def offloads_optimizer(preset: dict[str, Any]) -> bool:
    """Whether optimizer states live in CPU memory, so that the optimizer has to be a CPU one."""
    return _offloads(preset, "offload_optimizer")


def offloads_parameters(preset: dict[str, Any]) -> bool:
    """Whether parameters live in CPU memory between uses."""
    return _offloads(preset, "offload_param")


def _offloads(preset: dict[str, Any], section: str) -> bool:
    return _at(preset, f"zero_optimization.{section}.device") not in (None, "none")


def settle(recipe: R, preset: dict[str, Any]) -> R:
    """`recipe` with the concrete values of `preset` (keys already checked) for what the recipe leaves at its default.

    "auto" or absent: the recipe decides. ConfigError with every contradiction: both set and different, or a key that
    this trainer would not follow.
    """
    problems = [*_not_followed(preset), *_zero_problems(preset), *_optimizer_problems(recipe.optim.name, preset)]
    says = {
        key: (f"{name}={shown(value)}", value)
        for name, key in SHARED.items()
        if (value := _at(preset, name)) is not None
    }
    try:
        says |= _precision(preset, recipe.train.precision)
    except ConfigError as error:
        problems.append(str(error))
    data = recipe.model_dump(mode="json", exclude_unset=True)
    adopted = []
    for key, (said, value) in says.items():
        section, _, leaf = key.partition(".")
        mine = data.setdefault(section, {}).get(leaf)
        if mine is None:
            adopted.append(said)
            data[section][leaf] = value
        elif mine != value:
            problems.append(
                f"{said} in this file, but {key}={shown(mine)} in the recipe: remove one (the other then decides), "
                f'or write "auto" in this file (the recipe then decides)'
            )
    try:
        settled = type(recipe).model_validate(data)
    except ValidationError as error:
        problems += [
            f"{line} (from {', '.join(adopted)} in this file)" for line in value_problems(error, data, type(recipe))[0]
        ]
    raise_problems(recipe.deepspeed, problems)
    return settled


def _not_followed(preset: dict[str, Any]) -> Iterator[str]:
    for name, (harmless, decided) in DECIDED_ELSEWHERE.items():
        value = _at(preset, name)
        if value is not None and value not in harmless:
            yield f"{name}={shown(value)} is not followed: {decided}; remove the key"
    for key in _at(preset, "optimizer.params") or {}:
        name = f"optimizer.params.{key}"
        value = _at(preset, name)
        if value is not None and name not in SHARED and name not in DECIDED_ELSEWHERE:
            yield f"{name}={shown(value)} is not followed: {_OPTIMIZER}; remove the key"
    if schedule := without_auto(preset.get("scheduler") or {}):
        value = schedule.get("type", schedule)
        yield f"scheduler={shown(value)} is not followed: optim.schedule and optim.warmup_steps decide; remove it"


def _zero_problems(preset: dict[str, Any]) -> Iterator[str]:
    for key, new in _OLD_KEYS.items():
        if (value := _at(preset, f"zero_optimization.{key}")) is not None:
            yield f"zero_optimization.{key}={shown(value)} is an old key: write {new}, or remove it"
    for section in ("offload_optimizer", "offload_param"):
        if _at(preset, f"zero_optimization.{section}.device") == "nvme":
            yield (
                f"zero_optimization.{section}.device=nvme is not followed: its files would go into a checkpoint "
                'unverified; write "cpu"'
            )
    try:
        stage = zero_stage(preset)
    except ConfigError as error:
        yield str(error)
        return
    if stage == 0 and offloads_optimizer(preset):
        yield "zero_optimization.offload_optimizer has no effect at stage 0: set zero_optimization.stage to 1, 2 or 3"
    if stage < 3 and offloads_parameters(preset):
        yield f"zero_optimization.offload_param has no effect at stage {stage}: set zero_optimization.stage to 3"


def _optimizer_problems(name: str, preset: dict[str, Any]) -> Iterator[str]:
    said = _at(preset, "optimizer.type")
    if said in DECIDED_ELSEWHERE["optimizer.type"][0] and (said in ("muon", "Muon")) != (name == "muon"):
        yield f"optimizer.type={said} in this file, but optim.name={name} in the recipe: remove the first or change one"
    why = {"muon": "the CPU would make the updates orthogonal", "adamw_8bit": "DeepSpeed's Adam for CPUs has no 8 bits"}
    if name in why and offloads_optimizer(preset):
        yield (
            f"optim.name={name} with zero_optimization.offload_optimizer is not done: {why[name]}; remove "
            "offload_optimizer, or use optim.name=adamw"
        )


def _precision(preset: dict[str, Any], mine: Precision | None) -> dict[str, tuple[str, Precision]]:
    """What `preset` says on train.precision: {} if the recipe (`mine`; None: the device) is free to decide.

    With bf16.enabled=false nothing is left to the device: fp16 needs a word of its own, so it means fp32.
    """
    says = {name: _at(preset, f"{name}.enabled") for name in ("bf16", "bfloat16", "fp16")}
    for name, value in says.items():
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f'{name}.enabled={shown(value)} should be true, false or "auto"')
    kinds: dict[str, Precision] = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16"}
    on = [name for name, value in says.items() if value]
    off = [name for name, value in says.items() if value is False]
    if len(on) > 1 or (says["bf16"] is not None and says["bfloat16"] is not None):
        raise ConfigError(f"{' and '.join(on or ['bf16', 'bfloat16'])} are given together: keep one")
    if on:
        return {"train.precision": (f"{on[0]}.enabled=true", kinds[on[0]])}
    denied = next((name for name in off if kinds[name] == (mine or "bf16")), None)
    return {} if denied is None else {"train.precision": (f"{denied}.enabled=false", "fp32")}


def engine_config(recipe: BaseRecipe, preset: dict[str, Any], *, ranks: int, precision: Precision) -> dict[str, Any]:
    """What `deepspeed.initialize` gets for a settled `recipe`: `preset` complete, no "auto", no optimizer section.

    The optimizer is handed over ready-made. With offload it has to be a DeepSpeedCPUAdam, which DeepSpeed accepts as it
    is (engine._configure_optimizer): neither zero_allow_untested_optimizer nor zero_force_ds_cpu_optimizer is needed.
    """
    plan = batch_plan(recipe, ranks)
    steps = _at(preset, "gradient_accumulation_steps")
    if steps is not None and steps != plan.accumulation:
        raise ConfigError(
            f"{recipe.deepspeed}: gradient_accumulation_steps={shown(steps)}, but train.global_batch_size "
            f"{plan.global_batch} / (train.micro_batch_size {plan.micro_batch} x "
            f"{_readers(ranks, recipe.train.sequence_parallel)}) = {plan.accumulation}: "
            'write "auto" in the file, or change the batch sizes'
        )
    config = without_auto(preset)
    for name in ("optimizer", "scheduler", "bfloat16"):
        config.pop(name, None)
    bf16 = without_auto(preset.get("bf16") or preset.get("bfloat16") or {})
    fp16 = without_auto(preset.get("fp16") or {})  # its loss scale
    config |= {
        # DeepSpeed takes every rank for one that reads samples of its own; it only compares this with the others.
        "train_batch_size": plan.global_batch * recipe.train.sequence_parallel,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": recipe.optim.grad_clip,
        "bf16": bf16 | {"enabled": True} if precision == "bf16" else {"enabled": False},
        "fp16": fp16 | {"enabled": True} if precision == "fp16" else {"enabled": False},
        "zero_optimization": config.get("zero_optimization", {}) | {"stage": zero_stage(preset)},
    }
    config.setdefault("wall_clock_breakdown", False)
    config.setdefault("timers", {"throughput": {"enabled": False}})  # it waits for the device at every step
    return config


def without_auto(section: dict[str, Any]) -> dict[str, Any]:
    """A copy of `section` without "auto" and null at any depth, so that DeepSpeed's defaults take their place.

    Sections that held nothing else go too.
    """
    out = {}
    for key, value in section.items():
        kept = without_auto(value) if isinstance(value, dict) else value
        if kept is None or kept == "auto" or (value and kept == {}):
            continue
        out[key] = list(kept) if isinstance(kept, list) else kept
    return out


def _at(preset: dict[str, Any], name: str) -> Any:
    """The concrete value of the dotted `name`; None if it is absent, null or "auto"."""
    value: Any = preset
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return None if value == "auto" else value
