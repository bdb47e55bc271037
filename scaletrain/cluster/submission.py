"""What a run folder remembers of the SLURM job that was last submitted for it: submit/job.json."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from scaletrain.errors import ClusterError
from scaletrain.runtime.files import write_json

FOLDER = "submit"
FILE = Path(FOLDER, "job.json")


@dataclass(frozen=True)
class Submission:
    """`job`: SLURM's number, 12_3 in an array. The paths are relative to the run folder, which may be moved."""

    job: str
    log: str
    cancelled: str  # see batch.Told
    events_bytes: int  # size of events.jsonl when it was submitted: what comes after is of this job
    time: float


def note(run: Path, job: str, log: Path, cancelled: Path, events_bytes: int) -> None:
    """Writes down what was submitted for a run."""
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    paths = (os.path.relpath(log, run), os.path.relpath(cancelled, run))
    write_json(run / FILE, asdict(Submission(job, *paths, events_bytes, time.time())))


def read(run: Path) -> Submission | None:
    """What was last submitted for a run; None: nothing was."""
    try:
        return Submission(**json.loads((run / FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(
            f"{run / FILE} cannot be read ({error}): remove it; SLURM's squeue lists your jobs"
        ) from None


def submitted_below(folder: Path) -> list[Path]:
    """The runs of a sweep's folder."""
    return sorted(file.parents[1] for file in folder.glob(f"*/{FILE}"))


def next_folder(run: Path) -> Path:
    """The first of RUN/submit/0001, 0002 ... that is not there."""
    numbers = [int(path.name) for path in (run / FOLDER).glob("[0-9]*") if path.name.isdecimal()]
    return run / FOLDER / f"{max(numbers, default=0) + 1:04d}"
