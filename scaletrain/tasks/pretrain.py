"""Next-token prediction over tokens."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import nn

from scaletrain.config.architecture import Architecture
from scaletrain.data.rows import IGNORED, Batch, Rows
from scaletrain.data.shards import Split
from scaletrain.model.attention import HeadExchange
from scaletrain.model.checkpointing import apply_activation_checkpointing
from scaletrain.model.compiling import compile_blocks
from scaletrain.model.fp8 import multiply_in_fp8
from scaletrain.model.gpt import GPT
from scaletrain.model.hf import load_weights
from scaletrain.model.init import Gather, init_parameters
from scaletrain.model.sequence import share_rows
from scaletrain.tasks.continuation import Beginnings, continue_all
from scaletrain.tasks.scores.result import Scores
from scaletrain.tasks.task import Evaluated, Prediction, Sums, Text


class Texts(Protocol):
    """The data of a run, seen from here."""

    def rows(self, split: Split) -> Rows: ...

    def bytes_per_target(self) -> float | None:
        """UTF-8 bytes of the validation text for each token that is predicted; None where they are not known."""
        ...


class PretrainTask:
    """A GPT on the tokens of `data`."""

    def __init__(
        self,
        architecture: Architecture,
        data: Texts,
        *,
        seed: int,
        init_from: Path | None = None,
        activation_checkpointing: str = "none",
        compiled: bool = False,
        fp8: bool = False,
        sequence: HeadExchange | None = None,
        begun: Beginnings | None = None,
    ) -> None:
        self.architecture, self.data = architecture, data
        self._seed, self._init_from = seed, init_from
        self._activation_checkpointing, self._compiled = activation_checkpointing, compiled
        self._fp8, self._sequence, self._begun = fp8, sequence, begun

    @property
    def metric_names(self) -> Sequence[str]:
        return ("loss", "perplexity", "bits_per_byte")

    @property
    def needs_compiler(self) -> bool:
        return self._compiled or self._fp8

    def build_model(self) -> nn.Module:
        model = GPT(self.architecture)
        if self._fp8:
            multiply_in_fp8(model)
        apply_activation_checkpointing(model, self._activation_checkpointing)
        if self._compiled:
            compile_blocks(model)
        if self._sequence is not None:
            share_rows(model, self._sequence)
        return model

    def initialise(self, model: nn.Module, gather: Gather) -> None:
        assert isinstance(model, GPT)
        if self._init_from is None:
            init_parameters(model, self._seed, gather)
        else:
            load_weights(model, self._init_from, gather)

    def learning_rate_scale(self, name: str) -> float:
        del name  # one rate for all
        return 1.0

    def rows(self, split: Split) -> Rows:
        return self.data.rows(split)

    def weight(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def tokens(self, batch: Batch) -> int:
        """Places, padding too: a run's length in tokens is known beforehand."""
        return batch["input_ids"].numel()

    def loss_sums(self, model: nn.Module, batch: Batch) -> Sums:
        labels = batch["labels"]
        loss = model(batch["input_ids"], labels, batch.get("documents"), batch.get("document_bounds"))
        return {"loss": loss, "items": (labels != IGNORED).sum()}

    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluated:
        return Evaluated(self.loss_sums(model, batch))

    def texts(self, model: nn.Module) -> Sequence[Text]:
        if self._begun is None:
            return ()
        written = continue_all(model, self._begun)
        return [{"prompt": prompt, "text": text} for prompt, text in zip(self._begun.prompts, written, strict=True)]

    def metrics(self, sums: Mapping[str, float], predictions: Sequence[Prediction] = ()) -> Scores:
        """Mean loss in nats a token, perplexity, and bits per byte of the original text.

        Bits per byte compares models of different tokenizers: total bits over the UTF-8 bytes that the evaluated tokens
        stand for (the split's bytes a token where only a part of it was evaluated).
        """
        return Scores(text_metrics(sums["loss"], sums["items"], self.data.bytes_per_target()))


def text_metrics(loss_sum: float, items: float, bytes_per_item: float | None) -> dict[str, float]:
    """Loss (nats a token), perplexity and, where the bytes are known, bits per byte of `items` predicted tokens.

    Nothing where no token was predicted.
    """
    if not items:
        return {}
    loss = loss_sum / items
    found = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
    return found if bytes_per_item is None else {**found, "bits_per_byte": loss / math.log(2) / bytes_per_item}
