"""Names below a run's folder `checkpoints`, for training and for what watches it from outside, without torch."""

from pathlib import Path

MANIFEST = "manifest.json"  # written last: a folder that has it is whole
STEP, UNFINISHED = "step-", ".unfinished-"


def step_names(root: Path) -> dict[str, int]:
    """The checkpoints below `root` and their steps, oldest first, whole or not."""
    found = {p.name: p.name.removeprefix(STEP) for p in sorted(root.glob(f"{STEP}*")) if p.is_dir()}
    return {name: int(step) for name, step in found.items() if step.isdecimal()}  # not step-4.bak
