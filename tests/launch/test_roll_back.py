"""A run that meets text which ruins it: it goes back, passes over that text and trains on; killed in between too."""

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from scaletrain.track.sinks import read_lines
from tests.conftest import RECIPE, Done, pretrain, scaletrain


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of text in order, with a stretch of noise in it."""
    folder = tmp_path_factory.mktemp("spoiled")
    draw = random.Random(0)
    lines = [f"the sum of {n % 7} and {n % 5} is {n % 7 + n % 5}.\n" for n in range(3000)]
    noise = "".join(chr(draw.randrange(33, 127)) for _ in range(560))
    texts = {"a": "".join(lines[:900]), "b": noise, "c": "".join(lines)}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    inputs = [part for name in texts for part in ("--input", folder / f"{name}.txt")]
    done = scaletrain("prepare", *inputs, "--output", folder / "data", "--train-tokenizer", "280")
    assert done.code == 0, done.err
    return folder / "data"


SETTINGS = [
    *("data.shuffle=false", "train.max_steps=70", "checkpoint.every_steps=10", "evaluate.every_steps=null"),
    *("optim.schedule=constant", "guard.spike_window=20", "guard.spike_steps=2", "guard.on_spike=roll_back"),
]


def write_recipe(folder: Path, spoiled: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(run=folder / "run", data=spoiled))
    return path


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in read_lines(run / "events.jsonl") if line["event"] == name]


def shown_by_its_lines(done: Done, run: Path) -> list[list[int]]:
    """Positions of the samples that the commands in the lines of the spikes show, in the run as it is now."""
    found = []
    for line in done.out.splitlines():
        if line.startswith("spike "):
            program, *arguments = shlex.split(line.rpartition("; ")[2].removesuffix(" shows them"))
            shown = scaletrain(*arguments, "--json")
            assert (program, shown.code, shown.err) == ("scaletrain", 0, ""), line
            found.append([sample["position"] for sample in json.loads(shown.out)])
    assert len(found) == len(events(run, "spike"))
    return found


def samples_of(event: dict[str, Any]) -> list[int]:
    return list(range(event["first_sample"], event["first_sample"] + event["samples"]))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_passes_over_what_spoils_it_and_its_audit_passes(ranks: int, spoiled: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, spoiled), tmp_path / "run"
    done = pretrain(recipe, *SETTINGS, ranks=ranks, launcher="torchrun" if ranks > 1 else "python")
    assert done.code == 0, done.err
    (spike,), (back,), (over,) = events(run, "spike"), events(run, "roll_back"), events(run, "pass_over")
    assert back["step"] == 40 < spike["first_step"] <= spike["step"] == back["from_step"]
    assert back["checkpoint"] == "step-00000040"
    assert (over["first_sample"], over["samples_seen"]) == (320, spike["first_sample"] + spike["samples"])
    assert json.loads((run / "checkpoints" / "passed-over.json").read_text())[0]["end"] == over["samples_seen"]
    lines = [line for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 71))
    assert lines[-1]["tokens"] == 70 * 8 * 32  # what was passed over is not counted
    assert lines[-1]["samples"] == 70 * 8 + over["samples"]
    assert max(line["loss"] for line in lines[41:]) < spike["loss"]
    audit = scaletrain("audit", run)
    assert audit.code == 0, audit.out + audit.err
    assert f"{over['samples']} samples were passed over" in audit.out
    assert "rolled back at step 40" in audit.out
    assert shown_by_its_lines(done, run) == [samples_of(spike)]
    step, again = spike["first_step"], over["samples_seen"] + (spike["first_step"] - 41) * 8
    shown = scaletrain("audit", run, "--step", str(step), "--json")
    assert [sample["position"] for sample in json.loads(shown.out)] == list(range(again, again + 8))
    assert shown.err == (
        f"note: step {step} was taken 2 times, each on other samples; these are of the last, and those before: "
        f"--from {spike['first_sample']} --show 8\n"
    )
    assert scaletrain("audit", run, "--step", "40").err == scaletrain("audit", run, "--step", "60").err == ""


def test_a_run_killed_after_it_went_back_passes_over_the_same(spoiled: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, spoiled), tmp_path / "run"
    done = pretrain(recipe, *SETTINGS, "train.stop_at_step=45")  # between the roll-back and the next checkpoint
    assert (done.code, len(events(run, "roll_back"))) == (75, 1), done.err
    lines = [line for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    for name in ("step-00000045", "latest"):  # as if it had been killed instead
        path = run / "checkpoints" / name
        path.unlink() if path.is_file() else path.rename(run / "gone")
    done = pretrain(recipe, *SETTINGS, "train.stop_at_step=45")
    assert done.code == 75, done.err
    assert len(events(run, "pass_over")) == 2
    again = [line for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    assert [(line["step"], line["loss"]) for line in again] == [(line["step"], line["loss"]) for line in lines]
    audit = scaletrain("audit", run)
    assert audit.code == 0, audit.out + audit.err


def test_a_run_that_cannot_go_back_trains_on(spoiled: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, spoiled), tmp_path / "run"

    def obstacle(*settings: str) -> str:
        done = pretrain(recipe, *SETTINGS, *settings)
        assert done.code == 0, done.err
        (told,) = events(run, "no_roll_back")
        assert f"without a roll-back: {told['obstacle']}" in " ".join((done.out + done.err).split())
        assert [line["step"] for line in read_lines(run / "metrics.jsonl") if "loss" in line] == list(range(1, 71))
        assert scaletrain("audit", run).code == 0
        return str(told["obstacle"])

    no_checkpoint = obstacle("checkpoint.every_steps=null")
    assert re.fullmatch(r"there is no whole checkpoint of step 4\d or before", no_checkpoint)
    samples = events(run, "data")[0]["data"]["data"]["samples"]
    run.rename(tmp_path / "first")
    no_data = obstacle(f"data.max_epochs={70 * 8 / samples + 1e-6}")  # none are left to make up for others
    assert "would be read more often than its max_epochs" in no_data


def test_a_run_that_goes_back_too_often_ends_saved(spoiled: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, spoiled), tmp_path / "run"
    done = pretrain(recipe, *SETTINGS, "guard.spike_steps=1", "guard.max_roll_backs=1")  # the noise is longer
    assert done.code == 2, done.err
    assert "error: after 1 roll-backs (guard.max_roll_backs=1) there is a loss of " in done.err
    assert len(events(run, "roll_back")) == 1
    assert scaletrain("audit", run).code == 0
    first, second = events(run, "spike")
    assert shown_by_its_lines(done, run) == [samples_of(first), samples_of(second)]
