"""The classic mistakes of fine-tuning, each a line at the start."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scaletrain.assemble.finetuning import settle_finetuning
from scaletrain.assemble.pretraining import settle_pretraining
from scaletrain.commands.train import main
from scaletrain.errors import EXIT_USER, ScaleTrainError
from tests.conftest import ROOT, run_program
from tests.finetune.conftest import Write

RULES = [
    ("classify", ["model.quantize=4bit"], "model.quantize=4bit with adapter.kind=none: weights of so few bits cannot"),
    ("sft", ["model.quantize=8bit", "adapter.kind=lora", "deepspeed=ds_configs/zero3.json"], "does not go with ZeRO"),
    (
        "sft",
        ["adapter.kind=dora", "deepspeed=ds_configs/zero3.json"],
        "adapter.kind=dora does not go with ZeRO stage 3",
    ),
    ("classify", ["data.max_length=500"], "data.max_length=500 is longer than the 128 positions of"),
    ("sft", ["model.chat_template=null"], "the tokenizer has no chat template: set model.chat_template to chatml"),
    (
        "sft",
        ["model.chat_template=none.jinja"],
        "model.chat_template=none.jinja is neither chatml nor plain nor a file",
    ),
    ("tag", ["task.crf=true", "task.label_smoothing=0.1"], "task.label_smoothing=0.1 has no effect with task.crf=true"),
    ("tag", ["task.crf=true", "task.word_label=all"], "task.word_label=all does not go with task.crf=true"),
    ("classify", ["task.crf=true"], "task.crf=true has no effect with task.kind=classify: remove it (tag)"),
    ("classify", ["task.multi_label=true", "task.regression=true"], "are both set: an example has labels or a number"),
    ("classify", ["task.class_weights={blame: 2, spam: 1}"], "task.class_weights names spam, which is no label"),
    (
        "classify",
        ["adapter.kind=lora", "model.freeze=embeddings"],
        "model.freeze=embeddings has no effect with adapter",
    ),
    (
        "classify",
        ["adapter.kind=lora", "optim.layer_decay=0.9"],
        "optim.layer_decay=0.9 has no effect with adapter.kind",
    ),
    (
        "sft",
        ["adapter.kind=prompt_tuning", "data.packing=false", "data.max_length=120"],
        "data.max_length=120 with adapter.virtual_tokens=20 is longer than the 128 positions of",
    ),
    (
        "sft",
        ["adapter.kind=prompt_tuning", "data.packing=false", "model.quantize=4bit"],
        "adapter.kind=prompt_tuning with model.quantize=4bit is not supported: use lora",
    ),
    ("sft", ["adapter.kind=prompt_tuning"], "puts its tokens before a row, so a row holds one example"),
    ("tag", ["adapter.kind=prompt_tuning"], "adapter.kind=prompt_tuning does not go with task.kind=tag"),
    ("classify", ["train.activation_checkpointing=selective"], "is for pretraining: use none or full"),
    ("classify", ["train.fp8=true"], "train.fp8=true is for pretraining: remove it"),
    ("classify", ["train.activation_checkpointing=offload"], "is for pretraining: use none or full"),
    ("classify", ["train.sequence_parallel=2"], "train.sequence_parallel=2 is for pretraining: remove it"),
    ("classify", ["evaluate.patience=2"], "evaluate.patience=2 waits for a better checkpoint.best_metric"),
    (
        "classify",
        ["data.validation_share=null", "checkpoint.best_metric=f1"],
        "needs an evaluation: set data.validation",
    ),
    ("sft", ["data.validation_share=null", "task.generate.metrics=[bleu]"], "task.generate.metrics need an evaluation"),
    ("classify", ["train.max_steps=null"], "train.max_steps and train.max_tokens and train.max_epochs are not set"),
    ("classify", ["train.max_epochs=2"], "both set the run's length: keep one and set the other to null"),
    ("span_qa", ["data.stride=40"], "data.stride=40 is not less than half of data.max_length=64"),
    ("sft", ["data.prompt='{question}'"], "data.prompt is set and data.response is not: give both templates, or none"),
    ("classify", ["model.pad_token=[NOTHING]"], "model.pad_token="),
    ("classify", ["adapter.knd=lora"], "adapter.knd=lora is unknown: did you mean adapter.kind?"),
    ("classify", ["data.columns={text: review}"], "review"),
    ("classify", ["task.labels=[blame]"], "praise"),
    (
        "classify",
        ["data.max_length=8", "data.too_long=skip", "data.train={long}", "data.validation_share=null"],
        "gives no row to train on: see data.",
    ),
]


@pytest.mark.parametrize(("kind", "overrides", "line"), RULES, ids=[" ".join(rule[1]) for rule in RULES])
def test_a_mistake_is_one_line_before_anything_loads(
    kind: str, overrides: list[str], line: str, write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, long = write(kind, "llama" if kind == "sft" else "bert"), tmp_path / "long.jsonl"
    rows = [{"text": "the film is " * number, "label": ["praise", "blame"][number % 2]} for number in range(3, 9)]
    long.write_text("".join(json.dumps(row) + "\n" for row in rows))
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"question": "", "context": "", "answers": []}\n')
    overrides = [override.replace("{long}", str(long)).replace("{empty}", str(empty)) for override in overrides]
    capfd.readouterr()
    assert main("finetune", [str(recipe), *overrides]) == EXIT_USER
    told = capfd.readouterr().err
    assert line in told
    assert (told.startswith("error: "), told.count("\n")) == (True, 1), told


@pytest.mark.parametrize(
    ("kind", "override", "line"),
    [
        (
            "sft",
            ["adapter.kind=lora", "adapter.targets=[attention_x]"],
            "adapter.targets=[attention_x] names no layer of",
        ),
        (
            "sft",
            ["model.freeze=all_but_head"],
            "model.freeze=all_but_head leaves nothing to train: the head shares its",
        ),
        (
            "classify",
            ["checkpoint.best_metric=bleu"],
            "checkpoint.best_metric=bleu is no value of an evaluation: choose",
        ),
    ],
)
def test_a_mistake_that_shows_when_the_model_is_built_is_one_line_too(
    kind: str, override: list[str], line: str, write: Write
) -> None:
    done = run_program("launch/finetune.py", write(kind, "llama"), *override, PYTHONPATH=str(ROOT))
    assert (done.code, done.err.count("\n")) == (EXIT_USER, 1), done.err
    assert done.err.startswith(f"error: {line}"), done.err


def test_a_tuned_prompt_does_not_classify_with_a_decoder(write: Write) -> None:
    how = ["adapter.kind=prompt_tuning", "data.max_length=32"]
    with pytest.raises(ScaleTrainError, match=r"task.kind=classify of a decoder \(model_type=llama\): .*; use lora"):
        settle_finetuning(write("classify", "llama"), how, None)
    assert settle_finetuning(write("classify", "bert"), how, None)


def test_packing_is_refused_where_a_family_would_mix_examples(write: Write, models: Path, tmp_path: Path) -> None:
    def rename(folder: Path) -> None:
        (folder / "config.json").write_text('{"model_type": "opt", "max_position_embeddings": 128}')

    folder = changed(models, tmp_path / "m", rename)
    with pytest.raises(ScaleTrainError, match="data.packing=true: model_type=opt is not known to keep"):
        settle_finetuning(write("sft", "llama"), [f"model.path={folder}"], None)
    assert settle_finetuning(write("sft", "llama"), [f"model.path={folder}", "data.packing=false"], None)


@pytest.mark.parametrize("kind", ["classify", "tag", "span_qa", "sft"])
def test_nothing_needs_to_be_held_out(kind: str, write: Write) -> None:
    recipe = write(kind, "llama" if kind == "sft" else "bert")
    data = settle_finetuning(recipe, ["data.validation_share=null"], None).job.data
    assert data.validation_rows() is None
    assert len(data.rows("train"))


def test_labels_that_training_lacks_are_named_with_their_place(write: Write, tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text('{"text": "good", "label": "praise"}\n{"text": "bad", "label": "anger"}\n')
    changes = ["data.validation_share=null", f"data.validation={tmp_path}/v.jsonl"]
    with pytest.raises(ScaleTrainError, match=r"labels that data.train lacks: anger \(.*v.jsonl:2\)"):
        settle_finetuning(write("classify", "bert"), changes, None)


def changed(models: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(models / "llama", folder)
    change(folder)
    return folder


def test_a_tokenizer_without_pad_and_end_is_told(write: Write, models: Path, tmp_path: Path) -> None:
    def strip(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("pad_token", "eos_token")}
        path.write_text(json.dumps(kept))

    folder = changed(models, tmp_path / "m", strip)
    with pytest.raises(ScaleTrainError, match="names neither a padding nor an end-of-text token: set model.pad_token"):
        settle_finetuning(write("classify", "llama"), [f"model.path={folder}"], None)


def test_a_decoder_pads_with_its_end_where_it_has_no_padding(write: Write, models: Path, tmp_path: Path) -> None:
    def strip(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        kept = {k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}
        path.write_text(json.dumps(kept))

    settled = settle_finetuning(
        write("classify", "llama"), [f"model.path={changed(models, tmp_path / 'm', strip)}"], None
    )
    assert settled.job.config.pad_token_id == 5  # type: ignore[attr-defined]


def test_each_program_sends_the_others_recipe_there(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ScaleTrainError, match="a fine-tuning recipe, it has a task section: run launch/finetune.py"):
        settle_pretraining(write("classify", "bert"), [], None)
    path = tmp_path / "p.yaml"
    path.write_text("run: {dir: r}\ndata: {path: d}\nmodel: {preset: llama-tiny}\ntrain: {max_steps: 1}\n")
    with pytest.raises(ScaleTrainError, match="a pretraining recipe, it has no task section: run launch/pretrain.py"):
        settle_finetuning(path, [], None)
