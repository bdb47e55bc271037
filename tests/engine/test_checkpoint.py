"""Checkpoints: whole or absent, verified, fallen back from, refused when of something else."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Found, Identity, Written
from scaletrain.engine.state import RunState
from scaletrain.engine.state_files import Entry, StateFiles, file_name, write_entries
from scaletrain.engine.weights import find_checkpoint
from scaletrain.errors import CheckpointError
from scaletrain.runtime.files import hash_file

FIRST, SECOND = file_name(0, 2), file_name(1, 2)
IDENTITY = Identity(layout={"ranks": 1, "zero_stage": 1}, model={"num_layers": 2}, data={"dataset": "abc"})


class Weights:
    """Something that saves and loads: two real files of tensors."""

    def __init__(self, value: float, size: int = 1000) -> None:
        self.value, self.size = value, size

    def writer(self, *, copy: bool) -> Callable[[Path], Written]:
        return lambda folder: (self.save(folder), {"weight": int(self.value)})

    def save(self, folder: Path) -> dict[str, tuple[int, str]]:
        metadata = {"shapes": {"w": [self.size]}, "tied": {}, "steps": {}, "scaler": {}}
        half, values = self.size // 2, torch.full((self.size,), self.value)
        parts = {FIRST: Entry("weight", "w", 0, values[:half]), SECOND: Entry("weight", "w", half, values[half:])}
        return {name: write_entries(folder / name, [entry], metadata) for name, entry in parts.items()}

    def load(self, folder: Path, files: Iterable[str], stored: Mapping[str, str] | None = None) -> None: ...


def save(root: Path, step: int) -> None:
    checkpoint.finish(checkpoint.begin(root, Weights(float(step)), RunState(step, step * 8, step * 64), IDENTITY, {}))


def newest(root: Path) -> tuple[Found | None, list[tuple[str, str]]]:
    passed: list[tuple[str, str]] = []
    return checkpoint.newest_good(root, lambda name, why: passed.append((name, why))), passed


def test_a_hash_is_that_of_the_file_on_the_disk(tmp_path: Path) -> None:
    written = Weights(1.0).save(tmp_path)
    for name in (FIRST, SECOND):
        assert written[name] == ((tmp_path / name).stat().st_size, hash_file(tmp_path / name))
    assert StateFiles(tmp_path, written).weight("w").tolist() == [1.0] * 1000


def test_masters_that_an_optimizer_keeps_in_bfloat16_are_stored_exactly(tmp_path: Path) -> None:
    values = torch.randn(7).bfloat16()
    metadata = {"shapes": {"w": [7]}, "tied": {}, "steps": {}, "scaler": {}}
    write_entries(tmp_path / FIRST, [Entry("weight", "w", 0, values)], metadata)
    assert torch.equal(StateFiles(tmp_path, [FIRST]).weight("w"), values.float())


def test_newest_is_found_with_its_counters_and_latest_names_it(tmp_path: Path) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    found, passed = newest(tmp_path)
    assert found is not None
    assert found.state == RunState(10, 80, 640)
    assert passed == []
    assert (tmp_path / "latest").read_text() == "step-00000010\n"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


HARMS: dict[str, Callable[[Path], None]] = {
    "truncated": lambda p: os.truncate(p, p.stat().st_size // 2),
    "flipped": flip,
    "deleted": lambda p: p.unlink(),
    "emptied": lambda p: os.truncate(p, 0),
    "swapped": lambda p: p.write_bytes((p.parent.parent / "step-00000005" / p.name).read_bytes()),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", [FIRST, SECOND, "manifest.json"])
def test_any_damage_is_seen_and_the_one_before_is_taken(tmp_path: Path, name: str, harm: str) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    if (name, harm) == ("manifest.json", "flipped"):
        text = (tmp_path / "step-00000010" / name).read_text()
        (tmp_path / "step-00000010" / name).write_text(text.replace('"xxh3_128": "', '"xxh3_128": "f', 1))
    else:
        HARMS[harm](tmp_path / "step-00000010" / name)
    found, passed = newest(tmp_path)
    assert found is not None
    assert found.state.step == 5
    ((bad, why),) = passed
    assert bad == "step-00000010"
    assert why


def test_a_changed_number_in_a_manifest_is_seen(tmp_path: Path) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    manifest = tmp_path / "step-00000010" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 10', '"step": 11'))
    found, passed = newest(tmp_path)
    assert found is not None
    assert found.state.step == 5
    assert "manifest.json is not as it was written" in passed[0][1]


def test_no_good_one_among_several_is_refused_rather_than_started_anew(tmp_path: Path) -> None:
    save(tmp_path, 5)
    flip(tmp_path / "step-00000005" / FIRST)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints is whole: restore one"):
        newest(tmp_path)


def test_an_empty_folder_starts_anew(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])


def test_what_a_killed_save_left_is_never_loaded_and_goes(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / ".unfinished-step-00000010").mkdir()
    found, passed = newest(tmp_path)
    assert found is not None
    assert (found.state.step, passed) == (5, [])
    assert checkpoint.clean(tmp_path) == [".unfinished-step-00000010"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000005"]


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
        checkpoint.clean(tmp_path, keep_last=2)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000015", "step-00000020"]


@pytest.mark.parametrize("removed", range(1, 4))
def test_a_kill_while_an_old_one_is_removed_leaves_no_part_of_it_under_its_name(removed: int, tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    if os.fork() == 0:
        removals = iter(range(1, 5))  # two files of state, the manifest, the folder

        def end_after(event: str, arguments: object) -> None:
            if event in {"os.remove", "os.rmdir"} and next(removals) > removed:
                os._exit(9)

        sys.addaudithook(end_after)
        checkpoint.clean(tmp_path, keep_last=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 9
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000002"]
    checkpoint.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002"]


def test_every_nth_stays_for_ever(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25, 30):
        save(tmp_path, step)
        checkpoint.clean(tmp_path, keep_last=1, keep_every=10)
    assert sorted(int(p.name[5:]) for p in tmp_path.glob("step-*")) == [10, 20, 30]


@pytest.mark.parametrize("latest", ["", "step-00000099\n", None])
def test_a_wrong_latest_does_not_mislead_a_resume(tmp_path: Path, latest: str | None) -> None:
    save(tmp_path, 5)
    (tmp_path / "latest").unlink()
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    found, _ = newest(tmp_path)
    assert found is not None
    assert found.state.step == 5


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("model", {"num_layers": 3}, "num_layers was 2, is 3: the model changed: resume with the recipe"),
        (
            "optimizer",
            {"optim.name": "muon"},
            "optim.name was adamw, is muon: the optimizer changed, and has other mom",
        ),
        ("data", {"dataset": "xyz"}, "dataset was abc, is xyz: the data changed: resume with the dataset"),
    ],
)
def test_another_model_or_dataset_is_refused_by_name(
    tmp_path: Path, part: str, values: dict[str, object], message: str
) -> None:
    save(tmp_path, 5)
    found, _ = newest(tmp_path)
    assert found is not None
    checkpoint.check_identity(found, IDENTITY)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.check_identity(found, Identity(**{**IDENTITY.to_dict(), part: values}))


def test_a_checkpoint_that_names_no_optimizer_is_of_adamw(tmp_path: Path) -> None:
    save(tmp_path, 5)
    found, _ = newest(tmp_path)
    assert found is not None
    assert found.manifest.pop("optimizer") == {"optim.name": "adamw"}
    checkpoint.check_identity(found, IDENTITY)
    with pytest.raises(CheckpointError, match="optim.name was adamw, is muon: the optimizer changed"):
        checkpoint.check_identity(found, replace(IDENTITY, optimizer={"optim.name": "muon"}))


def test_another_format_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5)
    manifest = tmp_path / "step-00000005" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="checkpoint format 99, this version reads 3"):
        checkpoint.read_manifest(manifest.parent)


def test_a_run_without_checkpoint_and_a_damaged_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint: train first"):
        find_checkpoint(tmp_path)
    save(tmp_path / "checkpoints", 5)
    assert find_checkpoint(tmp_path).state.step == 5
    flip(tmp_path / "checkpoints" / "step-00000005" / FIRST)
    with pytest.raises(CheckpointError, match=f"{FIRST} is not as it was written"):
        find_checkpoint(tmp_path)


def test_damaged_ones_are_set_aside_and_no_longer_counted(tmp_path: Path) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    flip(tmp_path / "step-00000010" / FIRST)
    checkpoint.set_aside(tmp_path, ["step-00000010"])
    save(tmp_path, 7)
    checkpoint.clean(tmp_path, keep_last=2)
    assert sorted(p.name for p in tmp_path.glob("*step*")) == [
        "damaged-step-00000010",
        "step-00000005",
        "step-00000007",
    ]


def test_files_that_another_node_wrote_elsewhere_are_missed_before_the_rename(tmp_path: Path) -> None:
    class Elsewhere(Weights):
        def save(self, folder: Path) -> dict[str, tuple[int, str]]:
            return {**super().save(folder), "rank-1.pt": (100, "abc")}

    with pytest.raises(CheckpointError, match="rank-1.pt was written by another rank and is not here: run.dir must be"):
        checkpoint.finish(checkpoint.begin(tmp_path, Elsewhere(1.0), RunState(5, 40, 320), IDENTITY, {}))
    assert newest(tmp_path) == (None, [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_leaves_the_earlier_checkpoint_whole_and_no_part_of_the_new_one(small_disk: Path) -> None:
    save(small_disk, 5)
    with pytest.raises(
        CheckpointError, match=r"not written \(No space left on device\): free space.*step-00000005 is whole"
    ):
        checkpoint.finish(
            checkpoint.begin(small_disk, Weights(1.0, size=1_000_000), RunState(10, 80, 640), IDENTITY, {})
        )
    assert sorted(p.name for p in small_disk.iterdir()) == ["latest", "step-00000005"]
    assert newest(small_disk)[1] == []
