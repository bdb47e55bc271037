"""Other people's trackers: what they are told, and that nothing of theirs reaches the run."""

import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from scaletrain.errors import ConfigError
from scaletrain.track.tracker_sink import TrackerSink
from scaletrain.track.trackers import PACKAGES, TRACKERS, TrackedRun, check_trackers, tracker_id


class Recorder:
    """Stands for any object of a package: what is called on it is noted."""

    def __init__(self, calls: list[tuple[str, Any]], name: str, **answers: Any) -> None:
        self._calls, self._name, self._answers = calls, name, answers

    def __getattr__(self, method: str) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            self._calls.append((f"{self._name}.{method}", (*args, kwargs) if kwargs else args))
            return self._answers.get(method)

        return called


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Small packages in the place of the real ones; what they are asked."""
    noted: list[tuple[str, Any]] = []
    info = types.SimpleNamespace(info=types.SimpleNamespace(run_id="mlflow-1"))
    client = Recorder(noted, "mlflow", create_experiment="7", create_run=info, search_runs=[])
    entities = types.SimpleNamespace(Param=lambda k, v: (k, v), Metric=lambda k, v, at, step: (k, v, step))
    fakes: dict[str, Any] = {
        "wandb": Recorder(noted, "wandb", init=Recorder(noted, "wandb")),
        "trackio": Recorder(noted, "trackio", init=Recorder(noted, "trackio")),
        "comet_ml": Recorder(noted, "comet", start=Recorder(noted, "comet")),
        "mlflow": types.SimpleNamespace(),
        "mlflow.entities": entities,
        "mlflow.tracking": types.SimpleNamespace(MlflowClient=lambda: client),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return noted


def tracked(folder: Path) -> TrackedRun:
    return TrackedRun(tracker_id(folder), "small", "mine", folder, {"optim.lr": 0.1, "run.dir": "x"})


def write(name: str, run: TrackedRun, *steps: int) -> list[str]:
    said: list[str] = []
    sink = TrackerSink(name, lambda: TRACKERS[name](run), said.append)
    for step in steps:
        sink.write(step, {"loss": 2.0, "mfu": None, "grad_norm": float("inf"), "done": True, "why": "x"})
        sink.write(step, {"eval_loss": 3.0})
    sink.close()
    return said


def test_each_tracker_gets_parameters_numbers_and_the_end(tmp_path: Path, calls: list[tuple[str, Any]]) -> None:
    run = tracked(tmp_path)
    assert [write(name, run, 5) for name in TRACKERS] == [[], [], [], []]
    told = dict(calls)  # the last call of each
    assert told["wandb.init"][-1]["id"] == run.id
    assert told["wandb.init"][-1]["resume"] == "allow"
    assert told["wandb.init"][-1]["config"] == {"optim.lr": 0.1, "run.dir": "x"}
    assert ("wandb.log", ({"step": 5, "train/loss": 2.0},)) in calls
    assert ("wandb.log", ({"step": 5, "evaluate/loss": 3.0},)) in calls
    assert ("mlflow.log_batch", ("mlflow-1", {"params": [("optim.lr", "0.1"), ("run.dir", "x")]})) in calls
    assert ("mlflow.log_batch", ("mlflow-1", {"metrics": [("train/loss", 2.0, 5)]})) in calls
    assert ("trackio.log", ({"train/loss": 2.0}, {"step": 5})) in calls
    assert ("comet.log_metrics", ({"train/loss": 2.0}, {"step": 5})) in calls
    assert told["comet.start"][-1]["experiment_key"] == run.id
    assert {"wandb.finish", "mlflow.set_terminated", "trackio.finish", "comet.end"} <= told.keys()


def test_a_resume_goes_on_with_the_same_runs(
    tmp_path: Path, calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = tracked(tmp_path), tracked(tmp_path)
    assert first.id == again.id
    assert len(first.id) == 32
    assert first.id.isalnum()
    (tmp_path / "other").mkdir()
    assert tracker_id(tmp_path / "other") != first.id
    found = types.SimpleNamespace(info=types.SimpleNamespace(run_id="mlflow-0"))
    client = Recorder(calls, "mlflow", create_experiment="7", search_runs=[found])
    monkeypatch.setitem(sys.modules, "mlflow.tracking", types.SimpleNamespace(MlflowClient=lambda: client))
    write("mlflow", again, 5)
    assert not [call for call in calls if call[0] == "mlflow.create_run"]
    assert ("mlflow.search_runs", (["7"], f"tags.scaletrain_id = '{first.id}'", {"max_results": 1})) in calls
    assert ("mlflow.log_batch", ("mlflow-0", {"metrics": [("train/loss", 2.0, 5)]})) in calls


def test_a_package_that_is_missing_is_a_line_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, package in PACKAGES.items():
        monkeypatch.delitem(sys.modules, package, raising=False)
        with pytest.raises(ConfigError) as told:
            check_trackers([name])
        assert str(told.value) == (
            f"log.trackers holds {name}, whose package is not installed: run `pip install {package}`, or leave "
            f"{name} out"
        )
    check_trackers([])


class Faulty:
    def __init__(self, bad: int) -> None:
        self._left = bad

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._left -= 1
        if self._left >= 0:
            raise RuntimeError("no\nroute")

    def finish(self) -> None: ...


def test_faults_are_told_once_and_counted() -> None:
    said: list[str] = []
    sink = TrackerSink("wandb", lambda: Faulty(3), said.append)
    for step in range(5):
        sink.write(step, {"loss": 1.0})
    sink.close()
    assert said == [
        "note    wandb takes no metrics: RuntimeError: no route; training goes on without it",
        "note    3 of 5 lines did not reach wandb; metrics.jsonl has them",
    ]


def test_a_tracker_that_cannot_be_opened_costs_no_more_than_a_line() -> None:
    def refuse() -> Faulty:
        raise ValueError("no API key")

    said: list[str] = []
    sink = TrackerSink("comet", refuse, said.append)
    sink.write(1, {"loss": 1.0})
    sink.close()
    assert said[0] == "note    comet takes no metrics: ValueError: no API key; training goes on without it"
    assert said[1:] == ["note    1 of 1 lines did not reach comet; metrics.jsonl has them"]


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    released = threading.Event()
    yield released
    released.set()


def test_a_tracker_that_hangs_holds_up_no_step_and_no_end(stuck: threading.Event) -> None:
    class Hangs(Faulty):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            stuck.wait()

    said: list[str] = []
    sink = TrackerSink("mlflow", lambda: Hangs(0), said.append, last_seconds=0.2)
    began = time.monotonic()
    for step in range(1500):
        sink.write(step, {"loss": 1.0})
    assert time.monotonic() - began < 1.0
    sink.close()
    assert time.monotonic() - began < 3.0
    assert said == [
        "note    mlflow takes no metrics: it is 1,000 lines behind; training goes on without it",
        "note    1,500 of 1,500 lines did not reach mlflow; metrics.jsonl has them",
    ]


OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "COMET_START_ONLINE": "0",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", list(TRACKERS))
def test_the_real_packages_take_a_run_and_its_resume(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in OFFLINE.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip(PACKAGES[name])  # trackio reads its variable as it is imported
    run = tracked(tmp_path)
    for steps in ((1, 2), (3, 4)):
        assert write(name, run, *steps) == []
    if name == "wandb":
        assert len({path.name for path in (tmp_path / "wandb").glob(f"offline-run-*-{run.id}")}) == 2
    elif name == "comet":
        assert len(list((tmp_path / "comet").glob(f"{run.id}*.zip"))) == 2
    elif name == "mlflow":
        (found,) = (tmp_path / "mlruns").glob("*/*/metrics/train/loss")
        assert [int(line.split()[2]) for line in found.read_text().splitlines()] == [1, 2, 3, 4]
    else:
        import sqlite3

        (database,) = (tmp_path / "trackio").glob("*.db")
        with sqlite3.connect(database) as opened:
            rows = opened.execute(
                "select distinct run_name, step from metrics where cast(metrics as text) like '%train/loss%'"
            )
            assert sorted(rows) == [(f"small-{run.id[:6]}", step) for step in (1, 2, 3, 4)]
