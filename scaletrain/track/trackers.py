"""Experiment trackers of others, one small class each; a package is imported only where its tracker is asked for."""

import importlib.util
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scaletrain.errors import ConfigError
from scaletrain.runtime.files import write_whole

_ID_FILE = "tracker-id"
_MLFLOW_TAG = "scaletrain_id"
_MLFLOW_PARAMETERS = 100  # in one request
_MLFLOW_CHARACTERS = 6000  # of a parameter


@dataclass(frozen=True)
class TrackedRun:
    """`id`: 32 letters and digits, the run's own for ever; `parameters`: the recipe by dotted keys."""

    id: str
    name: str
    project: str
    folder: Path
    parameters: Mapping[str, Any]


class Tracker(Protocol):
    """Made with a TrackedRun, whose earlier launches it goes on from. Where it sends to, the package's own variables
    and files decide. It may raise anything and take its time: see tracker_sink.py."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self) -> None:
        """Sends what is left."""
        ...


class WeightsAndBiases:
    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=run.project, name=run.name, id=run.id, resume="allow", dir=str(run.folder),
            config=dict(run.parameters),
        )  # fmt: skip
        # A value of ours, for wandb's own step never goes back, and a run that rolls back does.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def finish(self) -> None:
        self._run.finish()


class MLflow:
    """Through its client with the run's id: the plain functions hold the run that is active in a thread."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(run.project)
        where = experiment.experiment_id if experiment is not None else self._client.create_experiment(run.project)
        if found := self._client.search_runs([where], f"tags.{_MLFLOW_TAG} = '{run.id}'", max_results=1):
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        made = self._client.create_run(where, run_name=run.name, tags={_MLFLOW_TAG: run.id})
        self._id = made.info.run_id
        parameters = [Param(key, str(value)[:_MLFLOW_CHARACTERS]) for key, value in run.parameters.items()]
        for first in range(0, len(parameters), _MLFLOW_PARAMETERS):
            self._client.log_batch(self._id, params=parameters[first : first + _MLFLOW_PARAMETERS])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def finish(self) -> None:
        self._client.set_terminated(self._id)


class Trackio:
    """It knows a run by its name."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        name = f"{run.name}-{run.id[:6]}"
        self._run = trackio.init(project=run.project, name=name, config=dict(run.parameters), resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


class Comet:
    def __init__(self, run: TrackedRun) -> None:
        import comet_ml

        quiet = comet_ml.ExperimentConfig(
            name=run.name, log_code=False, log_graph=False, auto_param_logging=False, auto_metric_logging=False,
            auto_output_logging=False, parse_args=False, offline_directory=str(run.folder / "comet"),
        )  # fmt: skip
        self._experiment = comet_ml.start(
            project_name=run.project, experiment_key=run.id, mode="get_or_create", experiment_config=quiet
        )
        self._experiment.log_parameters(dict(run.parameters))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._experiment.log_metrics(dict(values), step=step)

    def finish(self) -> None:
        self._experiment.end()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
    "comet": Comet,
}
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio", "comet": "comet_ml"}


def check_trackers(names: Sequence[str]) -> None:
    """ConfigError when a package that is asked for is not there."""
    for name in names:
        package = PACKAGES[name]
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"log.trackers holds {name}, whose package is not installed: run `pip install {package}`, or leave "
                f"{name} out"
            )


def tracker_id(folder: Path) -> str:
    """The run's, made once: with it a resume goes on with the same runs of its trackers."""
    path = folder / _ID_FILE
    if not path.is_file():
        write_whole(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8").strip()
