"""`scaletrain demo`: from Python's own source files to a GPT that completes them, with a kill on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from scaletrain.errors import ConfigError, ScaleTrainError
from scaletrain.runtime.ports import free_port
from scaletrain.runtime.run_files import EVENTS, METRICS

RECIPE = Path("launch/recipes/pretrain-python.yaml")
PROMPT = "    def __init__(self, name, value"


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Folder for everything that the demo writes")] = Path("demo"),
    steps: Annotated[int, typer.Option(min=20, help="Optimizer steps")] = 600,
    ranks: Annotated[int | None, typer.Option(min=1, help="Processes, one a GPU where there are some")] = None,
) -> None:
    """Prepare, train with DeepSpeed on two ranks, be killed half-way, resume, evaluate, export, speak: six minutes."""
    if not RECIPE.is_file():
        raise ConfigError(f"{RECIPE} is not here: run the demo in a clone of the repository")
    began = time.monotonic()
    ranks = ranks or min(2, gpus() or 2)
    tell = Console(highlight=False, soft_wrap=True)
    _make_room(folder)
    data, run, exported = folder / "data", folder / "run", folder / "exported"

    _title(tell, "1. prepare: Python's own source files, tokens by a tokenizer trained on them")
    inputs = [argument for path in python_sources() for argument in ("--input", path)]
    _scaletrain("prepare", *inputs, "--glob", "**/*.py", "--output", str(data), "--train-tokenizer", "8192")

    _title(tell, f"2. pretrain on {ranks} ranks with ZeRO-2, and kill -9 half-way")
    train = _training_command(ranks, [f"run.dir={run}", f"data.path={data}", f"train.max_steps={steps}"])
    killed_at = _train_until_killed(train, run, steps // 2)
    tell.print(f"killed every process with SIGKILL after step {killed_at}")

    _title(tell, "3. the same command again: it resumes by itself")
    _run(train)
    _check_resumed(run, steps)

    _title(tell, "4. audit, evaluate, export, generate")
    _scaletrain("audit", str(run))
    _scaletrain("evaluate", str(run), "--data", str(data), "--max-samples", "512")
    _scaletrain("export", str(run), str(exported))
    _scaletrain("generate", str(exported), "--prompt", PROMPT, "--temperature", "0.5", "--seed", "1")

    _title(tell, f"done in {time.monotonic() - began:.0f} s")
    _summary(tell, run, data, exported, killed_at)


def _make_room(folder: Path) -> None:
    """An empty folder; what an earlier demo left is removed, anything else is refused."""
    marker = folder / ".scaletrain-demo"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--dir {folder} is a file: choose another folder")
    if folder.exists() and any(folder.iterdir()) and not marker.is_file():
        raise ConfigError(f"--dir {folder} holds other things than a demo: choose another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    marker.touch()


def python_sources() -> list[str]:
    """The files and folders of Python's standard library, without the packages that were installed into it."""
    root = Path(sysconfig.get_paths()["stdlib"])
    installed = {"site-packages", "dist-packages", "__pycache__"}
    folders = sorted(str(p) for p in root.iterdir() if p.is_dir() and p.name not in installed and any(p.rglob("*.py")))
    return [str(root / "*.py"), *folders]


def gpus() -> int:
    """How many GPUs torch sees."""
    import torch

    return torch.cuda.device_count()


def _training_command(ranks: int, overrides: list[str]) -> list[str]:
    launcher = Path(sys.executable).parent / "deepspeed"
    own = ["--quiet", "--num_gpus", str(ranks), "--master_port", str(free_port())]  # 29500 may be another run's
    return [str(launcher), *own, "launch/pretrain.py", str(RECIPE), *overrides]


def _environment() -> dict[str, str]:
    """The user's, less what makes each start slow: without bytecode files torch is compiled anew for ten seconds."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return env if gpus() else {**env, "DS_ACCELERATOR": "cpu"}


def _run(command: list[str]) -> None:
    code = subprocess.run(command, env=_environment(), check=False).returncode
    if code:
        raise ScaleTrainError(f"{' '.join(command)} ended with exit code {code}: its own lines above say why")


def _scaletrain(*arguments: str) -> None:
    _run([str(Path(sys.executable).parent / "scaletrain"), *arguments])


def _train_until_killed(command: list[str], run: Path, step: int) -> int:
    """Starts training in a process group of its own and kills the whole group once `step` is logged."""
    process = subprocess.Popen(command, env=_environment(), start_new_session=True)
    try:
        while (reached := _logged_step(run)) < step:
            if process.poll() is not None:
                raise ScaleTrainError(f"training ended by itself with exit code {process.returncode} at step {reached}")
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return reached


def _logged_step(run: Path) -> int:
    metrics = run / METRICS
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def _check_resumed(run: Path, steps: int) -> None:
    events = [json.loads(line) for line in (run / EVENTS).read_text(encoding="utf-8").splitlines()]
    if not any(event["event"] == "resume" for event in events) or _logged_step(run) != steps:
        raise ScaleTrainError(f"{run}: the run did not resume to step {steps}: see {run / EVENTS}")


def _summary(tell: Console, run: Path, data: Path, exported: Path, killed_at: int) -> None:
    lines = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    last = [line for line in lines if "eval_loss" in line][-1]
    tell.print(
        f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, validation {last['eval_loss']:.2f} "
        f"({last['eval_bits_per_byte']:.2f} bits per byte), killed at step {killed_at}, resumed, finished"
    )
    for path, what in (
        (data, "the dataset: flat .npy shards, index.json, tokenizer"),
        (run / METRICS, "one line a logged step; events.jsonl beside it tells the resume"),
        (run / "checkpoints", "hashed, atomic checkpoints"),
        (run / "logs", "what the libraries said, a file a rank"),
        (exported, "a Hugging Face folder"),
    ):
        tell.print(f"  {path}  {what}")
    tell.print(f'try: .venv/bin/scaletrain generate {exported} --prompt "class "')


def _title(tell: Console, text: str) -> None:
    tell.print(f"\n[bold]{text}[/bold]")
