"""A transformers model read from its folder a parameter at a time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.model.network import (
    AUTO_CLASSES,
    Head,
    build_network,
    depth_of,
    find_model,
    folder_print,
    freeze,
    load_network,
    longest_row,
    read_config,
)

LABELS = {"num_labels": 3, "pad_token_id": 0}


@pytest.mark.parametrize("model", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("head", ["sequence", "token", "span", "causal"])
def test_weights_are_those_that_transformers_reads(model: str, head: Head, models: Path) -> None:
    if (model, head) == ("bert", "causal"):
        pytest.skip("an encoder writes no text")
    import transformers

    config = read_config(models / model, {} if head == "causal" else LABELS)
    network = build_network(config, head, torch.float32)
    new = load_network(network, models / model, 1)
    assert bool(new) == (head != "causal")
    auto = getattr(transformers, AUTO_CLASSES[head])
    if (model, head) == ("llama", "span"):  # whose base model transformers begins anew, without a word of error
        theirs = {
            f"transformer.{n}": p for n, p in transformers.AutoModel.from_pretrained(models / model).named_parameters()
        }
    else:
        theirs = dict(auto.from_pretrained(models / model, config=config).named_parameters())
    for name, parameter in network.model.named_parameters():
        assert torch.isfinite(parameter).all()
        assert name in new or torch.equal(parameter, theirs[name]), name


def test_tied_weights_stay_tied(models: Path) -> None:
    model = build_network(read_config(models / "llama", {}), "causal", torch.float32).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def copied(models: Path, folder: Path, old: str = "", new: str = "") -> Path:
    """The Llama, with `old` as `new` in the names of its weights."""
    shutil.copytree(models / "llama", folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace(old, new) if old else name: tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_file_without_a_weight_is_refused(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path / "m", "up_proj", "other")
    network = build_network(read_config(folder, {}), "causal", torch.float32)
    with pytest.raises(CheckpointError, match="weights are missing, .*up_proj.* among them: copy or export"):
        load_network(network, folder, 1)


def test_a_weight_of_another_shape_is_refused(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    network = build_network(read_config(folder, {}), "causal", torch.float32)
    with pytest.raises(CheckpointError, match=r"is \(64, 32\) where the config says \(128, 32\)"):
        load_network(network, folder, 1)


def test_folders_that_hold_no_model_are_told(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no config.json: give a Hugging Face folder"):
        find_model(str(tmp_path))
    with pytest.raises(ConfigError, match="is not a folder: give a Hugging Face folder or a hub name"):
        find_model("./nothing")
    (tmp_path / "config.json").write_text('{"model_type": "no-such"}')
    with pytest.raises(ConfigError, match="transformers does not know its config"):
        read_config(tmp_path, {})
    assert find_model(str(models / "bert")) == models / "bert"


def test_a_folder_is_told_from_another_by_any_of_its_files(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path / "m")
    before = folder_print(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert folder_print(folder) != before
    assert folder_print(models / "llama") != folder_print(models / "gpt2")


def test_parts_are_frozen(models: Path) -> None:
    config = read_config(models / "bert", LABELS)
    model = build_network(config, "sequence", torch.float32).model
    freeze(model, "all_but_head")
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]
    causal = build_network(read_config(models / "llama", {}), "causal", torch.float32).model
    freeze(causal, "embeddings")
    assert not causal.model.embed_tokens.weight.requires_grad
    assert causal.model.norm.weight.requires_grad
    with pytest.raises(ConfigError, match="model.freeze=all_but_head leaves nothing to train"):
        freeze(build_network(read_config(models / "llama", {}), "causal", torch.float32).model, "all_but_head")


def test_depth_counts_from_the_input(models: Path) -> None:
    config = read_config(models / "bert", LABELS)
    names = [n for n, _ in build_network(config, "sequence", torch.float32).named_parameters()]
    depths = {name: depth_of(name, config) for name in names}
    assert {d for n, d in depths.items() if "embeddings" in n} == {0}
    assert {d for n, d in depths.items() if ".layer.1." in n} == {2}
    assert {d for n, d in depths.items() if "classifier" in n} == {3}
    assert longest_row(config) == 128
