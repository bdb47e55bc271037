"""launch/finetune.py as a user runs it: to the end, stopped and resumed, evaluated, exported."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import ROOT, Done, run_program, scaletrain
from tests.finetune.conftest import RECIPE
from tests.finetune.tiny_models import make_examples, make_models
from tests.launches import wait_for


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    make_models(folder)
    make_examples(folder)
    return folder


def write_recipe(place: Path, run: Path, kind: str, model: str, stage: int = 1) -> Path:
    template = ", chat_template: chatml" if kind == "sft" else ""
    recipe = run.parent / f"{run.name}.yaml"
    recipe.write_text(
        RECIPE.format(run=run, kind=kind, examples=place, models=place, model=model, template=template, stage=stage)
    )
    return recipe


def finetune(place: Path, run: Path, kind: str, model: str, *overrides: str, ranks: int = 1, stage: int = 1) -> Done:
    recipe = write_recipe(place, run, kind, model, stage)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return run_program(*launch, "launch/finetune.py", recipe, *overrides, PYTHONPATH=str(ROOT))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run) if "loss" in line]


def test_a_classifier_trains_is_evaluated_and_exported(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    wanted = ["checkpoint.best_metric=f1", "model.dropout=0.1", "train.stop_at_step=4"]
    first = finetune(place, run, "classify", "bert", *wanted)
    assert (first.code, "run the same command" in first.out or "raise" in first.out) == (75, True), first.err
    done = finetune(place, run, "classify", "bert", *wanted[:2])
    assert (done.code, done.err) == (0, "")
    assert "task    one of 2 labels for a text: blame, praise" in done.out
    evaluations = [line for line in lines(run) if "eval_f1" in line]
    assert [line["step"] for line in evaluations] == [6, 12]
    said = [json.loads(line) for line in (run / "predictions" / "step-00000012.jsonl").read_text().splitlines()]
    details = json.loads((run / "predictions" / "step-00000012.json").read_text())
    assert sum(map(sum, details["confusion"]["counts"])) == len(said)
    right = sum(one["label"] == one["predicted"] for one in said) / len(said)
    assert right == pytest.approx(evaluations[-1]["eval_accuracy"])
    assert (run / "checkpoints" / "best").is_file()

    whole = finetune(place, tmp_path / "whole", "classify", "bert", *wanted[:2])
    assert whole.code == 0
    assert losses(run) == losses(tmp_path / "whole")  # dropout too is a function of the step

    exported = scaletrain("export", run, tmp_path / "out", "--dtype", "float32")
    assert (exported.code, exported.err) == (0, "")
    held_out = tmp_path / "held-out.jsonl"
    rows = [json.loads(line) for line in (place / "classify.jsonl").read_text().splitlines()]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows[:30]))
    told = [
        json.loads(scaletrain("evaluate", model, "--data", held_out, "--json").out) for model in (run, tmp_path / "out")
    ]
    assert told[0] == told[1]
    audited = scaletrain("audit", run)
    assert (audited.code, "each row once an epoch" in audited.out) == (0, True), audited.out


@pytest.mark.slow
def test_a_lora_at_stage_3_of_two_ranks_is_resumed_and_leaves_its_adapter(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    how = [
        "adapter.kind=lora",
        "adapter.rank=2",
        "task.generate.metrics=[exact_match]",
        "task.generate.max_new_tokens=4",
    ]
    assert finetune(place, run, "sft", "llama", *how, "train.stop_at_step=6", ranks=2, stage=3).code != 0
    done = finetune(place, run, "sft", "llama", *how, ranks=2, stage=3)
    assert done.code == 0, done.err
    assert f"adapter {run}/adapter: read back and compared with the checkpoint" in done.out
    assert [line["step"] for line in lines(run) if "eval_exact_match" in line] == [6, 12]
    whole = finetune(place, tmp_path / "whole", "sft", "llama", *how, ranks=2, stage=3)
    assert whole.code == 0
    assert losses(run) == losses(tmp_path / "whole")

    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(tensor.numel() and "lora" in name for name, tensor in adapter.items())
    saved = sum(p.stat().st_size for p in (run / "checkpoints" / "step-00000012").glob("*.safetensors"))
    numbers = sum(tensor.numel() for tensor in adapter.values())
    assert saved < 3 * 4 * numbers + 20_000  # weights and moments of the adapter alone
    out = scaletrain("export", run, tmp_path / "out", "--dtype", "float32")
    assert (out.code, out.err) == (0, "")
    assert scaletrain("export", run, tmp_path / "adapter", "--adapter").code == 0
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys() == adapter.keys()
    answer = [
        scaletrain("generate", model, "--prompt", "count one ?", "--temperature", "0", "--max-new-tokens", "4")
        for model in (run, tmp_path / "out")
    ]
    assert answer[0].code == 0
    assert answer[0].out == answer[1].out


@pytest.mark.slow
def test_a_lora_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(place: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    how = [
        *("adapter.kind=lora", "adapter.rank=4", "adapter.dropout=0.1", "task.generate.metrics=[exact_match]"),
        *("task.generate.max_new_tokens=4", "train.max_steps=150", "checkpoint.every_steps=10"),
        *("evaluate.every_steps=75", "evaluate.max_samples=8"),
    ]
    recipe = write_recipe(place, run, "sft", "llama")
    with (tmp_path / "log.txt").open("w") as log:
        program = subprocess.Popen(
            [sys.executable, "launch/finetune.py", str(recipe), *how], cwd=ROOT, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        assert wait_for((run / "checkpoints" / "latest").exists, 120), (tmp_path / "log.txt").read_text()
    finally:
        program.kill()
    assert program.wait() == -signal.SIGKILL
    assert 0 < len(losses(run)) < 150
    assert not (run / "adapter").exists()
    for folder in (run, whole):
        done = finetune(place, folder, "sft", "llama", *how)
        assert (done.code, done.err) == (0, "")
    assert losses(run) == losses(whole)
    assert len(losses(run)) == 150
    said = [folder / "predictions" / "step-00000150.jsonl" for folder in (run, whole)]
    assert said[0].read_text() == said[1].read_text() != ""

    adapters = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, whole)]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())
    assert scaletrain("export", run, tmp_path / "merged", "--dtype", "float32").code == 0
    assert scaletrain("export", run, tmp_path / "adapter", "--adapter").code == 0
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        for folder in (run / "adapter", tmp_path / "adapter"):
            base = AutoModelForCausalLM.from_pretrained(place / "llama", dtype=torch.float32)
            found = PeftModel.from_pretrained(base, folder).eval()(ids).logits
            assert (found - wanted).abs().max() < 1e-5
            assert (found - AutoModelForCausalLM.from_pretrained(place / "llama")(ids).logits).abs().max() > 1e-2


@pytest.mark.slow
def test_a_run_without_progress_ends_early_and_stays_ended(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    how = ["checkpoint.best_metric=loss", "evaluate.every_steps=2", "evaluate.patience=1", "optim.lr=1e-12"]
    done = finetune(place, run, "classify", "bert", *how)
    assert done.code == 0, done.err
    assert "the run ends here, as evaluate.patience asks" in done.out
    assert losses(run).__len__() < 12
    again = finetune(place, run, "classify", "bert", *how)
    assert again.code == 0
    assert len(losses(run)) == len({line["step"] for line in lines(run) if "loss" in line}) < 12


def test_a_fault_of_the_examples_is_one_line(place: Path, tmp_path: Path) -> None:
    os.environ.pop("RANK", None)
    done = finetune(place, tmp_path / "run", "classify", "bert", "data.columns={label: lable}")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("error: ")
