"""A whole run from a bucket: a cache smaller than the dataset, a kill, a resume with other ranks, an audit."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scaletrain.data.shards import Dataset, open_dataset
from tests.conftest import ROOT, pretrain, scaletrain
from tests.data.servers import s3_server
from tests.launch.test_data import events, losses, recipe_of, succeed


@pytest.fixture(scope="module")
def many_shards(dataset: Dataset, texts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The texts in about twenty small shards."""
    output = tmp_path_factory.mktemp("many") / "data"
    inputs = [argument for text in texts for argument in ("--input", str(text))]
    tokenizer = ("--tokenizer", dataset.path / "tokenizer")
    done = scaletrain(
        "prepare", *inputs, "--separator", "\\n\\n", "--output", output, *tokenizer, "--shard-tokens", "8000"
    )
    assert done.code == 0, done.err
    return open_dataset(output)


def upload(dataset: Dataset, put: Any) -> None:
    for path in sorted(dataset.path.rglob("*")):
        if path.is_file():
            put(f"data/{path.relative_to(dataset.path)}", path.read_bytes())


def cached_bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in (cache / "shards").iterdir())


def test_from_a_bucket_through_a_small_cache_a_kill_and_fewer_ranks_the_losses_are_those_of_a_local_run(
    many_shards: Dataset, tmp_path: Path
) -> None:
    order = {"shuffle_window_shards": 2}
    for folder in ("local", "remote"):
        (tmp_path / folder).mkdir()
    # At a rate ten times as high, some texts make two ranks' rounding grow to 1e-3 within the 60 steps.
    settings = ["deepspeed=ds_configs/zero0.json", "optim.lr=0.001"]
    local = recipe_of(tmp_path / "local", many_shards, {"path": many_shards.name, **order}, max_steps=60)
    succeed(pretrain(local, *settings, ranks=1))
    limit = 5 * max(shard.tokens for shard in many_shards.train) * 2 + 5 * 128
    whole = sum(shard.tokens * 2 for shard in many_shards.train)
    assert limit < whole / 2
    with s3_server() as store:
        upload(many_shards, store.put)
        remote = recipe_of(
            tmp_path / "remote",
            many_shards,
            {
                "path": f"{store.url}/data",
                "storage_options": store.options,
                "cache": {"dir": str(tmp_path / "cache"), "max_gb": limit / 1e9},
                **order,
            },
            max_steps=60,
        )
        run = tmp_path / "remote" / "run"
        script = ["launch/pretrain.py", str(remote), *settings]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *script]
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").is_file() or len(losses(run)) < 21:
            assert time.monotonic() < deadline, "step 21 was not reached"
            time.sleep(0.05)
        subprocess.run(["pkill", "-KILL", "-f", str(remote)], check=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        succeed(pretrain(remote, *settings, ranks=1))
        assert cached_bytes(tmp_path / "cache") <= limit
        assert not list((tmp_path / "cache" / "shards").glob("*.part"))
        ours, theirs = losses(tmp_path / "local" / "run"), losses(run)
        assert ours.keys() == theirs.keys()
        assert max(abs(ours[step] - theirs[step]) for step in ours) < 1e-5
        assert [event["ranks"] for event in events(run, "start") + events(run, "resume")] == [2, 1]
        ends = [events(tmp_path / folder / "run", "checkpoint")[-1]["sample_digest"] for folder in ("local", "remote")]
        assert ends[0] == ends[1]
        audit = scaletrain("audit", run)
        assert audit.code == 0, audit.err + audit.out


def test_a_shard_that_stays_wrong_ends_the_run_with_its_name_after_saving(many_shards: Dataset, tmp_path: Path) -> None:
    with s3_server() as store:
        upload(many_shards, store.put)
        victim = many_shards.train[6]
        store.put(f"data/{victim.file}", bytes(128 + 2 * victim.tokens))
        recipe = recipe_of(
            tmp_path,
            many_shards,
            {
                "path": f"{store.url}/data",
                "storage_options": store.options,
                "cache": {"dir": str(tmp_path / "cache")},
                "shuffle": False,
            },
            max_steps=400,
        )
        done = pretrain(recipe, "checkpoint.every_steps=1000", ranks=2, launcher="torchrun")
    assert done.code != 0
    told = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert victim.file in told[0]
    run = tmp_path / "run"
    (saved,) = events(run, "checkpoint")
    assert saved["step"] == max(losses(run))
    manifest = json.loads((run / "checkpoints" / saved["checkpoint"] / "manifest.json").read_text())
    assert manifest["state"]["samples_seen"] == saved["samples_seen"] > 0


def test_an_evaluation_that_one_rank_cannot_read_ends_all_with_its_name_after_saving(
    many_shards: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(many_shards.path, tmp_path / "data")
    (victim,) = many_shards.validation
    (tmp_path / "data" / victim.file).write_bytes(bytes(128 + 2 * victim.tokens))
    data = {"path": f"file://{tmp_path}/data", "cache": {"dir": str(tmp_path / "cache")}}
    recipe = recipe_of(tmp_path, many_shards, data)
    keys = ("evaluate.every_steps=3", "evaluate.max_samples=1", "evaluate.batch_size=1", "checkpoint.every_steps=1000")
    done = pretrain(recipe, *keys, ranks=2, launcher="torchrun")  # rank 1 has only padding to evaluate
    assert done.code != 0
    told = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert victim.file in told[0]
    assert [event["step"] for event in events(tmp_path / "run", "checkpoint")] == [3]
