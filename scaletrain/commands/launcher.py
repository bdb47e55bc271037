"""What starts the ranks of a training program, for the commands that launch one."""

import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = Path("launch", "pretrain.py")
RANKS = "{ranks}"  # in a launcher's words: their number
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}")


def script_in(places: Sequence[Path], script: Path = SCRIPT) -> Path | None:
    """The program of a rank, in the first of the places that has it: an installed package has none beside it."""
    return next((place / script for place in places if (place / script).is_file()), None)


def with_ranks(words: Sequence[str], ranks: int) -> list[str]:
    """A launcher's words for so many ranks."""
    return [word.replace(RANKS, str(ranks)) for word in words]
