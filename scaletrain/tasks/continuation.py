"""How a GPT that is being trained goes on with the beginnings of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from scaletrain.data.tokenizer import Tokenizer

_LENGTHS = 128  # rows have a multiple of so many places: few shapes for a compiled or FP8 model
_TEMPERATURE = 0.8
_SEED = 1  # of all samplings: texts of two evaluations differ by the weights alone


@dataclass(frozen=True)
class Beginnings:
    """`rows`: the tokens of each prompt, one at least; `new_tokens` are added to each, within `longest` together."""

    prompts: Sequence[str]
    rows: Sequence[Sequence[int]]
    new_tokens: int
    longest: int
    tokenizer: Tokenizer


def continue_all(model: nn.Module, begun: Beginnings) -> list[str]:
    """The text after each prompt, up to the first end-of-text token. All ranks call it at once.

    Each token takes a forward pass over whole rows of a fixed length, without a cache of keys: every rank makes as many
    passes as the others (ZeRO-3 gathers weights in each), and blocks that are compiled or in FP8 see one shape. Nothing
    of the run's random state is used.
    """
    device = next(model.parameters()).device
    lengths = torch.tensor([len(row) for row in begun.rows])
    places = min(begun.longest, -(-(int(lengths.max()) + begun.new_tokens) // _LENGTHS) * _LENGTHS)
    ids_BT = torch.zeros(len(begun.rows), places, dtype=torch.long)
    for ids_T, row in zip(ids_BT, begun.rows, strict=True):
        ids_T[: len(row)] = torch.tensor(row)
    chance = torch.Generator().manual_seed(_SEED)
    every = torch.arange(len(ids_BT))
    for at in range(begun.new_tokens):
        logits_BTV = model(ids_BT.to(device))
        last_BV = logits_BTV[every.to(device), (lengths + at - 1).to(device)].float().cpu()
        last_BV = last_BV[:, : begun.tokenizer.vocab_size]  # the embedding's other rows stand for nothing
        shares_BV = torch.softmax(last_BV / _TEMPERATURE, dim=-1).nan_to_num(1e-9)  # of broken weights: anything
        ids_BT[every, lengths + at] = torch.multinomial(shares_BV, 1, generator=chance)[:, 0]
    return [
        _text(ids_T[n : n + begun.new_tokens].tolist(), begun.tokenizer)
        for ids_T, n in zip(ids_BT, lengths.tolist(), strict=True)
    ]


def _text(ids: list[int], tokenizer: Tokenizer) -> str:
    end = ids.index(tokenizer.eos_id) if tokenizer.eos_id in ids else len(ids)
    return tokenizer.decode(ids[:end])
