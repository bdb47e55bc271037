"""How far a run goes: from where it stands, to the end that the recipe sets or that its data allow."""

from dataclasses import dataclass, replace

from scaletrain.config.schema import Train
from scaletrain.engine.state import RunState
from scaletrain.errors import DataError


@dataclass(frozen=True)
class Plan:
    """How far and how often. Batches in samples, `total_steps` in optimizer steps of the whole run.

    `total_samples` are those of the whole run: earlier launches may have had another batch.
    """

    total_steps: int
    global_batch: int
    micro_batch: int
    tokens_per_sample: int
    total_samples: int

    def ended_at(self, samples: int, state: RunState) -> "Plan":
        """The plan without the steps that would read beyond the run's first `samples`."""
        steps = max(0, samples - state.samples_seen) // self.global_batch
        return replace(
            self, total_steps=state.step + steps, total_samples=state.samples_seen + steps * self.global_batch
        )


def plan_run(
    train: Train,
    state: RunState,
    *,
    global_batch: int,
    micro_batch: int,
    context: int,
    max_samples: int | None = None,
) -> Plan:
    """The plan of a run that stands at `state`: to train.max_steps, else to `max_samples`, else to train.max_tokens,
    where each sample counts as `context` tokens."""
    if train.max_steps is not None:
        left = train.max_steps - state.step
    elif max_samples is not None:
        left = -(-(max_samples - state.samples_seen) // global_batch)
    else:
        assert train.max_tokens is not None
        left = -(-(train.max_tokens - state.tokens_seen) // (global_batch * context))
    left = max(0, left)
    samples = state.samples_seen + left * global_batch
    return Plan(state.step + left, global_batch, micro_batch, context, samples)


def end_before_repeats(plan: Plan, state: RunState, limit: tuple[int, str] | None, *, stops: bool) -> Plan:
    """The plan, ended before sample `limit[0]`, at which the source `limit[1]` is read more often than its max_epochs.

    DataError if the run may not end there (`stops`), or would have no step at all.
    """
    if limit is None:
        return plan
    ended = plan.ended_at(limit[0], state)
    if not stops or not ended.total_steps:
        raise DataError(
            f"data source {limit[1]} would be read more often than its max_epochs from step {ended.total_steps + 1:,} "
            f"of {plan.total_steps:,} on: lower its weight or the run's length, raise max_epochs, or set "
            "data.on_repeat_limit=stop"
        )
    return ended
