"""What a run's evaluations said of single rows: a JSONL file of the last one and of the best one."""

import json
from collections.abc import Sequence
from pathlib import Path

from scaletrain.runtime.files import write_whole
from scaletrain.tasks.task import Prediction

FOLDER = "predictions"


def keep_predictions(run: Path, step: int, predictions: Sequence[Prediction], best_step: int | None) -> None:
    """Writes those of the evaluation at `step`, whole, and removes all others but those of `best_step`. Rank 0 only."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)
    write_whole(predictions_file(run, step), text)
    kept = {predictions_file(run, known) for known in (step, best_step) if known is not None}
    for other in folder.glob("step-*.jsonl"):
        if other not in kept:
            other.unlink(missing_ok=True)


def predictions_file(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}.jsonl"
