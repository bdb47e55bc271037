"""export, generate and evaluate on a run, a checkpoint and a Hugging Face folder."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
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
    (tmp_path / "empty.txt").touch()
    cases = [
        (("export", run, exported), "exists: choose another folder or add --overwrite"),
        (("export", exported, tmp_path / "x"), "is a Hugging Face folder already"),
        (("export", run, tmp_path / "x", "--dtype", "int8"), "--dtype int8 is unknown: choose one of float32"),
        (("export", tmp_path, tmp_path / "x"), "holds no checkpoint: train first"),
        (("export", run, tmp_path / "empty.txt", "--overwrite"), "empty.txt is a file, an export is a folder: choose"),
        (("export", run, tmp_path / "empty.txt" / "x"), "x.*: Not a directory: choose another path"),
        (
            ("evaluate", run, "--data", dataset.path, "--data", dataset.path),
            "is given with 1 more: give one dataset fo",
        ),
        (
            ("evaluate", run, "--data", tmp_path / "empty.txt", "--data", dataset.path),
            "give one dataset folder, or onl",
        ),
        (("evaluate", run, "--data", tmp_path / "empty.txt"), "empty.txt: no text to evaluate: give files that hold"),
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
        assert re.search(message, done.err), done.err
    assert not (tmp_path / "x").exists()


def test_several_text_files_are_measured_together_and_a_few_samples_alone(
    exported: Path, dataset: Dataset, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name} = 1\n" * 30)
    a, b = (["--data", str(tmp_path / f"{name}.txt")] for name in ("a", "b"))
    alone, both = (figures(scaletrain("evaluate", exported, *data, "--json")) for data in (a, a + b))
    assert both["tokens"] > alone["tokens"] * 1.5
    options = ["--data", str(dataset.path), "--context", "16", "--max-samples", "3", "--json"]
    assert figures(scaletrain("evaluate", exported, *options))["tokens"] == 3 * 16


def without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def set_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[min(name for name in tensors if "norm" in name or "ln_" in name)]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


CANNOT = "transformers cannot load it as a causal language model"
HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: without(f, "model.safetensors"), rf"{CANNOT} \(Error no file named model.safetensors"),
    "damaged weights": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), rf"{CANNOT} \("),
    "part of the weights": (drop_a_tensor, r"1 weights are missing, \S+ the first: copy or export the folder again"),
    "other sizes": (lambda f: set_config(f, vocab_size=700), rf"{CANNOT} \("),
    "unknown type": (lambda f: set_config(f, model_type="gpt9"), rf"{CANNOT} \(.*gpt9"),
    "no causal model": (lambda f: set_config(f, model_type="vit"), rf"{CANNOT} \("),
    "no tokenizer": (lambda f: without(f, "tokenizer.json", "tokenizer_config.json"), "holds no tokenizer: expected"),
    "no object": (lambda f: (f / "config.json").write_text("5"), "holds no checkpoint: train first"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_hugging_face_folder_that_cannot_be_loaded_is_one_line(exported: Path, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    apply, message = HARMS[harm]
    apply(folder)
    done = scaletrain("generate", folder, "--prompt", "x", "--max-new-tokens", "1")
    assert done.code == 2, done
    assert re.fullmatch(rf"error: \S*model: {message}.*\n|error: \S*model {message}.*\n", done.err), done.err


def test_a_folder_is_found_by_its_relative_path(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [(run, "."), (run / "checkpoints", "step-00000012"), (run / "checkpoints" / "step-00000012", ".")]
    for number, (place, name) in enumerate(places):
        monkeypatch.chdir(place)
        done = scaletrain("export", name, tmp_path / str(number))
        assert done.code == 0, done.err
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert scaletrain("export", run, ".", "--overwrite").code == 0
    assert (tmp_path / "here" / "model.safetensors").is_file()


def test_the_newest_whole_checkpoint_counts_and_the_damaged_ones_are_told(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    newest, *older = sorted((copy / "checkpoints").glob("step-*"), reverse=True)
    victim = next(newest.glob("state-*"))
    victim.write_bytes(victim.read_bytes()[:-1])
    (copy / "checkpoints" / "latest").unlink()
    done = scaletrain("export", copy, tmp_path / "out")
    assert done.code == 0, done.err
    assert "step 8" in done.out
    assert re.fullmatch(rf"{newest.name} is damaged and passed over: {victim.name} has .* bytes, .*\n", done.err)
    done = scaletrain("export", newest, tmp_path / "out2")
    assert done.code == 2
    assert f"{victim.name} has" in done.err
    for folder in older:
        (folder / "manifest.json").unlink()
    done = scaletrain("export", copy, tmp_path / "out2")
    assert done.code == 2
    assert re.search(
        rf"no checkpoint is whole \({newest.name}: {victim.name} has .*: restore one from a copy", done.err
    )
    done = scaletrain("export", older[0], tmp_path / "out2")
    assert "no manifest.json: this is not a complete checkpoint" in done.err


def test_a_full_disk_is_one_line_and_leaves_no_part_of_an_export(run: Path, exported: Path, tmp_path: Path) -> None:
    disk, weights = tmp_path / "disk", (exported / "model.safetensors").stat().st_size // 2  # bfloat16
    rest = sum(file.stat().st_size for file in exported.iterdir()) - 2 * weights
    disk.mkdir()
    for size in (rest // 2, rest + weights // 2):  # full at the tokenizer, at the weights
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        try:
            done = scaletrain("export", run, disk / "out")
            assert done.code == 2, done
            wanted = (
                r"error: \S*disk/\S*out\S*: No space left on device: free some space there and run the command again"
            )
            assert re.fullmatch(wanted, done.err.strip()), done.err
            assert list(disk.iterdir()) == []
        finally:
            subprocess.run(["umount", str(disk)], check=True)
