"""Architectures: every preset resolves to sizes that can be built; every rule has its message."""

import pytest

from scaletrain.config.architecture import PRESETS, Architecture, architecture_problems, resolve_architecture
from scaletrain.config.schema import Model
from scaletrain.errors import ConfigError


def parameters(arch: Architecture) -> int:
    """Matrix parameters, embeddings included; biases and norms left out."""
    attention = arch.hidden_size * (2 * arch.hidden_size + 2 * arch.num_kv_heads * arch.head_dim)
    feed_forward = (3 if arch.family == "llama" else 2) * arch.hidden_size * arch.ffn_hidden_size
    embeddings = arch.vocab_size * arch.hidden_size * (1 if arch.tie_embeddings else 2)
    positions = arch.max_positions * arch.hidden_size if arch.family == "gpt2" else 0
    return arch.num_layers * (attention + feed_forward) + embeddings + positions


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_built_and_has_the_size_of_its_name(preset: str) -> None:
    arch = resolve_architecture(Model(preset=preset), tokenizer_vocab=32_000, context_length=1024)
    assert architecture_problems(arch, 32_000, 1024) == []
    name = preset.rpartition("-")[2]
    if name[-1] in "mb":
        wanted = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
        assert parameters(arch) == pytest.approx(wanted, rel=0.2)


def test_gpt2_124m_and_llama_7b_are_the_published_sizes() -> None:
    gpt2 = resolve_architecture(Model(preset="gpt2-124m", vocab_size=50257), 50257, 1024)
    assert parameters(gpt2) == 124_318_464  # 124,439,808 of Radford et al. less biases and norms
    llama = resolve_architecture(Model(preset="llama-7b", vocab_size=32000), 32000, 2048)
    assert parameters(llama) == 6_738_149_376  # 6,738,415,616 of Touvron et al. less norms


def test_a_field_given_wins_over_the_preset() -> None:
    arch = resolve_architecture(Model(preset="llama-124m", num_layers=3, tie_embeddings=False, norm_eps=1e-6), 100, 64)
    assert (arch.num_layers, arch.tie_embeddings, arch.norm_eps, arch.hidden_size) == (3, False, 1e-6, 768)
    assert (arch.vocab_size, arch.max_positions) == (128, 64)


def test_other_widths_do_not_keep_the_presets_key_value_heads_or_inner_width() -> None:
    arch = resolve_architecture(Model(preset="llama-7b", hidden_size=1024, num_heads=8), 100, 64)
    assert (arch.num_kv_heads, arch.ffn_hidden_size) == (8, 2752)  # 8/3 x 1024 rounded up to 64


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (Model(preset="llama-tny"), "model.preset=llama-tny is unknown: did you mean llama-tiny?"),
        (Model(preset="zzz"), "model.preset=zzz is unknown: choose one of gpt2-tiny"),
        (Model(), "model.family is not set: give model.preset (gpt2-tiny"),
        (Model(family="gpt2", num_layers=2), "model.num_heads, model.hidden_size not set: give a model.preset"),
        (Model(preset="gpt2-tiny", num_heads=3), "model.hidden_size=128 is not a multiple of model.num_heads=3"),
        (Model(preset="llama-tiny", num_heads=128), "head size 1 (hidden_size / num_heads) is odd"),
        (Model(preset="llama-tiny", num_kv_heads=3), "model.num_heads=4 is not a multiple of model.num_kv_heads=3"),
        (Model(preset="gpt2-tiny", qk_norm=True), "model.qk_norm is for the llama family: remove it"),
        (Model(preset="llama-tiny", vocab_size=50), "model.vocab_size=50 is smaller than the tokenizer's 100"),
        (Model(preset="llama-tiny", max_positions=32), "data.context_length=64 is longer than model.max_positions=32"),
    ],
)
def test_each_rule_has_its_message(model: Model, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_architecture(model, tokenizer_vocab=100, context_length=64)
    assert line in str(caught.value)


def test_grouped_query_attention_is_refused_for_gpt2() -> None:
    arch = Architecture("gpt2", 128, 64, 2, 4, 2, 128, 512, True)
    assert "model.num_kv_heads is for the llama family" in architecture_problems(arch, 100, 64)[0]
    with pytest.raises(ConfigError, match="llama family"):
        resolve_architecture(Model(preset="gpt2-tiny", num_kv_heads=2), 100, 64)
