"""What the guards of a run hear each step, and how it is told: as events, and in a line for a person."""

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from scaletrain.config.schema import BaseRecipe, Recipe
from scaletrain.engine.engine import StepResult
from scaletrain.engine.guard import (
    SkipGuard,
    SpikeGuard,
    StragglerGuard,
    cause_of_skip,
    not_finite,
    show_command,
)
from scaletrain.engine.records import Records
from scaletrain.engine.state import RunState
from scaletrain.errors import CorruptionError
from scaletrain.runtime import dist


class Watch:
    """All ranks tell it the same and at the same time. What it raises, TrainingError or GoBack, all ranks raise.

    `memory`: what an earlier launch's watch had seen, see there; `position`: where the run goes on; `stages`: the
    samples from which on the mixture of the data is another, with losses of its own.
    """

    def __init__(
        self,
        recipe: BaseRecipe,
        records: Records,
        memory: Mapping[str, Any],
        position: int = 0,
        stages: Sequence[int] = (),
    ) -> None:
        self._recipe, self._records = recipe, records
        self._before, self._stages = position - 1, stages
        self._skips = SkipGuard(recipe.guard, int(memory.get("skips_in_a_row", 0)))
        self._spikes = SpikeGuard(recipe.guard, memory)
        self._stragglers = StragglerGuard(recipe.guard)

    @property
    def memory(self) -> dict[str, Any]:
        """For the next launch, which goes on watching as if there had been no end."""
        return {"skips_in_a_row": self._skips.in_a_row, **self._spikes.seen}

    def update(self, result: StepResult, state: RunState, batch: int) -> None:
        """Hears of a step that led to `state`, of `batch` samples; tells why its update was left out, if it was."""
        if not result.skipped:
            self._skips.note(None)
            return
        bad = not_finite(dist.gather(result.micro_losses()))  # all ranks skip together, so all come here
        first = state.samples_seen - batch
        cause = cause_of_skip(result.weight, bad, first, batch)
        self._records.event(
            "skip", state.step, reason=cause, first_sample=first, samples=batch,
            ranks=sorted({rank for rank, _ in bad}),
            micro_batches=[{"rank": rank, "micro_batch": number} for rank, number in bad],
        )  # fmt: skip
        self._records.say(f"skipped step {state.step}: {cause}{self._how_to_show(first, batch)}")
        is_usual = not result.weight or (self._recipe.train.precision == "fp16" and not bad)
        self._skips.note(cause, state.step, state.samples_seen, is_usual=is_usual)

    def loss(self, loss: float, state: RunState, batch: int) -> None:
        """Hears of the mean loss over all ranks of the step that led to `state`."""
        first = state.samples_seen - batch
        if any(self._before < start <= first for start in self._stages):
            self._spikes = SpikeGuard(self._recipe.guard)
        self._before = first
        spike = self._spikes.note(loss, state.step, first, batch)
        if spike is None:
            return
        self._records.event("spike", state.step, **asdict(spike))
        shown = self._how_to_show(spike.first_sample, spike.samples)
        self._records.say(f"spike   at step {state.step}: {spike}{shown}")
        self._spikes.judge(spike)

    def seconds(self, mine: float, step: int) -> dict[str, Any]:
        """Hears of this rank's own seconds a step; what metrics.jsonl says of all ranks'."""
        gathered: list[tuple[float, str]] = dist.gather((mine, socket.gethostname()))
        if len(gathered) == 1:
            return {}
        every = [seconds for seconds, _ in gathered]
        if (found := self._stragglers.note(every)) is not None:
            change, rank, numbers = found
            host, worst, middle = gathered[rank][1], numbers["seconds"], numbers["median_seconds"]
            self._records.event("straggler", step, change=change, slow_host=host, **numbers)
            slow = f"is slow: {worst:.3f} s a step of its own where the median is {middle:.3f} s"
            self._records.say(f"note    rank {rank} on {host} {slow if change == 'slow' else 'is slow no longer'}")
        return {"rank_seconds_median": sorted(every)[(len(every) - 1) // 2], "rank_seconds_max": max(every)}

    def weights(self, digest: int | None, state: RunState) -> None:
        """Compares digests of the weights, which all ranks hold alike; None: no rank holds another's.

        CorruptionError, which names the ranks that differ from most, on all ranks.
        """
        digests: list[tuple[int | None, str]] = dist.gather((digest, socket.gethostname()))
        (right, count), *others = Counter(digest for digest, _ in digests).most_common()
        if not others:
            return
        is_most = 2 * count > len(digests)
        wrong = [(rank, host) for rank, (digest, host) in enumerate(digests) if digest != right or not is_most]
        names = ", ".join(f"rank {rank} on {host}" for rank, host in wrong)
        self._records.event("weights_differ", state.step, ranks=[rank for rank, _ in wrong])
        differ = "are not those of the other ranks" if is_most else "are not the same"
        raise CorruptionError(
            f"after step {state.step:,} the weights of {names} {differ} (silent data corruption): not saved; take the "
            "node out and run the same command to go on from the last checkpoint"
        )

    def went_back(self, memory: Mapping[str, Any], position: int) -> None:
        """To where the losses of `memory` were the last ones: later ones, which may be lower, are no measure there."""
        self._skips.note(None)
        self._before, self._spikes = position - 1, SpikeGuard(self._recipe.guard, memory)

    def _how_to_show(self, first_sample: int, samples: int) -> str:
        if not isinstance(self._recipe, Recipe) or self._recipe.data.source == "huggingface":
            return ""  # a live source is read once, and `audit --show` shows tokens of datasets only
        return f"; {show_command(self._recipe.run.dir, first_sample, samples)} shows them"
