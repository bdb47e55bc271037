"""What loading and exporting fine-tuned models refuse, and the line that tells it."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scaletrain.assemble.finetuned import (
    merged_model,
    open_finetuned,
    read_exported,
    write_adapter_folder,
    write_finetuned,
)
from scaletrain.assemble.finetuning import settle_finetuning
from scaletrain.config.finetune_schema import Adapter
from scaletrain.engine.checkpoint import Found
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.model.adapters import add_adapter, need_peft
from scaletrain.model.init import whole_parameter
from scaletrain.model.network import build_network, find_model, load_network, load_quantized, read_config
from tests.finetune.conftest import Write


def found_of(write: Write, tmp_path: Path, **changes: Any) -> Found:
    """As much of a checkpoint as is read before its weights."""
    recipe = settle_finetuning(write("classify", "bert"), [], None).recipe.model_dump(mode="json")
    manifest = {"recipe": recipe | changes, "layout": {"precision": "fp32"}, "model": {"labels": ["blame", "praise"]}}
    return Found(tmp_path / "run" / "checkpoints" / "step-00000004", manifest)


def test_a_checkpoint_whose_base_is_gone_or_whose_recipe_is_strange(write: Write, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-00000004 needs the model that it was trained from: .* no config"):
        (tmp_path / "empty").mkdir()
        open_finetuned(found_of(write, tmp_path, model={"path": str(tmp_path / "empty")}))
    with pytest.raises(CheckpointError, match=r"is of another version of scaletrain \(later\): use that version"):
        open_finetuned(found_of(write, tmp_path, later=1))


def test_an_export_without_its_record(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"scaletrain.json cannot be read \(.*\): export the run again"):
        read_exported(tmp_path)


def test_what_cannot_be_exported(write: Write, models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no adapter, all its weights were trained: export it without --adapter"):
        write_adapter_folder(tmp_path / "out", found_of(write, tmp_path))
    model = build_network(read_config(models / "llama", {}), "causal", torch.float32).model
    adapter = Adapter(kind="prompt_tuning", virtual_tokens=2)
    with pytest.raises(ConfigError, match="prompt_tuning adds no weights that could be merged: export it with --adapt"):
        merged_model(add_adapter(model, adapter, "causal", 1, models / "llama"))


def test_an_export_replaces_nothing_but_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"is not empty and no earlier export \(no config.json\): choose another"):
        write_finetuned(tmp_path, None, torch.float32)  # type: ignore[arg-type]
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_packages_that_are_missing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"needs the package peft: pip install 'scaletrain\[finetune\]'"):
        need_peft()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = read_config(models / "llama", {})
    with pytest.raises(ConfigError, match=r"model.quantize=4bit needs bitsandbytes: pip install 'scaletrain\[gpu,fine"):
        load_quantized(config, "causal", models / "llama", "4bit", torch.float32, 7)


def test_a_name_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError, match=r"^model.path=some/name is no folder here, and the hub does not give it"
    ) as it:
        find_model("some/name")
    assert "\n" not in str(it.value)


def test_a_family_without_the_head() -> None:
    from transformers import CodeGenConfig

    config = CodeGenConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=4, rotary_dim=8)
    with pytest.raises(ConfigError, match="transformers has no AutoModelForTokenClassification for model_type=codegen"):
        build_network(config, "token", torch.float32)


def test_a_language_model_without_its_output_layer(write: Write, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "untied"
    shutil.copytree(models / "llama", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert load_network(build_network(read_config(folder, {}), "causal", torch.float32), folder, 1) == [
        "lm_head.weight"
    ]
    job = settle_finetuning(write("sft", "llama"), [f"model.path={folder}"], None).job
    task = job.task(job.data)
    with pytest.raises(CheckpointError, match=r"untied: lm_head.weight is missing, a language model has no weights of"):
        task.initialise(task.build_model(), whole_parameter)
