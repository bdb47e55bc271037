"""What a run has done so far: counters, and nothing else."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class RunState:
    """Optimizer steps taken, samples and tokens read by them over all ranks; `skipped_steps` of them changed nothing.

    `samples_seen` is the place in the run's order too: it counts the samples `passed_over` by roll-backs, of which
    nothing was learned and no token counts. `sample_digest` tells which samples they were (data/order.py): an audit
    computes it again.
    """

    step: int = 0
    samples_seen: int = 0
    tokens_seen: int = 0
    sample_digest: int = 0
    skipped_steps: int = 0
    passed_over: int = 0

    def advance(self, samples: int, tokens: int, *, skipped: bool = False) -> "RunState":
        return replace(
            self,
            step=self.step + 1,
            samples_seen=self.samples_seen + samples,
            tokens_seen=self.tokens_seen + tokens,
            skipped_steps=self.skipped_steps + skipped,
        )

    def pass_over(self, until: int) -> "RunState":
        """The state that goes on at sample `until`."""
        passed = until - self.samples_seen
        return replace(self, samples_seen=until, passed_over=self.passed_over + passed)

    def with_samples(self, digest: int) -> "RunState":
        """The state after the samples of this digest were read too."""
        return replace(self, sample_digest=(self.sample_digest + digest) % 2**64)

    @property
    def counted_samples(self) -> dict[str, int | str]:
        """What an event tells, for an audit, of the samples so far."""
        told = ("samples_seen", "sample_digest", "passed_over")
        return {name: value for name, value in self.to_dict().items() if name in told}

    def to_dict(self) -> dict[str, int | str]:
        return {**asdict(self), "sample_digest": f"{self.sample_digest:016x}"}  # JSON numbers end at 2**53

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunState":
        counters = {name: int(values[name]) for name in ("step", "samples_seen", "tokens_seen")}
        digest = int(values["sample_digest"], 16)
        later = {name: int(values.get(name, 0)) for name in ("skipped_steps", "passed_over")}
        return cls(**counters, **later, sample_digest=digest)
