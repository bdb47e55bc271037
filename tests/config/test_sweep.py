"""What a sweep file becomes: names and overrides, or every problem of it."""

from pathlib import Path

import pytest

from scaletrain.config.sweep import SweepRun, load_sweep
from scaletrain.errors import ConfigError


def sweep(folder: Path, text: str) -> list[SweepRun]:
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return load_sweep(path)


def fault(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        sweep(folder, text)
    return str(raised.value).replace(f"{folder}/", "")


def test_a_grid_is_all_combinations_in_the_order_written(tmp_path: Path) -> None:
    assert sweep(tmp_path, "grid: {optim.lr: [1e-3, 3e-4], seed: [1, 2]}") == [
        SweepRun("lr=0.001-seed=1", ("optim.lr=0.001", "seed=1")),
        SweepRun("lr=0.001-seed=2", ("optim.lr=0.001", "seed=2")),
        SweepRun("lr=0.0003-seed=1", ("optim.lr=0.0003", "seed=1")),
        SweepRun("lr=0.0003-seed=2", ("optim.lr=0.0003", "seed=2")),
    ]


def test_listed_runs_come_after_the_grid_and_may_have_names(tmp_path: Path) -> None:
    text = """\
grid: {optim.lr: [1e-5]}
runs:
  - {name: baseline}
  - {name: wide, model.hidden_size: 512, optim.betas: [0.9, 0.99]}
  - {optim.schedule: wsd, train.max_tokens: 1B, run.name: 'null'}
"""
    assert sweep(tmp_path, text) == [
        SweepRun("lr=1e-05", ("optim.lr=1e-05",)),
        SweepRun("baseline", ()),
        SweepRun("wide", ("model.hidden_size=512", "optim.betas=[0.9, 0.99]")),
        SweepRun(
            "schedule=wsd-max_tokens=1B-name=null",
            ("optim.schedule=wsd", 'train.max_tokens="1B"', 'run.name="null"'),
        ),
    ]


def test_a_run_keeps_its_name_when_the_sweep_grows(tmp_path: Path) -> None:
    small = {run.name for run in sweep(tmp_path, "grid: {optim.lr: [1e-3], seed: [1, 2]}")}
    large = {run.name for run in sweep(tmp_path, "grid: {optim.lr: [1e-2, 1e-3], seed: [0, 1, 2]}")}
    assert small < large


def test_names_differ_where_values_differ(tmp_path: Path) -> None:
    long = ", ".join(f"/data/{'x' * 120}/{n}" for n in range(2))
    runs = sweep(tmp_path, f"grid: {{data.path: [a/b, a_b, A b, {long}], checkpoint.every_steps: [1, null]}}")
    names = [run.name for run in runs]
    assert len({name.lower() for name in names}) == len(names) == 10
    assert max(map(len, names)) <= 100
    assert not any(set(name) & set(" /:,'\"$") for name in names)
    both = sweep(tmp_path, "grid: {checkpoint.every_steps: [1], log.every_steps: [2]}")
    assert [run.name for run in both] == ["checkpoint.every_steps=1-log.every_steps=2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "sweep.yaml: a sweep holds grid (lists of values by key), runs (a list of sections) or both, this"),
        ("", "this file holds null: write it like grid: {optim.lr: [1e-3, 3e-4]}"),
        ("gird: {seed: [1]}", "sweep.yaml: gird is unknown: did you mean grid?"),
        ("optim.lr: [1]", "sweep.yaml: optim.lr is unknown: a sweep holds grid, runs or both"),
        ("grid: [1]", "grid=[1] should be a section: a list of values by key, like optim.lr: [1e-3, 3e-4]"),
        ("grid: {seed: 1}", "grid.seed=1 should be a list of values: put them in brackets"),
        ("grid: {seed: []}", "grid.seed=[] should be a list of values: put them in brackets"),
        ("runs: {seed: 1}", "should be a list of sections: a dash before each, like - {optim.lr: 1e-3}"),
        ("runs: [1]", "runs=[1] should be a list of sections"),
        ("runs: []", "sweep.yaml: the sweep has no run: give grid or runs some"),
        ("runs: [{}]", "sweep.yaml: run 1 is empty: set a key, or give it a name"),
        ("runs: [{name: a/b}]", "name=a/b cannot name a run's folder: use letters, digits and . _ = + -, and not"),
        ("runs: [{name: submit}]", "name=submit cannot name a run's folder"),
        ("runs: [{name: a, seed: 1}, {name: a, seed: 2}]", "sweep.yaml: two runs are called a: rename one"),
        ("runs: [{seed: 1}, {seed: 1}]", 'sweep.yaml: two runs set the same: {"seed": 1}: remove one'),
        ("grid: {run.dir: [a, b]}", "run.dir is made by the sweep, a folder a run: set that of the whole sweep"),
        ("runs: [{optim: {lr: 1}}]", "optim is a section of the recipe: name its keys, like optim.lr"),
    ],
)
def test_each_fault_is_a_line(text: str, message: str, tmp_path: Path) -> None:
    assert message in fault(tmp_path, text)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    told = fault(tmp_path, "gird: 1\ngrid: {seed: 1, optim.lr: 2}")
    assert told.startswith("sweep.yaml: 3 problems\n")


def test_a_sweep_that_nobody_means_is_refused_before_it_is_built(tmp_path: Path) -> None:
    values = ", ".join(map(str, range(100)))
    told = fault(tmp_path, f"grid: {{seed: [{values}], optim.lr: [{values}], optim.eps: [{values}]}}")
    assert told == "sweep.yaml: grid has 1,000,000 combinations, more than 10,000: split the sweep"


def test_a_file_that_cannot_be_read_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the sweep cannot be read \\(No such file or directory\\): give the path of"):
        load_sweep(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"grid: {seed: [\xe9]}")
    with pytest.raises(ConfigError, match="the sweep cannot be read \\(not UTF-8 text"):
        load_sweep(tmp_path / "latin.yaml")
