"""What a run has done so far: counters, and nothing else."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class RunState:
    """Optimizer steps taken, samples and tokens read by them over all ranks."""

    step: int = 0
    samples_seen: int = 0
    tokens_seen: int = 0

    def advance(self, samples: int, tokens: int) -> "RunState":
        return replace(
            self,
            step=self.step + 1,
            samples_seen=self.samples_seen + samples,
            tokens_seen=self.tokens_seen + tokens,
        )

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunState":
        return cls(**{name: int(values[name]) for name in ("step", "samples_seen", "tokens_seen")})
