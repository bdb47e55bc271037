"""The order of a fine-tuning run again, from what its checkpoints say of their rows: no example is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaletrain.data.order import Order
from scaletrain.data.training_data import Reading


@dataclass(frozen=True)
class RowOrder:
    """`said`: a checkpoint's "data", as ExampleData.identity gave it."""

    said: Mapping[str, Any]

    def row_counts(self) -> dict[str, int]:
        return {"train": int(self.said["rows"])}

    def renumbered(self, recorded: Mapping[str, Any]) -> "RowOrder":
        del recorded  # one source needs no numbers
        return self

    def reading(self, recorded: Mapping[str, Any], samples_seen: int) -> Reading:
        del recorded, samples_seen
        rows = np.array([self.said["rows"]], dtype=np.int64)
        return Reading(Order(rows, int(self.said["seed"]), shuffle=bool(self.said["shuffle"])), {}, False)

    def identity(self) -> dict[str, Any]:
        return dict(self.said)
