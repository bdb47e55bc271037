"""Python's garbage collector stays off the steps, and is afterwards as it was."""

import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.engine import garbage
from tests.conftest import ROOT, run_program, write_recipe

# In every process of the run: a collector that would come often, and a file with the functions at work when it came.
WATCH = """\
import gc, os, sys, threading

def tell(phase, info):
    if phase == "start":
        frame, names = sys._current_frames().get(threading.main_thread().ident), []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        if "_step_or_go_back" in names or "collect_if_due" in names:
            with open(os.environ["COLLECTIONS"], "a") as file:
                file.write(" ".join(names) + "\\n")

gc.callbacks.append(tell)
gc.set_threshold(1000)
"""


@pytest.fixture
def collector() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()


def collections_by_themselves(cycles: int) -> int:
    before = sum(generation["collections"] for generation in gc.get_stats())
    for _ in range(cycles):
        loop: list[object] = []
        loop.append(loop)
    return sum(generation["collections"] for generation in gc.get_stats()) - before


@pytest.mark.usefixtures("collector")
def test_nothing_is_collected_by_itself_and_the_collector_comes_back() -> None:
    assert collections_by_themselves(5000) > 0
    with garbage.held_off():
        assert collections_by_themselves(5000) == 0
        assert gc.get_freeze_count() > 10_000
        with garbage.let_in():
            assert collections_by_themselves(5000) > 0
        assert collections_by_themselves(5000) == 0
        for step in range(1, garbage.EVERY_STEPS):
            garbage.collect_if_due(step)
        assert gc.get_count()[0] > 5000, "the loops are still there"
        garbage.collect_if_due(garbage.EVERY_STEPS)
        assert gc.get_count()[0] < 1000
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("collector")
def test_the_collector_comes_back_after_an_exception() -> None:
    with suppress(KeyError), garbage.held_off(), garbage.let_in():
        raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("collector")
def test_who_had_switched_it_off_finds_it_off() -> None:
    gc.disable()
    gc.freeze()
    frozen = gc.get_freeze_count()
    with garbage.held_off(), garbage.let_in():
        assert gc.isenabled()
    assert not gc.isenabled()
    assert gc.get_freeze_count() >= frozen


def test_a_run_collects_at_no_step_but_in_evaluations(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    told = tmp_path / "collections"
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    settings = ["train.max_steps=50", "evaluate.every_steps=20", "checkpoint.every_steps=20"]
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = run_program("launch/pretrain.py", recipe, *settings, PYTHONPATH=path, COLLECTIONS=str(told))
    assert done.code == 0, done.err
    stacks = [line.split() for line in told.read_text().splitlines()]
    assert any("evaluate" in names for names in stacks)
    assert [names[1] for names in stacks if "evaluate" not in names] == ["collect_if_due"]  # step 50's
