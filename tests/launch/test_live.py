"""launch/pretrain.py on text that is tokenized while training: stopped, resumed, refused."""

import json
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.track.sinks import read_lines
from tests.conftest import Done, pretrain, write_recipe


def losses(run: Path, name: str = "loss") -> dict[int, float]:
    return {line["step"]: line[name] for line in read_lines(run / "metrics.jsonl") if name in line}


@pytest.fixture(scope="module")
def folder(texts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files to train on and one to validate with, a paragraph a document."""
    folder = tmp_path_factory.mktemp("live") / "text"
    for number, path in enumerate(texts[:4]):
        split = folder / ("train" if number < 3 else "validation")
        split.mkdir(parents=True, exist_ok=True)
        paragraphs = path.read_text(encoding="utf-8").split("\n\n")
        lines = [json.dumps({"content": paragraph}) + "\n" for paragraph in paragraphs]
        (split / f"{path.stem}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def options(folder: Path, dataset: Dataset, cache: Path) -> list[str]:
    return [
        f"data.path={folder}",
        "data.source=huggingface",
        f"data.tokenizer={dataset.path / 'tokenizer'}",
        "data.live.field=content",
        "data.live.validation_split=validation",
        "data.live.validation_rows=20",
        "data.live.shuffle_rows=64",
        f"data.cache.dir={cache}",
        "deepspeed=ds_configs/zero0.json",  # which lets other runs go on with other ranks
        "optim.schedule=constant",  # the same for any length of the run
        "checkpoint.every_steps=100",
        "evaluate.every_steps=null",
    ]


def check(done: Done) -> None:
    assert (done.code, done.err) == (0, ""), done


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_stopped_and_resumed_run_has_the_losses_of_an_uninterrupted_one(
    ranks: int, folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    launcher = "torchrun" if ranks > 1 else "python"
    given = options(folder, dataset, tmp_path / "cache")
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    stopped = pretrain(recipe, *given, "train.max_steps=2", ranks=ranks, launcher=launcher)
    check(stopped)
    assert (
        stopped.out.count(
            f"live    text is tokenized while training: its order depends on the number of ranks ({ranks})"
        )
        == 1
    )
    assert ("3 shards over 2 ranks" in stopped.out) == (ranks == 2)
    check(pretrain(recipe, *given, "train.max_steps=6", ranks=ranks, launcher=launcher))
    whole = write_recipe(tmp_path, dataset, tmp_path / "whole")
    check(pretrain(whole, *given, "train.max_steps=6", ranks=ranks, launcher=launcher))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert list(losses(tmp_path / "whole")) == [1, 2, 3, 4, 5, 6]
    for name in ("eval_loss", "eval_bits_per_byte"):
        assert losses(tmp_path / "run", name)[6] == losses(tmp_path / "whole", name)[6]
    kept = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    assert json.loads(kept.read_text()) == json.loads((dataset.path / "tokenizer" / "tokenizer.json").read_text())
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000006"
    assert len(list(checkpoint.glob("data-rank-*.json"))) == ranks
    if ranks == 2:
        refused = pretrain(recipe, *given, "train.max_steps=8")
        assert refused.code == 2
        assert refused.err.count("\n") == 1, refused.err
        assert "ranks (a live stream goes on with as many as began it) was 2, is 1: the data changed" in refused.err


def test_a_fault_of_the_text_ends_every_rank_with_one_line(folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    given = [*options(folder, dataset, tmp_path / "cache"), "data.live.field=text"]
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = pretrain(recipe, *given, ranks=2, launcher="deepspeed")
    told = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, done.err
    assert "has no field 'text', its fields are content: choose one with data.live.field" in told[0]
    assert done.code == 2


def test_a_file_that_one_rank_cannot_read_ends_the_run_on_all(folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    broken = tmp_path / "text"
    broken.mkdir()
    for path in (folder / "train").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "zzz.jsonl").write_text('{"content": bro', encoding="utf-8")
    given = [*options(broken, dataset, tmp_path / "cache"), "data.live.validation_split=null", "data.shuffle=false"]
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = pretrain(recipe, *given, "train.max_steps=100000", ranks=2, launcher="torchrun")
    told = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, done.err
    assert "shard 3 of 4) cannot be read on after 0 documents (JSON parse error" in told[0]
    assert told[0].endswith("repair or replace that file")
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")), "the work until then is saved"
