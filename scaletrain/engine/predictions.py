"""What a run's evaluations said of single rows: files of the last one and of the best one."""

import json
from pathlib import Path

from scaletrain.engine.evaluate import Evaluation
from scaletrain.runtime.files import write_json, write_whole

FOLDER = "predictions"


def keep_predictions(run: Path, step: int, found: Evaluation, best_step: int | None) -> None:
    """Writes step-N.jsonl with a line a row, and step-N.json with what the scores do not say (a confusion matrix, a
    signature), and removes all others but those of `best_step`. Rank 0 only."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    name = folder / f"step-{step:08d}.jsonl"
    write_whole(name, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found.predictions))
    write_json(name.with_suffix(".json"), {"step": step, **found.scores.values, **found.scores.details})
    kept = {f"step-{known:08d}" for known in (step, best_step) if known is not None}
    for other in folder.glob("step-*.json*"):
        if other.stem not in kept:
            other.unlink(missing_ok=True)
