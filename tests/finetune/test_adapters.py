"""Adapters: what trains, what a folder holds, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from scaletrain.assemble.finetuned import merged_model
from scaletrain.config.finetune_schema import Adapter, FinetuneData, FinetuneModel, TaskSection
from scaletrain.data.examples.example import Example
from scaletrain.data.text_tokenizer import load_text_tokenizer
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.model.adapters import add_adapter, check_adapter, write_adapter
from scaletrain.model.network import Head, Network, build_network, load_network, read_config
from scaletrain.tasks.span_qa import SpanQa


def loaded(models: Path, model: str, head: Head) -> Any:
    changes = {} if head == "causal" else {"num_labels": 2 if head == "span" else 3, "pad_token_id": 0}
    network = build_network(read_config(models / model, changes), head, torch.float32)
    load_network(network, models / model, 7)
    return network.model


def stirred(models: Path, model: str, head: Head, adapter: Adapter) -> Any:
    """With an adapter whose weights are no longer those that change nothing."""
    wrapped = add_adapter(loaded(models, model, head), adapter, head, 3, models / model)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return wrapped.eval()


CASES = [
    ("bert", "sequence", "lora"), ("bert", "token", "ia3"), ("llama", "causal", "dora"), ("gpt2", "causal", "rslora"),
    ("llama", "span", "lora"), ("llama", "causal", "prompt_tuning"),
    ("bert", "sequence", "prompt_tuning"),
]  # fmt: skip
INPUT = torch.tensor([[7, 8, 9, 10, 11, 12]])


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(input_ids=INPUT)
    return found.start_logits if hasattr(found, "start_logits") else found.logits


@pytest.mark.parametrize(("model", "head", "kind"), CASES)
def test_a_written_adapter_is_read_by_peft_and_computes_the_same(
    model: str, head: Head, kind: str, models: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    wrapped = stirred(models, model, head, Adapter(kind=kind, rank=4))
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert all("base_layer" not in name for name in trained)
    empty = copy.deepcopy(wrapped).to("meta")  # as at a run's end, where a checkpoint has the weights
    write_adapter(tmp_path / "adapter", empty, trained, str(models / model))
    again = PeftModel.from_pretrained(loaded(models, model, head), tmp_path / "adapter").eval()
    assert torch.equal(output(again), output(wrapped))
    if kind != "prompt_tuning":
        before = output(wrapped)
        merged = wrapped.merge_and_unload(safe_merge=True)
        assert (output(merged) - before).abs().max() < 1e-5


KINDS = ["lora", "dora", "rslora", "ia3"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("model", "head"), [("bert", "sequence"), ("gpt2", "causal"), ("llama", "token")])
def test_only_new_weights_and_the_head_are_trained(kind: str, model: str, head: Head, models: Path) -> None:
    base = loaded(models, model, head)
    wrapped = add_adapter(base, Adapter(kind=kind, rank=4), head, 3, models / model)
    before = {name: p.detach().clone() for name, p in wrapped.named_parameters()}
    found = wrapped(input_ids=INPUT).logits
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.5)
    found.float().pow(2).sum().backward()
    optimizer.step()
    moved = {name for name, p in wrapped.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name or "ia3_" in name or "modules_to_save" in name for name in moved), moved
    assert any("modules_to_save" in name for name in moved) == (head != "causal")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_an_adapter_begins_without_effect_and_is_merged_without_one(kind: str, model: str, models: Path) -> None:
    plain = output(loaded(models, model, "causal").eval())
    fresh = add_adapter(loaded(models, model, "causal"), Adapter(kind=kind, rank=4), "causal", 3, models / model)
    assert (output(fresh.eval()) - plain).abs().max() < 1e-6
    wrapped = stirred(models, model, "causal", Adapter(kind=kind, rank=4))
    adapted = output(wrapped)
    assert (adapted - plain).abs().max() > 1e-3
    assert (output(wrapped.merge_and_unload(safe_merge=True)) - adapted).abs().max() < 1e-5


def test_equal_seeds_begin_with_equal_weights(models: Path) -> None:
    first, second, other = (
        dict(add_adapter(loaded(models, "bert", "sequence"), Adapter(kind="lora"), "sequence", seed).named_parameters())
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(p, second[name]) for name, p in first.items())
    assert any(not torch.equal(p, other[name]) for name, p in first.items())


def test_an_empty_or_changed_adapter_is_refused(models: Path, tmp_path: Path) -> None:
    wrapped = stirred(models, "llama", "causal", Adapter(kind="lora", rank=4))
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    write_adapter(tmp_path, wrapped, trained, "base")
    state = load_file(tmp_path / "adapter_model.safetensors")
    name = next(iter(state))
    for broken in (torch.zeros(0), state[name] + 1):
        with pytest.raises(CheckpointError, match="is not as it was trained"):
            check_adapter({**state, name: broken}, state, trained, tmp_path)
    with pytest.raises(CheckpointError, match="trained numbers: report this"):
        check_adapter({}, {}, trained, tmp_path)


def test_targets_that_name_no_layer_are_told_with_those_that_there_are(models: Path) -> None:
    line = r"adapter.targets=\[attention_x\] names no layer of this model: choose among .*q_proj.*, or all-linear"
    with pytest.raises(ConfigError, match=line):
        add_adapter(loaded(models, "llama", "causal"), Adapter(kind="lora", targets=("attention_x",)), "causal", 1)


def test_a_merged_model_answers_as_the_adapted_one_did(models: Path) -> None:
    tokenizer = load_text_tokenizer(FinetuneModel(path="x"), models / "bert")
    kind = SpanQa(TaskSection(kind="span_qa"), FinetuneData(train="x", max_length=64), tokenizer)
    context = "Anna lives in Paris . Bob was in Berlin ."
    example = Example({"id": "1", "question": "where ?", "context": context, "answers": (("Paris", 14),)}, "x:1")
    batch = kind.collate(kind.encode([example], "train").rows)
    assert batch["token_type_ids"].any()  # which PEFT's own forward would leave out
    network = Network(stirred(models, "bert", "span", Adapter(kind="lora", rank=4)))
    losses = [kind.loss_sums(network, batch)["loss"].item()]
    network.model = merged_model(network.model)
    losses.append(kind.loss_sums(network, batch)["loss"].item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
