"""`scaletrain plan`: verdicts, exit codes, what it prints and writes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from scaletrain.commands.plan import plan
from scaletrain.commands.plan_finetune import count_in_files
from scaletrain.config.load import load_recipe
from scaletrain.errors import ConfigError
from tests.conftest import ROOT, scaletrain

RECIPE = """\
run: {dir: runs/gpt}
data: {path: data, context_length: 4096}
model: {preset: llama-7b, vocab_size: 32000}
deepspeed: ds_configs/zero3.json
train: {max_steps: 1000, global_batch_size: 256, micro_batch_size: 4, activation_checkpointing: full}
"""
FINETUNE = """\
run: {dir: runs/ft}
task: {kind: sft}
data: {train: x.jsonl}
model: {path: model}
deepspeed: ds_configs/zero1.json
train: {max_steps: 10, precision: bf16}
"""
CLI = ("-c", "from scaletrain.cli import main; main()")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "finetune.yaml").write_text(FINETUNE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    done = scaletrain("plan", *arguments)
    assert done.code == code, done.err
    return done.out if code == 0 else done.out + done.err


def test_what_fits_is_told_with_its_price_and_no_torch_is_imported(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *CLI, "plan", "recipe.yaml", "--nodes", "2", "--gpus-per-node", "8",
         "--price", "2"], capture_output=True, text=True, check=True, cwd=folder, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    for words in ("6.7 B parameters", "2 x 8 x h100", "tokens/s, MFU", "device-hours, ", "fits    with"):
        assert words in done.stdout
    assert " torch\n" not in done.stderr


def test_what_does_not_fit_exits_with_2_and_names_the_first_change_that_helps(folder: Path) -> None:
    told = run("recipe.yaml", "--gpus-per-node", "8", "--gpu", "rtx-4090", code=2)
    last = told.strip().splitlines()[-1]
    assert last.startswith("too big by ")
    assert last.endswith("a rank: train.micro_batch_size=2 makes it fit")
    told = run("recipe.yaml", "--gpus-per-node", "1", "--gpu", "rtx-4090", "deepspeed=ds_configs/zero0.json", code=2)
    assert "makes it fit" in told.strip().splitlines()[-1] or "use more devices" in told


def test_host_memory_is_judged_when_it_is_given(folder: Path) -> None:
    node = ("recipe.yaml", "--gpus-per-node", "8", "checkpoint.every_steps=100")
    told = run(*node, "--host-memory-gb", "100", code=2)
    assert "3 GB of each process (assumed); of 100 GB" in told
    assert told.strip().splitlines()[-1].endswith(" of host memory a node: checkpoint.background=false makes it fit")
    found = json.loads(run(*node, "--host-memory-gb", "1000", "--json"))
    assert found["node_host_room_bytes"] == 10**12
    assert "this machine tells its own memory" in run("recipe.yaml", "--gpu=cpu", "--host-memory-gb=9", code=2)


def test_fp8_is_planned_where_a_run_takes_it(folder: Path) -> None:
    fp8 = ("recipe.yaml", "train.fp8=true", "--gpus-per-node", "8")
    assert "bf16, FP8 products, ZeRO 3" in run(*fp8)
    assert "train.fp8=true with --gpu a100-80, which has no FP8 products" in run(*fp8, "--gpu", "a100-80", code=2)
    assert "keeps each gathered weight" in run(*fp8, "train.activation_checkpointing=none", code=2)
    assert "tokens of a micro-batch on one rank 4004 is not" in run(*fp8, "data.context_length=1001", code=2)


def test_plain_values_for_a_program(folder: Path) -> None:
    found = json.loads(run("recipe.yaml", "--gpus-per-node", "8", "--mtbf-hours", "1000", "--json"))
    assert found["fits"] is True
    assert found["remedy"] is None
    assert sum(found["peak_parts"].values()) == found["peak_bytes"] <= found["peak_with_margins_bytes"]
    assert found["run_mtbf_hours"] == 1000
    assert sum(found["step_parts"].values()) == pytest.approx(found["step_seconds"])
    assert found["steps"] == 1000


def test_a_search_writes_words_that_a_launch_line_takes(folder: Path) -> None:
    told = run("recipe.yaml", "--gpus-per-node", "8", "--gpu", "a100-80", "--search", "--write", "best.txt")
    lines = told.strip().splitlines()
    assert 2 <= len(lines) <= 11
    words = (folder / "best.txt").read_text().split()
    assert lines[1].endswith(" ".join(words))
    recipe = load_recipe(Path("recipe.yaml"), words)
    assert recipe.train.micro_batch_size is not None
    run("recipe.yaml", "--gpus-per-node", "8", "--gpu", "a100-80", *words)


def test_what_a_search_cannot_find_is_one_line(folder: Path) -> None:
    told = run("recipe.yaml", "--gpu", "rtx-4090", "--search", "data.context_length=100000", code=2)
    assert "recipe.yaml: no ZeRO stage, checkpointing, micro-batch or offload fits: use more devices" in told


def test_this_machine_is_planned_with_a_given_rate(folder: Path) -> None:
    told = run("recipe.yaml", "model.preset=llama-tiny", "data.context_length=32", "--gpu", "cpu", "--tflops", "0.1")
    assert "this machine; rate as given" in told
    assert "fits    with" in told


def test_an_assumed_vocabulary_is_said(folder: Path) -> None:
    done = scaletrain("plan", "recipe.yaml", "--gpus-per-node", "8", "model.vocab_size=null")
    assert "50,304 tokens of vocabulary assumed" in done.err
    done = scaletrain("plan", "recipe.yaml", "--gpus-per-node", "8", "model.vocab_size=null", "--vocab-size=999")
    assert done.err == ""
    assert "1,024 tokens" in done.out


def test_the_recipes_own_saves_decide_what_is_kept_and_what_is_lost(folder: Path) -> None:
    odd = ("recipe.yaml", "--gpus-per-node", "8", "--mtbf-hours", "2", "train.max_steps=100_000")
    assert "save    at the end alone: 0.0% of the time is work kept; each " in run(*odd, "checkpoint.every_steps=null")
    assert "100,000 steps: no end: faults come before" in run(*odd, "checkpoint.every_steps=null")
    told = json.loads(run(*odd, "checkpoint.every_steps=50", "--json"))
    assert told["checkpoint_interval_seconds"] == pytest.approx(50 * told["step_seconds"])
    assert 0 < told["goodput"] < told["best_goodput"] < 1
    kept = run(*odd, "checkpoint.every_steps=100", "checkpoint.keep_every_steps=250", "checkpoint.best_metric=loss")
    assert "disk    203 checkpoints and one being written" in kept  # 2, each 500th, the best


def test_a_fine_tuning_refuses_what_is_not_planned_of_it(folder: Path) -> None:
    told = run("finetune.yaml", "--search", "--json", "--price=2", code=2)
    assert "--search, --json, --price: of a fine-tuning memory alone is planned" in told


def test_a_search_needs_no_micro_batch_that_divides_and_knows_the_recipes_own_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaletrain.commands.plan._BEST", 1000)
    (folder / "own.json").write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 7000000}}')
    told = run("recipe.yaml", "--gpus-per-node", "128", "--search", "deepspeed=own.json", "--json")
    found = json.loads(told)
    assert found
    sizes = {word.partition("micro_batch_size=")[2] for one in found for word in one["overrides"]}
    assert sizes == {"", "1", "2"}
    assert any("own.json" in word for one in found for word in one["overrides"])


def test_faults_are_one_line(folder: Path) -> None:
    for words in (["--mtbf-hours", "inf"], ["--price", "inf"], ["model.num_layers=100000000"]):
        assert run("recipe.yaml", *words, code=2)
    assert "--gpu tpu is unknown" in run("recipe.yaml", "--gpu", "tpu", code=2)
    assert "error: --write x writes what a search finds: give --search too" in run("recipe.yaml", "--write=x", code=2)
    assert "is not a multiple of" in run("recipe.yaml", "--gpus-per-node", "7", code=2)


def test_a_machine_that_does_not_tell_its_memory_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaletrain.commands.planned_recipe.available_memory", lambda: None)
    with pytest.raises(ConfigError, match="--gpu cpu: this system does not tell its free memory"):
        plan(Path("recipe.yaml"), gpu="cpu", tflops=1.0)


def test_a_fine_tuning_tells_its_state_and_what_is_missing(folder: Path) -> None:
    assert "model.path=model holds no safetensors file on this machine" in run("finetune.yaml", code=2)
    import numpy as np

    (folder / "model").mkdir()
    save_file({"a": np.zeros((1000, 1000), np.float32), "b": np.zeros(7, np.float32)}, folder / "model/x.safetensors")
    assert count_in_files(folder / "model") == 1_000_007
    told = run("finetune.yaml")
    assert "weights 2 MB, gradients 2 MB, optimizer 12 MB: 16 MB of 80 GB" in told
    assert "not planned: activations" in told
    told = run("finetune.yaml", "adapter.kind=lora")
    assert "weights 2 MB, gradients 0 B, optimizer 0 B" in told
    assert "what is trained (lora)" in told
    (folder / "model/x.safetensors").write_bytes(b"\xff" * 20)
    assert "cannot be read as safetensors" in run("finetune.yaml", code=2)


def test_a_run_calibrates_the_plan_of_another_recipe(folder: Path) -> None:
    effort = {"forward_flops": 1e12, "backward_flops": 2e12, "update_bytes": 28e6, "gradient_bytes": 0.0}
    (folder / "run").mkdir()
    (folder / "run" / "plan.json").write_text(
        json.dumps({"effort": {**effort, "gathered_bytes": 0.0}, "ranks_of_node": 1, "device": "NVIDIA H100"})
    )
    seconds = {"forward_seconds": 0.01, "backward_seconds": 0.02, "optimizer_seconds": 0.0001}
    line = {"step": 1, **seconds, "step_seconds": 0.0401, "data_wait_seconds": 0.0}
    (folder / "run" / "metrics.jsonl").write_text((json.dumps(line) + "\n") * 5)
    found = json.loads(run("recipe.yaml", "--gpus-per-node", "8", "--calibrate", "run", "--json"))
    assert found["compute_share"] == pytest.approx(100 / 989)
    assert found["step_parts"]["rest"] == pytest.approx(0.01)
    assumed = json.loads(run("recipe.yaml", "--gpus-per-node", "8", "--json"))
    ratio = found["step_parts"]["forward"] / assumed["step_parts"]["forward"]
    assert ratio == pytest.approx(0.45 * 989 / 100)
    assert "passes at 10% of the dense peak (as run reached)" in run(
        "recipe.yaml", "--gpus-per-node", "8", "--calibrate", "run"
    )
    told = run("recipe.yaml", "--calibrate", "run", "--tflops", "3", code=2)
    assert "--calibrate run and --tflops 3 both tell how fast a rank is: give one" in told
