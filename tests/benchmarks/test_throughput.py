"""The grid, its rows and what becomes of cells that fail."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import throughput
from benchmarks.cell import Cell, Run, error_line, overrides, run_cell
from benchmarks.grid import grid, parser
from benchmarks.profiled_step import shares
from benchmarks.throughput import Bench, contestant, settle_batch
from benchmarks.timed import Timed, row_of
from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.load import load_recipe
from scaletrain.config.schema import Model
from scaletrain.model.count import flops_per_token, recomputed_flops_per_token

MODEL = Model(family="gpt2", num_layers=2, num_heads=1, hidden_size=64)
ARCH = resolve_architecture(MODEL, 512, 64)


def cell(**changes: Any) -> Cell:
    asked: dict[str, Any] = {"stage": 1, "checkpointing": "none", "precision": "fp32", "ranks": 1, "micro_batch": 4}
    return Cell("gpt2 2x64", MODEL, 64, **asked | changes)


def run(*seconds: float, peak: int = 10**9) -> Run:
    """The first two steps are slow: the figures leave them out."""
    return Run(
        [
            {
                "step_seconds": second,
                "data_wait_seconds": 0.1 * second,
                "forward_seconds": 0.2 * second,
                "backward_seconds": 0.4 * second,
                "optimizer_seconds": 0.3 * second,
                "peak_memory_bytes": peak,
            }
            for second in (9.0, 9.0, *seconds)
        ]
    )


def bench(limit: int | None = None) -> Bench:
    return Bench(Path("data"), 6, torch.device("cpu"), limit)


def test_the_grid_is_every_combination_each_with_a_name_of_its_own() -> None:
    words = ["--sizes", "2x64x64,4x128x256", "--stages", "0,3", "--checkpointing", "none,full", "--micro-batches"]
    cells = grid(parser().parse_args([*words, "2,max", "--ranks", "1,2"]), "bf16")
    assert len(cells) == 2 * 2 * 2 * 2 * 2
    assert len({one.name for one in cells}) == len(cells)
    assert cells[0].name == "gpt2 2x64, 2 x 64, ZeRO 0, none, bf16"
    assert cells[-1].name == "gpt2 4x128, max x 256, ZeRO 3, full, bf16, 2 ranks"
    assert (cells[-1].model.num_heads, cells[-1].micro_batch) == (2, None)


def test_contexts_win_over_a_sizes_own_and_presets_have_one() -> None:
    args = parser().parse_args(["--sizes", "2x64x64", "--presets", "gpt2-tiny", "--precisions", "fp32,bf16"])
    cells = [(one.label, one.context, one.precision) for one in grid(args, "bf16")]
    assert cells[::2] == [("gpt2-tiny", 1024, "fp32"), ("gpt2 2x64", 64, "fp32")]
    args = parser().parse_args(["--sizes", "2x64x64", "--contexts", "32,128"])
    assert [one.context for one in grid(args, "bf16")] == [32, 128]


def test_variants_are_cells_of_their_own() -> None:
    plain, fast = grid(parser().parse_args(["--variant", "", "--variant", "train.compile=blocks seed=3"]), "bf16")
    assert fast.more == ("train.compile=blocks", "seed=3")
    assert fast.name == f"{plain.name}, train.compile=blocks, seed=3"
    assert overrides(fast, Path("data"), Path("run"), 8, 3)[-2:] == ["train.compile=blocks", "seed=3"]
    assert [one.label for one in grid(parser().parse_args([]), "bf16")] == ["gpt2 6x384"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "6x384"], "6x384 is no size: give layers x hidden x context, such as 6x384x512"),
        (["--sizes", "6x0x512"], "6x0x512 is no size"),
        (["--precisions", "bf16,int8"], "int8 is no precision: choose bf16, fp16, fp32"),
        (["--steps", "2"], "2 is too few: give more than the 2 that are left out"),
        (["--against", "none.json"], "none.json is no file: give what --output wrote in an earlier run"),
        (["--micro-batches", "8,most"], "most is no micro-batch: give a number of samples, or max"),
    ],
)
def test_what_cannot_be_read_is_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_cells_overrides_make_a_recipe_of_it() -> None:
    recipe = Path(__file__).parents[2] / "launch" / "recipes" / "pretrain-novels.yaml"
    made = load_recipe(recipe, overrides(cell(ranks=2, checkpointing="full"), Path("d"), Path("r"), 4, 6))
    assert (made.train.micro_batch_size, made.train.global_batch_size, made.train.max_steps) == (4, 8, 6)
    assert (made.train.precision, made.train.activation_checkpointing) == ("fp32", "full")
    assert (made.model.preset, made.model.num_layers, made.model.hidden_size) == (None, 2, 64)  # type: ignore[union-attr]
    assert made.checkpoint.every_steps is None
    preset = Cell("gpt2-tiny", Model(preset="gpt2-tiny"), 64, 1, "none", "fp32", 1, 4)
    made = load_recipe(recipe, overrides(preset, Path("d"), Path("r"), 4, 6))
    assert made.model.preset == "gpt2-tiny"  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_a_row_has_rates_over_rounds_and_shares_of_a_step(mode: str) -> None:
    rounds = [Timed(run(0.5, 0.4, 0.6), 1e9), Timed(run(1.0, 1.0, 1.0, peak=2 * 10**9), 2e9)]
    row = row_of(cell(checkpointing=mode), 4, ARCH, rounds)
    assert row["tokens_per_second"] == {"median": 384.0, "low": 256.0, "high": 512.0}
    assert row["step_seconds"] == {"median": 0.8, "low": 0.4, "high": 1.0}
    assert row["peak_memory_bytes"] == 2 * 10**9
    parts = ("data_wait", "forward", "backward", "optimizer")
    assert [row[f"share_of_{part}"] for part in parts] == pytest.approx([0.1, 0.2, 0.4, 0.3])
    for suffix, attention in (("", "causal"), ("_full", "full")):
        flops = flops_per_token(ARCH, 64, attention)  # type: ignore[arg-type]
        again = recomputed_flops_per_token(ARCH, 64, mode, attention)  # type: ignore[arg-type]
        assert row[f"mfu{suffix}"]["high"] == pytest.approx(512 * flops / 1e9)
        assert row[f"hfu{suffix}"]["low"] == pytest.approx(256 * (flops + again) / 2e9)
    assert (row["hfu"]["median"] > row["mfu"]["median"]) == (mode == "full")


def test_what_fails_is_a_row_that_says_so() -> None:
    row = row_of(cell(), 4, ARCH, [Timed(run(0.5), 1e9), Timed(Run([], out_of_memory=True), 1e9)])
    assert row["out_of_memory"] is True
    assert "tokens_per_second" not in row
    assert row_of(cell(), 4, ARCH, [Timed(Run([], "error: no such preset"), 1e9)])["error"] == "error: no such preset"


def test_a_cell_that_failed_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fail(*_: Any, **__: Any) -> Run:
        calls.append(1)
        return Run([], "it broke")

    monkeypatch.setattr(throughput, "run_cell", fail)
    turn = contestant(bench(), cell(), 4, None)
    assert [turn().run.error, turn().run.error] == ["it broke", "it broke"]
    assert len(calls) == 1
    assert contestant(bench(), cell(), 4, Run([], out_of_memory=True))().run.out_of_memory
    assert len(calls) == 1


def test_the_largest_batch_is_searched_by_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(one: Cell, data: Path, batch: int, *_: Any) -> Run:
        return run(1.0, peak=10**6 * batch) if batch <= 5 else Run([], out_of_memory=True)

    monkeypatch.setattr(throughput, "run_cell", fake)
    assert settle_batch(bench(), cell(micro_batch=None), ARCH) == (5, None)
    assert settle_batch(bench(), cell(micro_batch=7), ARCH) == (7, None)
    # Two ranks hold twice as much; the limit is theirs together.
    assert settle_batch(bench(8 * 10**6), cell(micro_batch=None, ranks=2), ARCH) == (4, None)


def test_a_search_that_fails_otherwise_or_finds_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "run_cell", lambda *_: Run([], "error: no such preset"))
    assert settle_batch(bench(), cell(micro_batch=None), ARCH) == (0, Run([], "error: no such preset"))
    monkeypatch.setattr(throughput, "run_cell", lambda *_: Run([], out_of_memory=True))
    assert settle_batch(bench(), cell(micro_batch=None), ARCH) == (0, Run([], out_of_memory=True))


def test_a_model_whose_state_is_beyond_the_limit_is_not_started() -> None:
    assert settle_batch(bench(10**6), cell(), ARCH) == (0, Run([], out_of_memory=True))


def test_a_process_that_holds_more_than_the_limit_is_ended(tmp_path: Path) -> None:
    assert run_cell(cell(), tmp_path, 4, 6, 10**6) == Run([], None, out_of_memory=True)


def test_another_failure_is_told_without_this_machines_paths(tmp_path: Path) -> None:
    failed = run_cell(cell(checkpointing="most"), tmp_path, 4, 6, None)
    assert failed.error is not None
    assert failed.error.startswith("error: launch/recipes/pretrain-novels.yaml: train.activation_checkpointing=most")
    assert not failed.out_of_memory


def test_the_error_line_is_the_programs_own_or_the_exception() -> None:
    assert error_line("warning: x\nerror: no such preset: choose one\nlast\n") == "error: no such preset: choose one"
    assert error_line("Traceback ...\n  File\nValueError: bad\nlast\n") == "ValueError: bad"
    assert error_line("one\ntwo\n\n") == "two"
    assert error_line("") == "it ended without a word"


def test_shares_of_a_profiled_step() -> None:
    times = [
        ("ncclDevKernel_AllReduce_Sum_bf16", 1.0),
        ("aten::_fused_adamw_", 2.0),
        ("pytorch_flash::flash_fwd_kernel", 1.0),
        ("aten::mm", 3.0),
        ("nvjet_tst_128x256", 1.0),
        ("aten::comma", 2.0),
    ]
    assert shares(times) == {"collectives": 0.1, "optimizer": 0.2, "attention": 0.1, "products": 0.4, "other": 0.2}
    assert sum(shares([]).values()) == 0
