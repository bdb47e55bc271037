"""launch/pretrain.py from start to end, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.model.native.build import INSTRUCTIONS
from scaletrain.runtime import processor
from scaletrain.runtime.ports import free_port
from scaletrain.track.sinks import read_lines
from tests.conftest import ROOT, pretrain, write_recipe

PROMPTS = ('evaluate.prompts=["def f(", ""]', "evaluate.prompt_tokens=16")


def texts(run: Path) -> list[tuple[int, list[dict[str, str]]]]:
    events = read_lines(run / "events.jsonl")
    return [(event["step"], event["texts"]) for event in events if event["event"] == "texts"]


def metrics(run: Path) -> list[dict]:  # type: ignore[type-arg]
    return read_lines(run / "metrics.jsonl")


def losses(run: Path) -> dict[int, float]:
    found = [(line["step"], line["loss"]) for line in metrics(run) if "loss" in line]
    assert len(dict(found)) == len(found), "a step is logged twice"
    return dict(found)


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of one rank."""
    folder = tmp_path_factory.mktemp("whole")
    done = pretrain(write_recipe(folder, dataset, folder / "run"), *PROMPTS, "run.env.NCCL_SOCKET_IFNAME=ib7")
    assert done.code == 0, done.err
    assert done.err == ""
    return folder / "run"


def test_a_run_leaves_what_the_contract_says(whole: Path) -> None:
    names = {"recipe.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "checkpoints", "logs", "tokenizer"}
    assert names <= {p.name for p in whole.iterdir()}
    assert sorted(p.name for p in (whole / "checkpoints").glob("step-*")) == ["step-00000008", "step-00000012"]
    assert (whole / "checkpoints" / "latest").read_text() == "step-00000012\n"
    trained = [line for line in metrics(whole) if "loss" in line]
    keys = {
        "step",
        "samples",
        "tokens",
        "loss",
        "lr",
        "grad_norm",
        "step_seconds",
        "data_wait_seconds",
        "forward_seconds",
        "backward_seconds",
        "optimizer_seconds",
    }
    assert keys | {"tokens_per_second", "mfu", "peak_memory_bytes", "skipped_steps"} == set(trained[0])
    assert [line["step"] for line in trained] == list(range(1, 13))
    assert (trained[-1]["samples"], trained[-1]["tokens"]) == (96, 96 * 32)
    assert trained[0]["loss"] == pytest.approx(6.2, abs=0.2)  # log(512)
    assert trained[-1]["loss"] < trained[0]["loss"] - 0.5
    evaluated = [line for line in metrics(whole) if "eval_loss" in line]
    assert [line["step"] for line in evaluated] == [6, 12]
    assert set(evaluated[0]) == {"step", "eval_loss", "eval_perplexity", "eval_bits_per_byte"}
    events = [line["event"] for line in read_lines(whole / "events.jsonl")]
    assert events == [
        "start", "data", "checkpoint", "evaluate", "texts", "checkpoint", "checkpoint", "evaluate", "texts", "end"
    ]  # fmt: skip
    (early, first), (late, second) = texts(whole)
    assert (early, late) == (6, 12)
    assert [one["prompt"] for one in (*first, *second)] == ["def f(", ""] * 2
    assert all(one["text"] for one in (*first, *second))
    assert first != second
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["world"]["ranks"] == 1
    assert environment["network"]["NCCL_SOCKET_IFNAME"] == "ib7"  # the recipe's


def test_a_finished_run_started_again_does_nothing(whole: Path, dataset: Dataset, tmp_path: Path) -> None:
    before = losses(whole)
    done = pretrain(write_recipe(tmp_path, dataset, whole))
    assert done.code == 0, done.err
    assert losses(whole) == before


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_ranks_train_as_one_under_each_launcher(
    launcher: str, whole: Path, dataset: Dataset, tmp_path: Path
) -> None:
    done = pretrain(write_recipe(tmp_path, dataset, tmp_path / "run"), *PROMPTS, ranks=2, launcher=launcher)
    assert done.code == 0, done.err
    assert texts(tmp_path / "run") == texts(whole)
    one, two = losses(whole), losses(tmp_path / "run")
    assert one.keys() == two.keys()
    assert max(abs(one[step] - two[step]) for step in one) < 1e-5
    assert done.out.count("done ") == 1


@pytest.mark.parametrize("config", ["zero2.json", "zero3.json"])
def test_deepspeed_config_on_the_command_line_wins(config: str, whole: Path, dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = pretrain(recipe, *PROMPTS, "--deepspeed", f"--deepspeed_config=ds_configs/{config}", "--local_rank=0")
    assert done.code == 0, done.err
    assert f"ZeRO stage {config[4]}" in done.out
    assert texts(tmp_path / "run") == texts(whole)
    one, other = losses(whole), losses(tmp_path / "run")
    assert max(abs(one[step] - other[step]) for step in one) < 1e-5


def start(recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "launch/pretrain.py", str(recipe), *overrides]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").is_file() and any(line["step"] >= step for line in metrics(run)):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(11, marks=pytest.mark.slow)])
def test_killed_and_resumed_losses_equal_the_uninterrupted_ones(
    step: int, whole: Path, dataset: Dataset, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    process = start(recipe)
    wait_for_step(run, step)
    process.kill()
    process.wait()
    done = pretrain(recipe)
    assert done.code == 0, done.err
    assert losses(run) == losses(whole)
    assert [line for line in metrics(run) if "eval_loss" in line] == [
        line for line in metrics(whole) if "eval_loss" in line
    ]


def test_a_damaged_checkpoint_is_passed_over_and_a_lost_evaluation_made_up_for(
    whole: Path, dataset: Dataset, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    assert pretrain(recipe, "checkpoint.every_steps=6").code == 0
    newest = run / "checkpoints" / "step-00000012"
    victim = next(newest.glob("state-*"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    kept = [line for line in metrics(run) if not ("eval_loss" in line and line["step"] == 6)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    done = pretrain(recipe, "checkpoint.every_steps=6")
    assert done.code == 0, done.err
    assert f"passed over step-00000012: {victim.name} is not as it was written" in done.out
    assert losses(run) == losses(whole)
    assert sorted((line["step"], line["eval_loss"]) for line in metrics(run) if "eval_loss" in line) == [
        (line["step"], line["eval_loss"]) for line in metrics(whole) if "eval_loss" in line
    ]
    assert (run / "checkpoints" / "damaged-step-00000012").is_dir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_75_and_the_run_goes_on(number: int, dataset: Dataset, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    process = start(recipe, "train.max_steps=100000", "checkpoint.every_steps=null", "evaluate.every_steps=null")
    wait_for_step(run, 3)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "")
    assert signal.Signals(number).name in out
    assert "run the same command to go on" in out
    stopped = [line for line in read_lines(run / "events.jsonl") if line["event"] == "stop"]
    at = stopped[0]["step"]
    assert (run / "checkpoints" / f"step-{at:08d}" / "manifest.json").is_file()
    done = pretrain(recipe, f"train.max_steps={at + 2}", "checkpoint.every_steps=null", "evaluate.every_steps=null")
    assert done.code == 0, done.err
    assert list(losses(run)) == list(range(1, at + 3))


def test_a_killed_deepspeed_command_leaves_a_saved_run_and_no_process(dataset: Dataset, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    launcher = ["-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus=2", f"--master_port={free_port()}"]
    command = [*launcher, "launch/pretrain.py", str(recipe)]
    settings = ["train.max_steps=100000", "checkpoint.every_steps=null", "evaluate.every_steps=null"]
    process = subprocess.Popen([sys.executable, *command, *settings], cwd=ROOT)
    wait_for_step(run, 3)
    process.terminate()
    process.wait()
    deadline = time.monotonic() + 30
    while not (stopped := [e for e in read_lines(run / "events.jsonl") if e["event"] == "stop"]):
        assert time.monotonic() < deadline, "the ranks trained on"
        time.sleep(0.1)
    assert stopped[0]["reason"] == "the launcher is gone"
    assert (run / "checkpoints" / f"step-{stopped[0]['step']:08d}" / "manifest.json").is_file()
    while subprocess.run(["pgrep", "-f", str(recipe)], capture_output=True, check=False).stdout:
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.1)


def test_an_hour_limit_saves_and_exits_75(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = pretrain(recipe, "train.max_steps=100000", "train.max_hours=0.0003", "evaluate.max_samples=1")
    assert done.code == 75, done.err
    assert "train.max_hours=0.0003 is over" in done.out


def test_a_token_limit_is_rounded_up_to_a_step(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = pretrain(recipe, "train.max_steps=null", "train.max_tokens=1K")
    assert done.code == 0, done.err
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]  # 256 tokens a step


@pytest.mark.skipif(not processor.flags().issuperset(INSTRUCTIONS), reason="needs AVX-512 BF16")
def test_a_run_without_a_compiler_is_told_what_it_leaves_out(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    empty = [f"run.env.SCALETRAIN_CACHE={tmp_path / 'cache'}", "run.env.CXX=no-such-compiler", "train.max_steps=2"]
    told = "kernels left out, a fifth slower"
    for precision, is_told in (("bf16", True), ("fp32", False)):
        done = pretrain(recipe, *empty, f"train.precision={precision}", f"run.dir={tmp_path / precision}")
        assert done.code == 0, done.err
        assert (told in done.out) == is_told
