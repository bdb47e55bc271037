"""AdamW with moments in 8 bits at every ZeRO stage: it learns as AdamW does, and its state is saved, cut and read."""

from pathlib import Path

import pytest
import torch
from torch import nn

from scaletrain.config.schema import Optim
from scaletrain.engine import checkpoint, fragments
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.engine import Engine
from scaletrain.engine.state import RunState
from scaletrain.engine.state_files import StateFiles
from scaletrain.optim.eight_bit import Packed
from scaletrain.runtime import dist
from tests.engine.tiny import VOCAB, TinyTask
from tests.engine.training import engine_dict, largest_difference, train, train_and_resume
from tests.ranks import run_ranks

ADAMW = Optim(lr=0.01, warmup_steps=5, grad_clip=0.5, weight_decay=0.3)
OPTIM = ADAMW.model_copy(update={"name": "adamw_8bit"})
Case = tuple[int, str]  # ZeRO stage and precision
CASES: list[Case] = [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32"), (0, "bf16"), (3, "bf16")]
STEPS = 20
# Of losses beside AdamW's with moments in float32, and beside another layout's, where they are rounded anew.
BOUNDS = {"fp32": 4e-3, "bf16": 8e-3}


class Wide(nn.Module):
    """With matrices of more than 4,096 elements, also where two ranks share them, which do not fill blocks of 256."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 16)
        self.layer = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 601), nn.GELU(), nn.Linear(601, 16))
        self.head = nn.Linear(16, VOCAB)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        return self.head(x + self.layer(x))


class WideTask(TinyTask):
    def build_model(self) -> nn.Module:
        return Wide()


def train_each(root: str) -> dict[Case, tuple[list[float], list[float]]]:
    return train_and_resume(Path(root), CASES, WideTask, OPTIM, STEPS)


def resume_elsewhere(root: str) -> dict[Case, tuple[list[float], int]]:
    """The losses of the other half on one rank at the next stage, and how many pieces of moments are in 8 bits there;
    what was loaded is written again."""
    found = {}
    for stage, precision in CASES:
        folder, now = Path(root) / f"{precision}-{stage}", (stage + 1) % 4
        engine = Engine(WideTask(), engine_dict(now, precision, dist.size()), OPTIM, torch.device("cpu"))
        newest = checkpoint.newest_good(folder, lambda name, why: None)
        assert newest is not None
        engine.load(newest.folder, newest.manifest["files"], newest.manifest["digest"])
        held = fragments.pieces(engine._engine, now)
        packed = [isinstance(fragments.values(engine._engine, piece, "exp_avg"), Packed) for piece in held]
        copy = Path(root) / f"again-{precision}-{stage}"
        checkpoint.finish(checkpoint.begin(copy, engine, RunState(10), Identity({}, {}, {}), {}))
        losses = train(now, precision, WideTask(), steps=STEPS, resume=True, root=folder, optim=OPTIM)
        found[stage, precision] = losses, sum(packed)
    return found


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    root = tmp_path_factory.mktemp("eight-bit")
    return root, run_ranks(train_each, 2, str(root), seconds=400)[0]


def train_with_floats() -> list[float]:
    return train(0, "fp32", WideTask(), steps=STEPS, optim=ADAMW)


def test_two_ranks_learn_at_every_stage_as_with_adamw(on_two) -> None:  # type: ignore[no-untyped-def]
    plain = run_ranks(train_with_floats, 1, seconds=200)[0]
    assert plain[-1] < plain[0] - 0.2
    for (stage, precision), (losses, _) in on_two[1].items():
        difference = largest_difference(losses, plain)
        print(f"stage {stage}, {precision}: largest difference {difference:.1e} over {STEPS} steps")
        assert 1e-6 < difference < BOUNDS[precision], (stage, precision)


def test_a_resume_on_the_same_ranks_at_the_same_stage_goes_on_to_the_bit(on_two) -> None:  # type: ignore[no-untyped-def]
    for case, (whole, resumed) in on_two[1].items():
        assert resumed == whole[10:], case


def test_a_resume_elsewhere_reads_what_was_saved_and_rounds_it_anew(on_two) -> None:  # type: ignore[no-untyped-def]
    root, whole = on_two
    for case, (losses, packed) in run_ranks(resume_elsewhere, 1, str(root), seconds=400)[0].items():
        difference = largest_difference(losses, whole[case][0][10:])
        print(f"stage {case[0]} to the next, {case[1]}: largest difference {difference:.1e}")
        assert difference < BOUNDS[case[1]], case
        assert packed >= 2, case
    for stage, precision in CASES:
        saved, again = (_files(root / f"{name}{precision}-{stage}") for name in ("", "again-"))
        for kind in fragments.KINDS:
            for name, shape in saved.shapes.items():
                one, other = (_whole(files, kind, name, shape) for files in (saved, again))
                bound = 0.0 if kind == fragments.WEIGHT else 0.05 * float(one.abs().max())
                assert one.abs().max() > 0
                assert (one - other).abs().max() <= bound, (stage, precision, kind, name)


def switch(root: str) -> tuple[list[float], list[float]]:
    """The losses after a checkpoint with moments in float32, and those of going on from there in 8 bits."""
    folder = Path(root) / "switch"
    whole = train(1, "fp32", WideTask(), steps=STEPS, save_at=10, root=folder, optim=ADAMW)
    return whole[10:], train(1, "fp32", WideTask(), steps=STEPS, resume=True, root=folder, optim=OPTIM)


def test_a_run_with_adamw_goes_on_in_8_bits(tmp_path: Path) -> None:
    whole, on = run_ranks(switch, 1, str(tmp_path))[0]
    assert 1e-6 < largest_difference(on, whole) < BOUNDS["fp32"]


def _files(root: Path) -> StateFiles:
    folder = root / "step-00000010"
    return StateFiles(folder, [path.name for path in folder.iterdir()])


def _whole(files: StateFiles, kind: str, name: str, shape: list[int]) -> torch.Tensor:
    out = torch.zeros(shape)
    files.fill(kind, name, 0, out.view(-1))
    return out
