"""What a GPT is made of: the frozen architecture, the named presets, and a recipe's `model` section resolved to one."""

from dataclasses import dataclass

from scaletrain.config.problems import closest
from scaletrain.config.schema import Family, Model
from scaletrain.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """Sizes of one decoder-only transformer. `max_positions` is in tokens."""

    family: Family
    vocab_size: int
    max_positions: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    hidden_size: int
    ffn_hidden_size: int
    tie_embeddings: bool
    qk_norm: bool = False
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class Size:
    """Layers, heads, width of a preset; `kv` key/value heads and `ffn` width where they are not the default."""

    layers: int
    heads: int
    hidden: int
    kv: int | None = None
    ffn: int | None = None
    tied: bool = False


# GPT-2 sizes: Radford et al. 2019 and Brown et al. 2020, table 2.1. Llama sizes: the same depths and widths; 7b and 13b
# are Touvron et al. 2023, table 2. The tiny and small ones train on a CPU in minutes.
PRESETS: dict[str, tuple[Family, Size]] = {
    "gpt2-tiny": ("gpt2", Size(2, 4, 128, tied=True)),
    "gpt2-mini": ("gpt2", Size(4, 4, 256, tied=True)),
    "gpt2-small-cpu": ("gpt2", Size(6, 6, 384, tied=True)),
    "gpt2-124m": ("gpt2", Size(12, 12, 768, tied=True)),
    "gpt2-350m": ("gpt2", Size(24, 16, 1024, tied=True)),
    "gpt2-760m": ("gpt2", Size(24, 16, 1536, tied=True)),
    "gpt2-1.3b": ("gpt2", Size(24, 32, 2048, tied=True)),
    "gpt2-2.7b": ("gpt2", Size(32, 32, 2560, tied=True)),
    "gpt2-7b": ("gpt2", Size(32, 32, 4096, tied=True)),
    "gpt2-13b": ("gpt2", Size(40, 40, 5120, tied=True)),
    "llama-tiny": ("llama", Size(2, 4, 128, kv=2, tied=True)),
    "llama-mini": ("llama", Size(4, 4, 256, kv=2, tied=True)),
    "llama-small-cpu": ("llama", Size(6, 6, 384, kv=2, tied=True)),
    "llama-124m": ("llama", Size(12, 12, 768, kv=4, tied=True)),
    "llama-350m": ("llama", Size(24, 16, 1024, kv=8, tied=True)),
    "llama-760m": ("llama", Size(24, 16, 1536, kv=8, tied=True)),
    "llama-1.3b": ("llama", Size(24, 16, 2048, kv=8)),
    "llama-2.7b": ("llama", Size(32, 20, 2560, kv=4)),
    "llama-7b": ("llama", Size(32, 32, 4096, ffn=11008)),
    "llama-13b": ("llama", Size(40, 40, 5120, ffn=13824)),
}


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def resolve_architecture(model: Model, tokenizer_vocab: int, context_length: int) -> Architecture:
    """The architecture that a recipe means, given the tokenizer's size and `data.context_length` (tokens).

    Raises ConfigError with every problem found: unknown preset, a missing size, sizes that do not divide.
    """
    family, size = _preset(model)
    family = model.family or family
    if family is None:
        raise ConfigError(
            f"model.family is not set: give model.preset ({', '.join(PRESETS)}) or model.family and sizes"
        )
    layers = model.num_layers or (size.layers if size else None)
    heads = model.num_heads or (size.heads if size else None)
    hidden = model.hidden_size or (size.hidden if size else None)
    if layers is None or heads is None or hidden is None:
        missing = [n for n, v in (("num_layers", layers), ("num_heads", heads), ("hidden_size", hidden)) if v is None]
        raise ConfigError(f"model.{', model.'.join(missing)} not set: give a model.preset or all three sizes")
    resized = size is None or (heads, hidden) != (size.heads, size.hidden)
    default_kv = heads if size is None or resized or size.kv is None else size.kv
    default_ffn = 4 * hidden if family == "gpt2" else round_up(8 * hidden // 3, 64)
    if size is not None and size.ffn is not None and not resized:
        default_ffn = size.ffn
    arch = Architecture(
        family=family,
        vocab_size=model.vocab_size or round_up(tokenizer_vocab, 128),
        max_positions=model.max_positions or context_length,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=model.num_kv_heads or (default_kv if family == "llama" else heads),
        hidden_size=hidden,
        ffn_hidden_size=model.ffn_hidden_size or default_ffn,
        tie_embeddings=model.tie_embeddings if model.tie_embeddings is not None else (size.tied if size else True),
        qk_norm=bool(model.qk_norm),
        norm_eps=model.norm_eps or 1e-5,
        rope_theta=model.rope_theta or 10_000.0,
    )
    if problems := architecture_problems(arch, tokenizer_vocab, context_length):
        raise ConfigError("; ".join(problems))
    return arch


def _preset(model: Model) -> tuple[Family | None, Size | None]:
    if model.preset is None:
        return None, None
    if model.preset not in PRESETS:
        close = closest(model.preset, PRESETS)
        remedy = f"did you mean {close}?" if close else f"choose one of {', '.join(PRESETS)}"
        raise ConfigError(f"model.preset={model.preset} is unknown: {remedy}")
    return PRESETS[model.preset]


def architecture_problems(arch: Architecture, tokenizer_vocab: int, context_length: int) -> list[str]:
    """Every rule that `arch` breaks for this tokenizer and context, one line each; empty when it can be built."""
    found = []
    if arch.hidden_size % arch.num_heads:
        found.append(f"model.hidden_size={arch.hidden_size} is not a multiple of model.num_heads={arch.num_heads}")
    elif arch.family == "llama" and arch.head_dim % 2:
        found.append(f"head size {arch.head_dim} (hidden_size / num_heads) is odd: rotary positions need an even one")
    if arch.num_heads % arch.num_kv_heads:
        found.append(f"model.num_heads={arch.num_heads} is not a multiple of model.num_kv_heads={arch.num_kv_heads}")
    if arch.family == "gpt2" and arch.num_kv_heads != arch.num_heads:
        found.append("model.num_kv_heads is for the llama family: remove it or set model.family=llama")
    if arch.family == "gpt2" and arch.qk_norm:
        found.append("model.qk_norm is for the llama family: remove it or set model.family=llama")
    if arch.vocab_size < tokenizer_vocab:
        found.append(
            f"model.vocab_size={arch.vocab_size} is smaller than the tokenizer's {tokenizer_vocab}: raise or remove it"
        )
    if arch.max_positions < context_length:
        found.append(
            f"data.context_length={context_length} is longer than model.max_positions={arch.max_positions}: "
            "shorten the context or raise max_positions"
        )
    return found
