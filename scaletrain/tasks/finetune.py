"""Fine-tuning as a task: a transformers model with its head and adapters, and a kind that knows what is asked of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.data.example_data import ExampleData
from scaletrain.data.rows import Batch, Rows
from scaletrain.data.shards import Split
from scaletrain.errors import CheckpointError
from scaletrain.model.adapters import add_adapter
from scaletrain.model.init import Gather
from scaletrain.model.network import (
    Network,
    begin_weights,
    build_network,
    depth_of,
    freeze,
    layers_of,
    load_network,
    load_quantized,
)
from scaletrain.tasks.kind import Kind
from scaletrain.tasks.scores.result import Scores
from scaletrain.tasks.task import Evaluated, Prediction, Sums, Text


@dataclass(frozen=True)
class Finetune:
    """As Task. `config`: the model's, with the changes that the kind asks for; `folder`: of its weights."""

    recipe: FinetuneRecipe
    kind: Kind
    config: Any
    folder: Path
    dtype: torch.dtype
    data: ExampleData | None = None

    @property
    def needs_compiler(self) -> bool:
        return True  # transformers' models load it

    def build_model(self) -> nn.Module:
        extra, bits = self.kind.extra(self.config), self.recipe.model.quantize
        if bits == "none":
            network = build_network(self.config, self.kind.head, self.dtype, extra)
        else:
            network = load_quantized(self.config, self.kind.head, self.folder, bits, self.dtype, self.recipe.seed)
            network.extra = extra
        self._checkpoint(network)
        return network

    def bare_network(self, *, checkpoints: bool) -> Network:
        """As it is trained, with unset weights, for a dry pass: with its blocks computed again, where the recipe has
        it, or not."""
        network = build_network(self.config, self.kind.head, self.dtype, self.kind.extra(self.config))
        if checkpoints:
            self._checkpoint(network)
        self._adapt(network)
        return network

    def _checkpoint(self, network: Network) -> None:
        if self.recipe.train.activation_checkpointing == "full":
            model: Any = network.model
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def initialise(self, model: nn.Module, gather: Gather) -> None:
        assert isinstance(model, Network)
        seed = self.recipe.seed
        is_loaded = self.recipe.model.quantize != "none"
        new = [] if is_loaded else load_network(model, self.folder, seed, gather)
        if new and self.kind.head == "causal":
            raise CheckpointError(
                f"{self.folder}: {new[0]} is missing, a language model has no weights of its own to begin with: copy "
                "or export the folder again"
            )
        if model.extra is not None:
            begin_weights(model.extra, "extra", seed, gather)
        self._adapt(model)

    def _adapt(self, network: Network) -> None:
        recipe = self.recipe
        if recipe.adapter.kind == "none":
            freeze(network.model, recipe.model.freeze)
            return
        network.model = add_adapter(network.model, recipe.adapter, self.kind.head, recipe.seed, self.folder)
        if recipe.train.activation_checkpointing == "full":
            adapted: Any = network.model
            adapted.enable_input_require_grads()

    def learning_rate_scale(self, name: str) -> float:
        """optim.layer_decay to the power of the blocks between a parameter and the head."""
        decay = self.recipe.optim.layer_decay
        if decay == 1.0:
            return 1.0
        return float(decay ** (layers_of(self.config) + 1 - depth_of(name, self.config)))

    def rows(self, split: Split) -> Rows:
        assert self.data is not None
        return self.data.rows(split)

    def weight(self, batch: Batch) -> int:
        return self.kind.weight(batch)

    def tokens(self, batch: Batch) -> int:
        return self.kind.tokens(batch)

    def loss_sums(self, model: nn.Module, batch: Batch) -> Sums:
        return self.kind.loss_sums(model, batch)

    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluated:
        return self.kind.evaluate(model, batch)

    def texts(self, model: nn.Module) -> Sequence[Text]:
        del model  # its predictions are kept
        return ()

    @property
    def metric_names(self) -> Sequence[str]:
        return self.kind.metric_names

    def metrics(self, sums: Mapping[str, float], predictions: Sequence[Prediction]) -> Scores:
        return self.kind.metrics(sums, predictions)
