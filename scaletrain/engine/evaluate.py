"""A metric over a split, over all ranks: each sample counted once, padding never."""

from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import torch

from scaletrain.data.order import Share
from scaletrain.data.rows import Batch, Rows
from scaletrain.errors import ScaleTrainError
from scaletrain.runtime import dist, pulse
from scaletrain.tasks.scores.result import Scores
from scaletrain.tasks.task import Evaluated, Prediction, Task


class Evaluates(Protocol):
    """What can be evaluated: the engine, or a model in this process."""

    def eval_step(self, batch: Batch) -> Evaluated:
        """The task's sums over this rank's batch, on the device, and its predictions."""
        ...


class Evaluation(NamedTuple):
    """What an evaluation found, the same on every rank."""

    scores: Scores
    predictions: list[Prediction]  # by row


def evaluate(engine: Evaluates, task: Task, rows: Rows, share: Share, max_samples: int | None) -> Evaluation:
    """The task's metrics over `max_samples` rows, spread evenly over all (None: all), in micro-batches of `share`. Each
    rank takes every ranks-th batch, and all take equally many: ZeRO-3 gathers weights in each forward pass, so a rank
    that ran out would leave the others waiting. Data that one rank cannot read are a fault of all."""
    count = min(len(rows), max_samples or len(rows))
    ranks, batch_size = share.ranks, share.micro_batch
    rounds = -(-count // (batch_size * ranks))
    ids = np.full(rounds * batch_size * ranks, -1, dtype=np.int64)
    ids[:count] = np.arange(count) * len(rows) // count
    totals: dict[str, torch.Tensor] = {}
    mine: list[Prediction] = []
    fault: ScaleTrainError | None = None
    for part in ids.reshape(rounds, ranks, batch_size)[:, share.rank]:
        pulse.mark("evaluation")
        try:
            batch = rows.fetch(part)
        except ScaleTrainError as error:  # the others are in the middle of it: this rank goes on, with padding
            fault, batch = error, rows.fetch(np.full_like(part, -1))
        evaluated = engine.eval_step(share.part.of(batch))
        mine += evaluated.predictions
        for name, value in evaluated.sums.items():
            totals[name] = totals.get(name, 0) + value.double()
    with dist.together():
        if fault is not None:
            raise fault
    stacked = dist.sum_tensors(torch.stack(list(totals.values())))
    every = sorted(chain.from_iterable(dist.gather(mine)), key=lambda prediction: int(prediction["row"]))
    sums = dict(zip(totals, stacked.tolist(), strict=True))
    return Evaluation(task.metrics(sums, every), every)
