"""EleutherAI's evaluation harness (lm-eval) on a Hugging Face folder."""

from pathlib import Path
from typing import Any

from scaletrain.commands.model_source import is_hugging_face, quiet_libraries
from scaletrain.errors import ConfigError, DataError


def run_harness(
    model: Path, tasks: str, tasks_folder: Path | None, batch_size: int, max_samples: int | None, dtype: str | None
) -> dict[str, Any]:
    """Task -> its metrics, as the harness tells them. `tasks`: names with commas, of the harness or of YAML files in
    `tasks_folder`. ConfigError when it is not installed or does not know a task."""
    if not is_hugging_face(model):
        raise ConfigError(f"--lm-eval needs a Hugging Face folder, {model} is none: scaletrain export {model} OUT_DIR")
    quiet_libraries()
    import torch

    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(f"--lm-eval needs the package lm-eval ({error}): pip install 'scaletrain[eval]'") from error
    if tasks_folder is not None and not tasks_folder.is_dir():
        raise DataError(f"--lm-eval-tasks {tasks_folder} is not a folder: give one with task files (.yaml)")
    manager = TaskManager(include_path=str(tasks_folder) if tasks_folder is not None else None)
    wanted = [name.strip() for name in tasks.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in manager.all_tasks]
    if unknown or not wanted:
        raise ConfigError(
            f"--lm-eval {tasks}: {unknown[0] if unknown else 'nothing'} is no task of the harness: see `lm-eval ls "
            "tasks`, or give its file's folder with --lm-eval-tasks"
        )
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": dtype or "auto"},
        tasks=wanted,
        task_manager=manager,
        batch_size=batch_size,
        limit=max_samples,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    assert found is not None  # on rank 0, and there is one
    results: dict[str, Any] = found["results"]
    return results
