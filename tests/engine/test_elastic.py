"""A resume on other ranks, at another ZeRO stage or in another precision: equal state to the bit, equal losses."""

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.digest import KINDS as DIGESTED
from scaletrain.engine.engine import Engine
from scaletrain.engine.fragments import KINDS
from scaletrain.engine.state import RunState
from scaletrain.engine.state_files import Entry, StateFiles, write_entries
from scaletrain.errors import CheckpointError
from scaletrain.runtime import dist
from scaletrain.runtime.files import hash_file, write_json
from tests.engine.tiny import TinyTask
from tests.engine.training import OPTIM, engine_dict, largest_difference, train
from tests.ranks import run_ranks

STAGES, PRECISIONS = (0, 1, 2, 3), ("fp32", "bf16")
CASES = [(p, a, b) for p, a, b in product(PRECISIONS, STAGES, STAGES)]


def save_each(root: str) -> dict[str, list[float]]:
    """The uninterrupted losses of each stage and precision, with a checkpoint after half of the steps."""
    return {
        f"{precision}-{stage}": train(
            stage, precision, TinyTask(), save_at=10, root=Path(root) / f"{precision}-{stage}"
        )
        for stage, precision in product(STAGES, PRECISIONS)
    }


def resume_each(root: str) -> dict[tuple[str, int, int], list[float]]:
    """From each stage's checkpoint at each stage: the losses of the other half, and the state written again."""
    found = {}
    for precision, before, now in CASES:
        folder, copy = Path(root) / f"{precision}-{before}", Path(root) / f"again-{precision}-{before}-{now}"
        engine = Engine(TinyTask(), engine_dict(now, precision, dist.size()), OPTIM, torch.device("cpu"))
        saved = folder / "step-00000010"
        engine.load(saved, [path.name for path in saved.iterdir()])
        checkpoint.finish(checkpoint.begin(copy, engine, RunState(10), Identity({}, {}, {}), {}))
        found[precision, before, now] = train(now, precision, TinyTask(), root=folder, resume=True)
    return found


def resume_in_fp32(root: str) -> list[float]:
    return train(1, "fp32", TinyTask(), root=Path(root) / "bf16-3", resume=True)


@pytest.fixture(scope="module", params=[(2, 1), (1, 2)], ids=["2-to-1", "1-to-2"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    before, now = request.param
    root = tmp_path_factory.mktemp("elastic")
    whole = run_ranks(save_each, before, str(root))[0]
    return root, whole, run_ranks(resume_each, now, str(root))[0]


def state_of(folder: Path) -> StateFiles:
    saved = folder / "step-00000010"
    return StateFiles(saved, [path.name for path in saved.iterdir()])


@pytest.mark.parametrize(("precision", "before", "now"), CASES)
def test_the_state_is_the_same_to_the_bit(world, precision: str, before: int, now: int) -> None:  # type: ignore[no-untyped-def]
    root, _, _ = world
    old, new = state_of(root / f"{precision}-{before}"), state_of(root / f"again-{precision}-{before}-{now}")
    assert old.steps == new.steps == dict.fromkeys(old.shapes, 10)
    assert old.shapes == new.shapes
    for name, shape in old.shapes.items():
        for kind in KINDS:
            a, b = torch.full(shape, -1.0), torch.full(shape, -2.0)
            old.fill(kind, name, 0, a.view(-1))
            new.fill(kind, name, 0, b.view(-1))
            assert torch.equal(a, b), (kind, name)
            assert a.abs().max() > 0


@pytest.mark.parametrize(("precision", "before", "now"), CASES)
def test_the_losses_are_those_of_the_uninterrupted_run(world, precision: str, before: int, now: int) -> None:  # type: ignore[no-untyped-def]
    _, whole, resumed = world
    bound = 2e-6 if precision == "fp32" else 3e-3  # bfloat16's own rounding: gradients are summed in another order
    assert largest_difference(resumed[precision, before, now], whole[f"{precision}-{before}"][10:]) < bound


def test_a_run_in_bf16_goes_on_in_fp32_from_the_float32_masters(world) -> None:  # type: ignore[no-untyped-def]
    root, whole, _ = world
    assert largest_difference(run_ranks(resume_in_fp32, 1, str(root))[0], whole["fp32-1"][10:]) < 3e-3


def load(root: str, stage: int) -> str:
    engine = Engine(TinyTask(), engine_dict(stage, "fp32", 1), OPTIM, torch.device("cpu"))
    folder = Path(root) / "step-00000010"
    try:
        engine.load(folder, [path.name for path in folder.iterdir()])
    except CheckpointError as error:
        return str(error)
    return "loaded"


def test_a_checkpoint_with_a_part_missing_or_of_another_shape_is_refused(world, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, _, _ = world
    shutil.copytree(root / "again-fp32-1-1", tmp_path / "part")
    state = next((tmp_path / "part" / "step-00000010").glob("state-*"))
    saved = StateFiles(state.parent, [state.name])
    metadata = {"shapes": saved.shapes, "tied": {}, "steps": saved.steps, "scaler": {}}
    for rest in (tmp_path / "part" / "step-00000010").glob("state-*"):
        rest.unlink()
    write_entries(state, [Entry("weight", "head.bias", 0, torch.zeros(32))], metadata)
    assert "ends at element 0" in run_ranks(load, 1, str(tmp_path / "part"), 1)[0]
    write_entries(state, [], {**metadata, "shapes": {**saved.shapes, "head.bias": [31]}})
    assert "head.bias has the shape [31], the model's is [32]" in run_ranks(load, 1, str(tmp_path / "part"), 1)[0]


def rewrite(saved: Path, change: Callable[[str, str, torch.Tensor], torch.Tensor], steps: int = 10) -> None:
    """Another state in the file of a one-rank checkpoint; the manifest agrees with the file but for its digest."""
    (path,) = saved.glob("state-*")
    files = StateFiles(saved, [path.name])
    entries = []
    for kind, (name, shape) in product(KINDS, files.shapes.items()):
        values = torch.empty(shape).view(-1)
        files.fill(kind, name, 0, values)
        entries.append(Entry(kind, name, 0, change(kind, name, values)))
    metadata = {"shapes": files.shapes, "tied": {}, "steps": dict.fromkeys(files.shapes, steps), "scaler": {}}
    write_entries(path, entries, metadata)
    manifest = checkpoint.read_manifest(saved)
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "xxh3_128": hash_file(path)}
    write_json(saved / checkpoint.MANIFEST, {**manifest, checkpoint.SELF: checkpoint._self_hash(manifest)})


def one_element(wanted: str) -> Callable[[str, str, torch.Tensor], torch.Tensor]:
    def change(kind: str, name: str, values: torch.Tensor) -> torch.Tensor:
        if (kind, name) == (wanted, "head.weight"):
            values[77] = torch.nextafter(values[77], torch.tensor(1.0))
        return values

    return change


TAMPERED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "nothing": ([], {"change": lambda kind, name, values: values}),
    "weight": (["weight"], {"change": one_element("weight")}),
    "exp_avg": (["exp_avg"], {"change": one_element("exp_avg")}),
    "exp_avg_sq": (["exp_avg_sq"], {"change": one_element("exp_avg_sq")}),
    "step": (["step"], {"change": lambda kind, name, values: values, "steps": 9}),
    "moments": (["exp_avg", "exp_avg_sq"], {"change": lambda kind, n, v: v if kind == "weight" else v.flip(0)}),
}


def load_tampered(root: str) -> dict[tuple[str, int, str], str]:
    found = {}
    for case, stage, precision in product(TAMPERED, STAGES, PRECISIONS):
        whole = checkpoint.newest_good(Path(root) / case, lambda name, why: None)
        assert whole is not None
        assert whole.state.step == 10
        engine = Engine(TinyTask(), engine_dict(stage, precision, dist.size()), OPTIM, torch.device("cpu"))
        try:
            engine.load(whole.folder, whole.manifest["files"], whole.manifest["digest"])
            found[case, stage, precision] = "loaded"
        except CheckpointError as error:
            found[case, stage, precision] = str(error)
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_element_of_another_state_is_refused_on_every_rank_though_all_hashes_are_right(
    world,  # type: ignore[no-untyped-def]
    ranks: int,
    tmp_path: Path,
) -> None:
    root, _, _ = world
    whole = next(path for path in (root / "again-fp32-1-1", root / "fp32-1") if len(list(path.rglob("state-*"))) == 1)
    for case, (_, change) in TAMPERED.items():
        shutil.copytree(whole, tmp_path / case)
        rewrite(tmp_path / case / "step-00000010", **change)
    for told in run_ranks(load_tampered, ranks, str(tmp_path)):
        for (case, stage, precision), line in told.items():
            kinds = TAMPERED[case][0]
            if not kinds:
                assert line == "loaded", (case, stage, precision)
                continue
            assert "step-00000010: the state that was loaded is not the one that was saved: " in line, (case, stage)
            assert [kind for kind in DIGESTED if f"{kind} (saved " in line] == kinds, (case, stage, precision, line)


def test_every_stage_number_of_ranks_and_resharding_has_the_same_digest(world) -> None:  # type: ignore[no-untyped-def]
    root, _, _ = world
    for precision, before, now in CASES:
        old, new = root / f"{precision}-{before}", root / f"again-{precision}-{before}-{now}"
        digests = [checkpoint.read_manifest(f / "step-00000010")["digest"] for f in (old, new)]
        assert digests[0] == digests[1]
        assert list(digests[0]) == list(DIGESTED)
        assert all(int(value, 16) for value in digests[0].values())


def test_a_checkpoint_from_before_digests_is_taken(world, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, _, _ = world
    shutil.copytree(root / "again-fp32-1-1", tmp_path / "old")
    path = tmp_path / "old" / "step-00000010" / checkpoint.MANIFEST
    manifest = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("digest", checkpoint.SELF)}
    write_json(path, {**manifest, checkpoint.SELF: checkpoint._self_hash(manifest)})
    assert run_ranks(load_found, 1, str(tmp_path / "old")) == [10]


def load_found(root: str) -> int:
    found = checkpoint.newest_good(Path(root), lambda name, why: None)
    assert found is not None
    engine = Engine(TinyTask(), engine_dict(1, "fp32", 1), OPTIM, torch.device("cpu"))
    engine.load(found.folder, found.manifest["files"], found.manifest.get("digest"))
    return found.state.step
