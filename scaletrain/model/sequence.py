"""Sequence parallelism, applied from outside: ranks that share each row of tokens."""

from scaletrain.model.attention import Attention, HeadExchange
from scaletrain.model.gpt import GPT


def share_rows(model: GPT, exchange: HeadExchange) -> None:
    """`model` then takes the tokens of `exchange.place` of each row, and gives the loss of those alone.

    Every rank of the exchange calls it at the same time, forward and backward; documents_BT stay whole.
    """
    model.row_place, model.row_parts = exchange.place, exchange.size
    for module in model.modules():
        if isinstance(module, Attention):
            module.exchange = exchange
