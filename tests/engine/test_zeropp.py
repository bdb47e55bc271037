"""ZeRO-3 with a second copy of the weights a node: the losses of ZeRO-3, and a state that resumes."""

from functools import partial
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.runtime import dist
from tests.engine.test_switches import task_of
from tests.engine.training import train
from tests.ranks import run_ranks

COPIES = {"zero_hpz_partition_size": 2}


def losses(path: str, root: str, *, resume: bool) -> list[list[float]]:
    """Without copies, then with them: saved on the way, or resumed. DeepSpeed makes the groups of a copy once a
    process."""
    return [
        train(
            3,
            "bf16",
            task_of(path),
            steps=6,
            accumulation=8 // dist.size(),
            zero=zero,
            save_at=3 if zero and not resume else None,
            root=Path(root),
            resume=resume,
        )
        for zero in ({}, COPIES)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_losses_and_a_resume_equal_those_without_copies(ranks: int, dataset: Dataset, tmp_path: Path) -> None:
    begun = partial(losses, str(dataset.path), str(tmp_path), resume=False)
    plain, saved = run_ranks(begun, ranks, seconds=400)[0]
    assert saved == plain
    resumed = partial(losses, str(dataset.path), str(tmp_path), resume=True)
    assert run_ranks(resumed, ranks, seconds=400)[0] == [plain[3:], plain[3:]]
