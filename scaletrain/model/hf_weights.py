"""Our weights and Hugging Face's: which tensors of theirs make one of ours, in both directions, exactly."""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scaletrain.config.architecture import Architecture
from scaletrain.errors import CheckpointError


@dataclass(frozen=True)
class Piece:
    """One of our parameters: `hf` tensors stacked along their rows (`rows` of each), each transposed first or not.

    Hugging Face's GPT-2 keeps its matrices as (in, out): Conv1D.
    """

    name: str
    hf: tuple[str, ...]
    rows: tuple[int, ...]
    transposed: bool = False


def pieces(arch: Architecture) -> Iterator[Piece]:
    """Every parameter of GPT(arch), by the name that `named_parameters` gives it (a tied head is the embedding)."""
    root, make_block = ("transformer.", _gpt2_block) if arch.family == "gpt2" else ("model.", _llama_block)
    vocab = (arch.vocab_size,)
    if arch.family == "gpt2":
        yield Piece("embedding.weight", (f"{root}wte.weight",), vocab)
        yield Piece("positions.weight", (f"{root}wpe.weight",), (arch.max_positions,))
    else:
        yield Piece("embedding.weight", (f"{root}embed_tokens.weight",), vocab)
    for index in range(arch.num_layers):
        yield from make_block(arch, index)
    if arch.family == "gpt2":
        for kind in ("weight", "bias"):
            yield Piece(f"final_norm.{kind}", (f"{root}ln_f.{kind}",), (arch.hidden_size,))
    else:
        yield Piece("final_norm.weight", (f"{root}norm.weight",), (arch.hidden_size,))
    if not arch.tie_embeddings:
        yield Piece("head.weight", ("lm_head.weight",), vocab)


def _gpt2_block(arch: Architecture, index: int) -> Iterator[Piece]:
    C, ours, theirs = arch.hidden_size, f"blocks.{index}", f"transformer.h.{index}"
    for kind in ("weight", "bias"):
        yield Piece(f"{ours}.attention_norm.{kind}", (f"{theirs}.ln_1.{kind}",), (C,))
        yield Piece(f"{ours}.feed_forward_norm.{kind}", (f"{theirs}.ln_2.{kind}",), (C,))
        is_matrix = kind == "weight"
        yield Piece(f"{ours}.attention.qkv.{kind}", (f"{theirs}.attn.c_attn.{kind}",), (3 * C,), is_matrix)
        yield Piece(f"{ours}.attention.output.{kind}", (f"{theirs}.attn.c_proj.{kind}",), (C,), is_matrix)
        yield Piece(
            f"{ours}.feed_forward.up.{kind}", (f"{theirs}.mlp.c_fc.{kind}",), (arch.ffn_hidden_size,), is_matrix
        )
        yield Piece(f"{ours}.feed_forward.down.{kind}", (f"{theirs}.mlp.c_proj.{kind}",), (C,), is_matrix)


def _llama_block(arch: Architecture, index: int) -> Iterator[Piece]:
    C, F, ours, theirs = arch.hidden_size, arch.ffn_hidden_size, f"blocks.{index}", f"model.layers.{index}"
    kv = arch.num_kv_heads * arch.head_dim
    yield Piece(f"{ours}.attention_norm.weight", (f"{theirs}.input_layernorm.weight",), (C,))
    yield Piece(
        f"{ours}.attention.qkv.weight",
        tuple(f"{theirs}.self_attn.{part}_proj.weight" for part in "qkv"),
        (C, kv, kv),
    )
    yield Piece(f"{ours}.attention.output.weight", (f"{theirs}.self_attn.o_proj.weight",), (C,))
    if arch.qk_norm:
        yield Piece(f"{ours}.attention.query_norm.weight", (f"{theirs}.self_attn.q_norm.weight",), (arch.head_dim,))
        yield Piece(f"{ours}.attention.key_norm.weight", (f"{theirs}.self_attn.k_norm.weight",), (arch.head_dim,))
    yield Piece(f"{ours}.feed_forward_norm.weight", (f"{theirs}.post_attention_layernorm.weight",), (C,))
    yield Piece(f"{ours}.feed_forward.gate.weight", (f"{theirs}.mlp.gate_proj.weight",), (F,))
    yield Piece(f"{ours}.feed_forward.up.weight", (f"{theirs}.mlp.up_proj.weight",), (F,))
    yield Piece(f"{ours}.feed_forward.down.weight", (f"{theirs}.mlp.down_proj.weight",), (C,))


def to_hf(arch: Architecture, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict (a tied head may be in it or not) under Hugging Face's names; CheckpointError names what lacks."""
    out: dict[str, Tensor] = {}
    for piece in pieces(arch):
        if piece.name not in state:
            raise CheckpointError(f"the weights hold no {piece.name}: they belong to another architecture")
        for name, part in zip(piece.hf, torch.split(state[piece.name], list(piece.rows)), strict=True):
            if piece.transposed:
                out[name] = part.t().contiguous()
            else:
                out[name] = part.clone() if len(piece.hf) > 1 else part  # safetensors refuses views of one memory
    return out


def from_hf(arch: Architecture, hf_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Hugging Face state dict under our names, complete for `GPT(arch).load_state_dict`; errors as `read_piece`'s."""
    names = hf_state.keys()
    state = {piece.name: read_piece(piece, lambda name: hf_state[find_name(names, name)]) for piece in pieces(arch)}
    if arch.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    return state


def read_piece(piece: Piece, read: Callable[[str], Tensor]) -> Tensor:
    """Our tensor of `piece`, from `read(hf name)`; CheckpointError when a tensor has another size."""
    parts = []
    for name, rows in zip(piece.hf, piece.rows, strict=True):
        tensor = read(name).t() if piece.transposed else read(name)
        if tensor.shape[0] != rows:
            raise CheckpointError(
                f"{name} has {tensor.shape[0]} rows where config.json means {rows}: a damaged folder?"
            )
        parts.append(tensor)
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def find_name(names: Container[str], wanted: str) -> str:
    """`wanted` as a folder spells it: a bare model's, such as OpenAI's GPT-2, lacks the first part of each name."""
    bare = wanted.split(".", 1)[1]
    for name in (wanted, bare):
        if name in names:
            return name
    raise CheckpointError(f"tensor {wanted} is missing: the folder's weights do not match its config.json")
