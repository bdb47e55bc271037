"""What many tests stand on: a small dataset of real text, prepared once, and programs run as a user runs them."""

import contextlib
import io
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from scaletrain.data.shards import Dataset, open_dataset
from scaletrain.runtime.ports import free_port
from tests.fake_slurm import FakeSlurm

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["OMP_NUM_THREADS"] = "1"  # for the programs that tests start
torch.set_num_threads(1)  # threads that wait for each other make tiny tensors a hundred times slower on a busy machine


@dataclass(frozen=True)
class Done:
    """How a program ended."""

    code: int
    out: str
    err: str


def run_program(*arguments: str | Path, seconds: float = 300, **env: str) -> Done:
    """Runs `python ARGUMENTS` in the repository's root."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=seconds, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def scaletrain(*arguments: str | Path) -> Done:
    """Runs the `scaletrain` command inside this process: importing torch for each call would take most of the time."""
    from scaletrain.cli import main

    out, err, before, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["scaletrain", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.argv = before
    return Done(code, out.getvalue(), err.getvalue())


RECIPE = """\
run: {{dir: {run}}}
data: {{path: {data}, context_length: 32}}
model: {{preset: llama-tiny, num_layers: 2, hidden_size: 32}}
deepspeed: ds_configs/zero1.json
train: {{max_steps: 12, global_batch_size: 8, precision: fp32}}
optim: {{lr: 0.01, warmup_steps: 2}}
checkpoint: {{every_steps: 4}}
evaluate: {{every_steps: 6, max_samples: 8}}
log: {{every_steps: 1, tensorboard: false}}
"""


def write_recipe(folder: Path, dataset: Dataset, run: Path) -> Path:
    """A recipe of a model that trains twelve steps in a second."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(run=run, data=dataset.path), encoding="utf-8")
    return path


def pretrain(recipe: Path, *overrides: str, ranks: int = 1, launcher: str = "python") -> Done:
    """Runs launch/pretrain.py as its users do."""
    script, port = ["launch/pretrain.py", str(recipe), *overrides], f"--master_port={free_port()}"
    programs: dict[str, Sequence[str]] = {
        "python": script,
        "torchrun": ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone", *script],
        "deepspeed": ["-m", "deepspeed.launcher.runner", "--quiet", f"--num_gpus={ranks}", port, *script],
    }
    return run_program(*programs[launcher])


@pytest.fixture(scope="session")
def texts() -> list[Path]:
    """Some of Python's own source files: real text that is on every machine."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [root / name for name in ("argparse.py", "ast.py", "codecs.py", "configparser.py", "copy.py", "csv.py")]


@pytest.fixture(scope="session")
def dataset(texts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The texts in several shards, with a byte-level BPE of 512 tokens trained on them."""
    output = tmp_path_factory.mktemp("dataset") / "data"
    inputs = [argument for text in texts for argument in ("--input", str(text))]
    done = scaletrain("prepare", *inputs, "--output", output, "--train-tokenizer", "512", "--shard-tokens", "30000")
    assert done.code == 0, done.err
    return open_dataset(output)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """SLURM's commands on the PATH, as far as a test lays their answers down."""
    return FakeSlurm(tmp_path / "slurm", monkeypatch)
