"""Run folders as launches leave them, made by hand: records, jobs and logs, without any training."""

import json
from pathlib import Path
from typing import Any

from scaletrain.cluster import submission
from scaletrain.commands.supervised_folder import bytes_of_events

RECIPE = "run: {dir: x}\ndata: {path: x}\nmodel: {preset: llama-tiny}\ntrain: {max_steps: 2000}\n"


class MadeRun:
    """A run's folder, and what is added to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def submitted(self, job: str) -> "MadeRun":
        """A job was submitted for it; its log is made when it says something."""
        number = submission.next_folder(self.folder)
        number.mkdir(parents=True)
        events = bytes_of_events(self.folder)
        submission.note(self.folder, job, number / f"{job}.log", number / "cancelled", events)
        return self

    def said(self, *lines: str) -> "MadeRun":
        found = submission.read(self.folder)
        assert found is not None
        (self.folder / found.log).write_text("".join(f"{line}\n" for line in lines))
        return self

    def event(self, event: str, step: int, **values: Any) -> "MadeRun":
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        return self

    def logged(self, step: int, loss: float | str = 2.5) -> "MadeRun":
        (self.folder / "recipe.yaml").write_text(RECIPE)
        line = {"step": step, "samples": step * 8, "tokens": step * 8192, "loss": loss}
        speed = {"tokens_per_second": 1234.5, "step_seconds": 3.0}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**line, **speed}) + "\n" + json.dumps({"step": step, "eval_loss": 9.9}) + "\n")
        return self

    def saved(self, step: int) -> "MadeRun":
        folder = self.folder / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
        return self
