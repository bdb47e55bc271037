"""Bad input: one line with value, rule and remedy, exit code 2, and nothing written or lost."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.track.sinks import read_lines
from tests.conftest import ROOT, Done, pretrain, scaletrain, write_recipe


def copy_dataset(dataset: Dataset, folder: Path) -> Path:
    shutil.copytree(dataset.path, folder / "data")
    return folder / "data"


def deepspeed_file(folder: Path, text: str) -> str:
    (folder / "ds.json").write_text(text)
    return f"deepspeed={folder / 'ds.json'}"


def truncated(dataset: Dataset, folder: Path) -> str:
    copy = copy_dataset(dataset, folder)
    with (copy / "tokens-00001.npy").open("r+b") as file:
        file.truncate(1000)
    return f"data.path={copy}"


Case = tuple[Callable[[Dataset, Path], str], str]
BEFORE_THE_RUN: dict[str, Case] = {
    "misspelt recipe key": (lambda d, t: "train.max_step=5", "train.max_step"),
    "misspelt DeepSpeed key": (
        lambda d, t: deepspeed_file(t, '{"zero_optimizaton": {"stage": 2}}'),
        "zero_optimizaton.*zero_optimization",
    ),
    "misspelt nested DeepSpeed key": (
        lambda d, t: deepspeed_file(t, '{"zero_optimization": {"stge": 2}}'),
        "zero_optimization.stge.*zero_optimization.stage",
    ),
    "DeepSpeed value out of its range": (
        lambda d, t: deepspeed_file(t, '{"zero_optimization": {"stage": 1, "reduce_bucket_size": -5}}'),
        "DeepSpeed refuses reduce_bucket_size=-5 .*: change it in the DeepSpeed file",
    ),
    "tracker without its package": (
        lambda d, t: "log.trackers=[comet]",
        "log.trackers holds comet, whose package is not installed: run `pip install comet_ml`, or leave comet out",
    ),
    "missing dataset": (lambda d, t: f"data.path={t / 'nothing'}", "nothing is not a folder: make it with scaletrain"),
    "truncated shard": (truncated, "tokens-00001.npy is truncated: 1000 bytes, the index says"),
    "batch larger than the data": (
        lambda d, t: "train.global_batch_size=100000",
        "fewer than one batch of train.global_batch_size=100000: prepare more text",
    ),
    "context longer than the data": (
        lambda d, t: "data.context_length=1M",
        "samples of 1000000 tokens, fewer than one batch of train.global_batch_size=8: prepare more",
    ),
}


def check(done: Done, message: str) -> None:
    assert done.code == 2, done
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    import re

    assert re.search(message, done.err), done.err


@pytest.mark.parametrize("case", BEFORE_THE_RUN)
def test_a_fault_is_one_line_before_anything_is_written(case: str, dataset: Dataset, tmp_path: Path) -> None:
    override, message = BEFORE_THE_RUN[case]
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    check(pretrain(recipe, override(dataset, tmp_path)), message)
    assert not (tmp_path / "run" / "checkpoints").exists() or not any((tmp_path / "run" / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder, dataset, folder / "run")
    assert pretrain(recipe, "train.max_steps=4").code == 0
    return folder


def test_a_fault_that_is_found_inside_the_run_folder_is_told_afterwards(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    check(pretrain(recipe, "data.max_epochs=0.01"), "would be read more often than its max_epochs")
    told = scaletrain("runs", tmp_path).out
    assert "failed" in told
    assert "would be read more often than its max_epochs" in told


def other_data(dataset: Dataset, folder: Path, texts: list[Path], *options: str) -> Path:
    inputs = [argument for text in texts for argument in ("--input", str(text))]
    done = scaletrain("prepare", *inputs, "--output", folder / "other", *options)
    assert done.code == 0, done.err
    return folder / "other"


def test_resuming_with_another_dataset_model_or_tokenizer_is_refused_and_changes_nothing(
    dataset: Dataset, texts: list[Path], finished: Path, tmp_path: Path
) -> None:
    recipe, run = finished / "recipe.yaml", finished / "run"
    before = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file() and "logs" not in p.parts}
    data = other_data(dataset, tmp_path, texts[:3], "--tokenizer", str(dataset.path / "tokenizer"))
    check(pretrain(recipe, f"data.path={data}"), "dataset was .*, is .*: the data changed: resume with the dataset")
    shutil.rmtree(data)
    data = other_data(dataset, tmp_path, texts, "--train-tokenizer", "400")
    check(pretrain(recipe, f"data.path={data}"), "tokenizer was .*the data changed|vocab_size was .*the model changed")
    check(pretrain(recipe, "model.num_layers=3"), "num_layers was 2, is 3: the model changed")
    check(pretrain(recipe, "seed=7"), "seed was 1234, is 7: the data changed")
    check(pretrain(recipe, "checkpoint.resume=never"), "already holds step-00000004 and checkpoint.resume is never")
    after = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file() and "logs" not in p.parts}
    assert {p.name for p in after} == {p.name for p in before}
    assert all(after[p] == before[p] for p in before if p.name != ".lock")


def test_a_model_too_small_for_the_tokenizer_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    check(pretrain(recipe, "model.vocab_size=100"), "model.vocab_size=100 is smaller than the tokenizer's 512")


def mount(folder: Path, *options: str) -> None:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")


def test_a_read_only_run_folder_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    mount(tmp_path / "disk", "-o", "ro")
    try:
        recipe = write_recipe(tmp_path, dataset, tmp_path / "disk" / "run")
        check(pretrain(recipe), "run.dir=.* cannot be written .Read-only file system.: choose a folder")
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_not_the_run_where_the_recipe_says_so(
    dataset: Dataset, tmp_path: Path
) -> None:
    mount(tmp_path / "disk", "-o", "size=4m")
    try:
        recipe, run = write_recipe(tmp_path, dataset, tmp_path / "disk" / "run"), tmp_path / "disk" / "run"
        (tmp_path / "disk" / "filler").write_bytes(bytes(3_600_000))
        settings = ["checkpoint.on_failure=continue", "train.max_steps=300", "log.every_steps=100"]
        process = subprocess.Popen(
            [sys.executable, "launch/pretrain.py", str(recipe), *settings, "evaluate.every_steps=null"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while process.poll() is None and "checkpoint_failed" not in events(run):
            time.sleep(0.02)
        (tmp_path / "disk" / "filler").unlink()
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        assert "checkpoint not written (No space left on device)" in out
        assert "training goes on, as checkpoint.on_failure=continue asks" in out
        assert (run / "checkpoints" / "latest").read_text() == "step-00000300\n"
        assert events(run).index("checkpoint_failed") < events(run).index("checkpoint")
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def remount(folder: Path, how: str) -> None:
    """Waits for a moment in which no file there is being written."""
    deadline = time.monotonic() + 30
    while subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("policy", ["stop", pytest.param("continue", marks=pytest.mark.slow)])
def test_a_disk_that_turns_read_only_while_the_run_saves_ends_it_or_costs_checkpoints(
    policy: str, dataset: Dataset, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    run.mkdir()
    mount(run / "checkpoints")
    settings = [f"checkpoint.on_failure={policy}", "train.max_steps=400", "log.every_steps=100"]
    settings += ["checkpoint.every_steps=2", "evaluate.every_steps=null"]
    try:
        process = subprocess.Popen(
            [sys.executable, "launch/pretrain.py", str(recipe), *settings],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while process.poll() is None and "checkpoint" not in events(run):
            time.sleep(0.02)
        remount(run / "checkpoints", "ro")
        if policy == "continue":
            while process.poll() is None and "checkpoint_failed" not in events(run):
                time.sleep(0.02)
            remount(run / "checkpoints", "rw")
        out, err = process.communicate(timeout=90)
        kept = re.search(r"checkpoint not written .Read-only file system.: .*; (step-\d+) is whole", out + err)
        assert kept, (out, err)
        assert process.returncode == (2 if policy == "stop" else 0), err
        if policy == "stop":
            remount(run / "checkpoints", "rw")
            again = pretrain(recipe, *settings)
            assert again.code == 0, again.err
            assert f"from step {int(kept[1][5:])}," in again.out
        assert (run / "checkpoints" / "latest").read_text() == "step-00000400\n"
    finally:
        subprocess.run(["umount", str(run / "checkpoints")], check=True)


def events(run: Path) -> list[str]:
    path = run / "events.jsonl"
    return [line["event"] for line in read_lines(path)] if path.exists() else []


def test_a_full_disk_ends_the_run_in_one_line_with_the_last_checkpoint_whole(dataset: Dataset, tmp_path: Path) -> None:
    mount(tmp_path / "disk", "-o", "size=2m")
    try:
        recipe, run = write_recipe(tmp_path, dataset, tmp_path / "disk" / "run"), tmp_path / "disk" / "run"
        done = pretrain(recipe, "checkpoint.keep_last=100", "checkpoint.every_steps=1", "train.max_steps=1000")
        check(done, "No space left on device.*free space there and run.*again")
        good = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
        assert good
        assert not list((run / "checkpoints").glob(".unfinished-*"))
        shutil.rmtree(run / "checkpoints" / good[0])
        step = json.loads((run / "checkpoints" / good[-1] / "manifest.json").read_text())["state"]["step"]
        again = pretrain(recipe, "checkpoint.every_steps=null", f"train.max_steps={step + 1}")
        assert again.code == 0, again.err
        assert f"from step {step}" in again.out
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)
