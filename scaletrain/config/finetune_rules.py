"""Rules over several keys of a fine-tuning recipe: what cannot work together, and why, told before anything loads."""

from collections.abc import Iterator

from scaletrain.config.finetune_schema import FinetuneData, FinetuneRecipe, TaskSection
from scaletrain.config.problems import shown
from scaletrain.config.schema import Section

# Keys that only some kinds of task read.
_OF_KINDS: dict[str, tuple[str, ...]] = {
    "task.multi_label": ("classify",),
    "task.regression": ("classify",),
    "task.class_weights": ("classify",),
    "task.labels": ("classify", "tag"),
    "task.label_smoothing": ("classify", "tag", "sft"),
    "task.crf": ("tag",),
    "task.word_label": ("tag",),
    "task.null_threshold": ("span_qa",),
    "task.max_answer_tokens": ("span_qa",),
    "task.generate": ("sft",),
    "data.label_separator": ("classify",),
    "data.tag_scheme": ("tag",),
    "data.system": ("sft",),
    "data.prompt": ("sft",),
    "data.response": ("sft",),
    "data.stride": ("span_qa", "tag"),
    "data.packing": ("sft",),
    "data.too_long": ("classify", "sft"),
    "model.chat_template": ("sft",),
}


def finetune_problems(recipe: FinetuneRecipe) -> list[str]:
    """Every rule that `recipe` breaks by itself, a line each."""
    return [
        *_without_effect(recipe),
        *_task_problems(recipe.task),
        *_data_problems(recipe.data),
        *_adapter_problems(recipe),
        *_run_problems(recipe),
    ]


def _without_effect(recipe: FinetuneRecipe) -> Iterator[str]:
    sections: dict[str, Section] = {"task": recipe.task, "data": recipe.data, "model": recipe.model}
    for name, kinds in _OF_KINDS.items():
        section, _, key = name.partition(".")
        value, default = getattr(sections[section], key), type(sections[section]).model_fields[key].default
        if recipe.task.kind not in kinds and value != default:
            told = "" if isinstance(value, Section) else f"={shown(value)}"
            yield f"{name}{told} has no effect with task.kind={recipe.task.kind}: remove it ({' and '.join(kinds)})"


def _task_problems(task: TaskSection) -> Iterator[str]:
    if task.multi_label and task.regression:
        yield "task.multi_label and task.regression are both set: an example has labels or a number, keep one"
    if task.regression and task.labels:
        yield "task.labels has no effect with task.regression=true, whose label is a number: remove it"
    if len(set(task.labels)) < len(task.labels):
        yield f"task.labels={shown(task.labels)} names a label twice: name each once"
    single = "an example with one label"
    if task.class_weights != "none" and (task.multi_label or task.regression):
        yield f"task.class_weights needs {single}: remove it, or task.multi_label and task.regression"
    if task.label_smoothing and (task.multi_label or task.regression):
        yield f"task.label_smoothing={task.label_smoothing} needs {single}: remove it"
    if task.label_smoothing and task.crf:
        yield f"task.label_smoothing={task.label_smoothing} has no effect with task.crf=true: remove one"
    if task.crf and task.word_label != "first":
        yield "task.word_label=all does not go with task.crf=true, which has one label a word: use first"


def _data_problems(data: FinetuneData) -> Iterator[str]:
    if data.validation is not None and data.validation_share is not None:
        yield "data.validation and data.validation_share both say what is held out: keep one"
    if data.stride is not None and data.stride >= data.max_length // 2:
        yield (
            f"data.stride={data.stride} is not less than half of data.max_length={data.max_length}: windows would "
            "hardly move on; lower it"
        )
    if (data.prompt is None) != (data.response is None):
        given, missing = ("prompt", "response") if data.response is None else ("response", "prompt")
        yield f"data.{given} is set and data.{missing} is not: give both templates, or none"


def _adapter_problems(recipe: FinetuneRecipe) -> Iterator[str]:
    adapter, model, task = recipe.adapter, recipe.model, recipe.task
    if adapter.kind == "none":
        if model.quantize != "none":
            yield (
                f"model.quantize={model.quantize} with adapter.kind=none: weights of so few bits cannot be trained; "
                "set adapter.kind=lora, or remove quantize"
            )
        return
    name = f"adapter.kind={adapter.kind}"
    if model.freeze != "none":
        yield f"model.freeze={model.freeze} has no effect with {name}, which freezes the whole model: remove it"
    if recipe.optim.layer_decay != 1.0:
        yield f"optim.layer_decay={recipe.optim.layer_decay} has no effect with {name}: remove it"
    if adapter.kind != "prompt_tuning":
        return
    if task.kind not in ("sft", "classify"):
        yield f"{name} does not go with task.kind={task.kind}: its tokens would shift the words; use lora"
    if task.kind == "sft" and recipe.data.packing:
        yield f"{name} puts its tokens before a row, so a row holds one example: set data.packing=false"
    if model.quantize != "none":
        yield f"{name} with model.quantize={model.quantize} is not supported: use lora"


def _run_problems(recipe: FinetuneRecipe) -> Iterator[str]:
    mode = recipe.train.activation_checkpointing
    if mode not in ("none", "full"):
        yield f"train.activation_checkpointing={mode} is for pretraining: use none or full"
    if recipe.train.compile != "none":
        yield f"train.compile={recipe.train.compile} is for pretraining: remove it"
    if recipe.train.flash_attention != "torch":
        yield f"train.flash_attention={recipe.train.flash_attention} is for pretraining: remove it"
    if recipe.train.fp8:
        yield "train.fp8=true is for pretraining: remove it"
    if recipe.train.sequence_parallel != 1:
        yield f"train.sequence_parallel={recipe.train.sequence_parallel} is for pretraining: remove it"
    held_out = recipe.data.validation is not None or recipe.data.validation_share is not None
    if not held_out and recipe.checkpoint.best_metric is not None:
        yield (
            f"checkpoint.best_metric={recipe.checkpoint.best_metric} needs an evaluation: set data.validation or "
            "data.validation_share"
        )
    if not held_out and recipe.task.generate.metrics:
        yield "task.generate.metrics need an evaluation: set data.validation or data.validation_share"


def deepspeed_problems(recipe: FinetuneRecipe, stage: int) -> list[str]:
    """Rules between a fine-tuning recipe and its DeepSpeed file."""
    if stage == 3 and recipe.model.quantize != "none":
        return [
            f"model.quantize={recipe.model.quantize} does not go with ZeRO stage 3, which splits weights of the "
            "training precision: use ds_configs/zero2.json"
        ]
    if stage == 3 and recipe.adapter.kind == "dora":
        return [
            "adapter.kind=dora does not go with ZeRO stage 3: PEFT takes the norm of whole weights outside of their "
            "layers, where stage 3 has them in parts; use ds_configs/zero2.json, or lora"
        ]
    return []
