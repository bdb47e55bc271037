"""export, generate and evaluate on a run, a checkpoint and a Hugging Face folder."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scaletrain.data.shards import Dataset
from scaletrain.track.sinks import read_lines
from tests.conftest import Done, pretrain, scaletrain, write_recipe


@pytest.fixture(scope="module", params=["gpt2-tiny", "llama-tiny"])
def run(request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    recipe = write_recipe(folder, dataset, folder / "run")
    assert pretrain(recipe, f"model.preset={request.param}", "evaluate.max_samples=null").code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    output = run.parent / "exported"
    done = scaletrain("export", run, output, "--dtype", "float32")
    assert done.code == 0, done.err
    assert "step 12" in done.out
    return output


def figures(done: Done) -> dict[str, float]:
    assert done.code == 0, done.err
    found: dict[str, float] = json.loads(done.out)
    return found


def test_evaluating_run_checkpoint_and_export_gives_what_training_logged(
    run: Path, exported: Path, dataset: Dataset
) -> None:
    logged = [line for line in read_lines(run / "metrics.jsonl") if "eval_loss" in line][-1]
    options = ["--data", str(dataset.path), "--context", "32", "--json"]
    for model in (run, run / "checkpoints" / "step-00000012", exported):
        found = figures(scaletrain("evaluate", model, *options))
        assert found["tokens"] == dataset.tokens("validation") - 1
        for name in ("loss", "perplexity", "bits_per_byte"):
            assert found[name] == pytest.approx(logged[f"eval_{name}"], rel=1e-5)


def test_bits_per_byte_of_a_text_counts_all_its_bytes(exported: Path, tmp_path: Path) -> None:
    text = "naïve = 'é'\n" * 20
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    found = figures(scaletrain("evaluate", exported, "--data", tmp_path / "a.txt", "--json"))
    bits = found["loss"] * found["tokens"] / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / len(text.encode()), rel=1e-6)


def test_the_exported_folder_is_what_transformers_loads(exported: Path, dataset: Dataset) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(exported), AutoModelForCausalLM.from_pretrained(exported)
    ids = tokenizer("def main():", return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == "def main():"
    assert model(ids).logits.shape[-1] == model.config.vocab_size
    assert model.config.eos_token_id == dataset.tokenizer.eos_id
    assert next(model.parameters()).dtype == torch.float32


def test_generating_from_run_and_export_is_the_same_and_greedy_is_transformers_own(run: Path, exported: Path) -> None:
    options = ["--prompt", "import os\n", "--max-new-tokens", "12", "--temperature", "0"]
    from_run, from_export = scaletrain("generate", run, *options), scaletrain("generate", exported, *options)
    assert from_run.code == from_export.code == 0, from_run.err + from_export.err
    assert from_run.out == from_export.out
    tokenizer, model = AutoTokenizer.from_pretrained(exported), AutoModelForCausalLM.from_pretrained(exported)
    ids = tokenizer("import os\n", return_tensors="pt").input_ids
    wanted = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
    assert from_run.out == tokenizer.decode(wanted, skip_special_tokens=True) + "\n"


def test_a_seed_makes_sampling_repeatable(exported: Path) -> None:
    options = ["--prompt", "x", "--max-new-tokens", "8", "--samples", "2"]
    one, two = (scaletrain("generate", exported, *options, "--seed", "3") for _ in range(2))
    other = scaletrain("generate", exported, *options, "--seed", "4")
    assert one.out == two.out != other.out
    assert one.out.count("---") == 2


def test_faults_are_one_line(run: Path, exported: Path, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    cases = [
        (("export", run, exported), "exists: choose another folder or add --overwrite"),
        (("export", exported, tmp_path / "x"), "is a Hugging Face folder already"),
        (("export", run, tmp_path / "x", "--dtype", "int8"), "--dtype int8 is unknown: choose one of float32"),
        (("export", tmp_path, tmp_path / "x"), "holds no checkpoint: train first"),
        (("generate", tmp_path / "none"), "is not a folder: give a run"),
        (("generate", run, "--prompt", "word " * 100), "the prompt has .* tokens, the model takes 32: shorten it"),
        (("evaluate", run, "--data", tmp_path / "none"), "does not exist: give a dataset folder or text files"),
        (("evaluate", run, "--data", dataset.path, "--context", "4096"), "longer than the model's 32 positions"),
        (("evaluate", run, "--data", tmp_path / "latin.txt"), "cannot be read as UTF-8 text"),
        (("evaluate", run, "--data", dataset.path, "--split", "test"), "--split test is unknown: choose validation"),
    ]
    for arguments, message in cases:
        done = scaletrain(*arguments)
        assert done.code == 2, (arguments, done)
        assert done.err.startswith("error: "), done.err
        assert done.err.count("\n") == 1, done.err
        assert __import__("re").search(message, done.err), done.err
    assert not (tmp_path / "x").exists()
