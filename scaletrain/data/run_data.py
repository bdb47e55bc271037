"""What a run needs of its data, prepared or live."""

from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, Protocol

from scaletrain.data.loader import Step
from scaletrain.data.order import SampleOrder, Share
from scaletrain.data.rows import Rows
from scaletrain.data.shards import Split
from scaletrain.data.training_data import Reading


class RunData(Protocol):
    """The data of a run: TrainingData (prepared tokens) or LiveText (text tokenized while training)."""

    @property
    def name(self) -> str:
        """Where the data is, for a message."""
        ...

    @property
    def tokenizer_folder(self) -> Path:
        """What AutoTokenizer loads; a run keeps a copy."""
        ...

    @property
    def train(self) -> Mapping[str, Sized]:
        """The training rows of each source; none of a live one."""
        ...

    def tokens(self, split: Split) -> int | None:
        """None where that is only known when all is read."""
        ...

    def renumbered(self, recorded: Mapping[str, Any]) -> "RunData":
        """The same, numbered as the checkpoint says that `recorded` is of."""
        ...

    def reading(self, recorded: Mapping[str, Any], samples_seen: int) -> Reading:
        """How the run reads from sample `samples_seen` on."""
        ...

    def rows(self, split: Split) -> Rows: ...

    def validation_rows(self) -> Rows | None:
        """What an evaluation reads, if anything is held out."""
        ...

    def bytes_per_target(self) -> float | None:
        """UTF-8 bytes of the validation text for each token that it has to predict; None where they are not known."""
        ...

    def identity(self) -> dict[str, Any]:
        """What decides which tokens a sample holds and when it is read."""
        ...

    def describe(self) -> list[str]:
        """What is read, in lines for a person."""
        ...

    def report(self) -> dict[str, Any]: ...

    def steps(
        self, reading: Reading, share: Share, *, start: int, position: Mapping[str, Any] | None, pin: bool
    ) -> Iterator[Step]:
        """This rank's steps from sample `start` of the run on; endless."""
        ...

    @property
    def ends_at_repeats(self) -> bool:
        """Whether a run ends where a source would be read too often; else that is an error at its start."""
        ...

    def plan_notes(self, tokens: int) -> list[str]:
        """What a person should know of a run of so many tokens."""
        ...

    def check_length(self, global_batch: int) -> None:
        """DataError when a batch is known to be larger than the data."""
        ...

    def repeat_limit(self, order: SampleOrder, samples: int) -> tuple[int, str] | None:
        """The first position below `samples` at which a source would be read too often, and its name."""
        ...
