"""A SLURM job before it is submitted: its runs, what it writes into their folders, and its script."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scaletrain import __version__
from scaletrain.cluster import submission
from scaletrain.cluster.batch import Batch, Told, array_of, body_of, container, job_script
from scaletrain.commands.checked_recipe import CheckedRecipe
from scaletrain.commands.launcher import find_script
from scaletrain.commands.supervised_folder import bytes_of_events
from scaletrain.config.data_rules import input_places
from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.config.load import SOURCE_TREE
from scaletrain.runtime.files import write_whole

BODY = Path("slurm", "pretrain.sbatch")
Runs = Mapping[int | None, CheckedRecipe]  # by the array's task; a single run has none


@dataclass(frozen=True)
class JobPlan:
    """A job, not yet written. Each task of its array, if it is one, is a run."""

    runs: Runs
    batch: Batch
    told: Told

    @property
    def script(self) -> str:
        places = (SOURCE_TREE, Path.cwd())
        return job_script(self.batch, self.told, body_of(find_script(places, BODY)))

    def write(self) -> Path:
        """Writes all that the job reads; gives its script."""
        text, path = self.script, self.told.folder / "job.sbatch"
        self.told.folder.mkdir(parents=True)
        for task, run in self.runs.items():
            run.freeze(self.told.recipe(task), self.told.deepspeed(task))
        write_whole(path, text)
        return path

    def note(self, job: str) -> None:
        """Writes down, in each run's folder, which job is to train it."""
        for task, run in self.runs.items():
            name = job if task is None else f"{job}_{task}"
            submission.note(
                run.folder, name, self.log_of(job, task), self.told.cancelled(task), bytes_of_events(run.folder)
            )

    def log_of(self, job: str, task: int | None) -> Path:
        return self.batch.log.with_name(f"{job}.log" if task is None else f"{job}_{task}.log")


def plan_job(
    root: Path, runs: Runs, batch: Batch, *, image: str | None = None, most_at_once: int | None = None
) -> JobPlan:
    """`root`: the run's folder, or the sweep's."""
    folder = submission.next_folder(root.absolute())
    tasks = [task for task in runs if task is not None]
    home = find_script((SOURCE_TREE, Path.cwd())).absolute().parents[1]
    variables = {"SCALETRAIN_HOME": str(home), "SCALETRAIN": str(Path(sys.executable).with_name("scaletrain"))}
    if isinstance(next(iter(runs.values())).recipe, FinetuneRecipe):
        variables["SCALETRAIN_PROGRAM"] = "finetune"
    if image is not None:
        places = _outermost([batch.workdir, home, root.absolute(), *_local_data(runs)])
        variables |= container(image, places, batch.workdir, gpus=batch.gpus_per_node > 0)
    comments = [
        f"Written by scaletrain {__version__}: {shlex.join(['scaletrain', *sys.argv[1:]])}",
        *(f"task {task} is {run.folder.name}" for task, run in runs.items() if task is not None),
    ]
    return JobPlan(
        runs,
        replace(
            batch,
            name=batch.name or _name(root, runs),
            log=folder / ("%A_%a.log" if tasks else "%j.log"),
            array=array_of(tasks, most_at_once) if tasks else None,
        ),
        Told(folder, variables, comments),
    )


def missing_data(runs: Runs) -> list[str]:
    """Local data that this machine does not have: the nodes may."""
    return [str(path) for path in _local_data(runs) if not path.exists()]


def _name(root: Path, runs: Runs) -> str:
    first = next(iter(runs.values()))
    return first.recipe.run.name or root.absolute().name


def _local_data(runs: Runs) -> list[Path]:
    """What the runs read by a path."""
    found = [place for run in runs.values() for place in input_places(run.recipe).values()]
    return [Path(name).expanduser().absolute() for name in dict.fromkeys(found) if "://" not in name]


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """Each once, without those inside of another."""
    unique = list(dict.fromkeys(paths))
    return [path for path in unique if not any(other in path.parents for other in unique)]
