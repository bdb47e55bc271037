"""All that a run reads of data.source=huggingface: a stream of text, tokenized while the run trains on it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scaletrain.config.schema import Data
from scaletrain.data.cache_folder import cache_folder, keep_tokenizer
from scaletrain.data.live.documents import Cursor, RankDocuments
from scaletrain.data.live.opening import Source, open_source, split_further
from scaletrain.data.live.rows import RowPosition, draw_rows, to_batch
from scaletrain.data.live.validation import HeldOut, read_held_out
from scaletrain.data.loader import Step
from scaletrain.data.order import SampleOrder, Share
from scaletrain.data.rows import CutRows, Rows
from scaletrain.data.shards import Split, TokenizerInfo
from scaletrain.data.shuffle import Ids
from scaletrain.data.tokenizer import Tokenizer, load_tokenizer
from scaletrain.data.training_data import Reading
from scaletrain.errors import DataError


class ArrivalOrder:
    """Samples in the order in which they come, each numbered by its position."""

    def ids(self, start: int, count: int) -> Ids:
        """As SampleOrder."""
        return np.arange(start, start + count, dtype=np.int64)


@dataclass(frozen=True)
class LiveText:
    """An opened dataset, its tokenizer, and this rank's part of it (see RunData)."""

    source: Source
    stream: Any  # datasets.IterableDataset of the training split
    encoder: Tokenizer
    tokenizer_folder: Path
    options: Data
    seed: int
    rank: int
    ranks: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def tokenizer(self) -> TokenizerInfo:
        return self.encoder.info

    @property
    def train(self) -> dict[str, CutRows]:
        return {}

    def tokens(self, split: Split) -> int | None:
        """Known of what an evaluation reads alone."""
        if split == "train":
            return None
        return int(self._held_out.rows.lengths.sum()) if self._held_out else 0

    def renumbered(self, recorded: Mapping[str, Any]) -> "LiveText":
        del recorded  # one source needs no numbers
        return self

    def reading(self, recorded: Mapping[str, Any], samples_seen: int) -> Reading:
        del recorded, samples_seen  # each rank's position says it all
        return Reading(ArrivalOrder(), {}, False)

    def rows(self, split: Split) -> Rows:
        assert split == "validation" and self._held_out is not None, "training rows have no numbers: see steps"
        return self._held_out.rows

    def validation_rows(self) -> Rows | None:
        return self._held_out.rows if self._held_out else None

    def bytes_per_target(self) -> float | None:
        return self._held_out.text_bytes / self._held_out.rows.targets if self._held_out else None

    def identity(self) -> dict[str, Any]:
        data, live = self.options, self.options.live
        return {
            "ranks (a live stream goes on with as many as began it)": self.ranks,
            "dataset": self.name,
            "configuration": live.name,
            "split": live.split,
            "revision": self.source.revisions[live.split],
            "files": self.source.prints[live.split],
            "field": live.field,
            "tokenizer": self.tokenizer.fingerprint,
            "context_length": data.context_length,
            "document_mask": data.document_mask,
            "shuffle": data.shuffle,
            "shuffle_rows": live.shuffle_rows,
            "seed": self.seed,
        }

    def report(self) -> dict[str, Any]:
        """What the run reads; how many tokens that are is only known when it was read."""
        live, documents = self.options.live, self._documents
        shown = {"dataset": self.name, "split": live.split, "shards": documents.shards, "shared": documents.is_shared}
        return {"data": {"live": shown}}

    def describe(self) -> list[str]:
        """As RunData."""
        return [f"data    {self.name}: {self.options.live.split}", *(f"live    {note}" for note in self.notes())]

    def notes(self) -> list[str]:
        """What a person should know before the run, a line each."""
        shards, ranks = self._documents.shards, self.ranks
        lines = [
            f"text is tokenized while training: its order depends on the number of ranks ({ranks}), which the run must "
            "keep to its end; scaletrain prepare makes tokens that any number of ranks reads in one order"
        ]
        if self._documents.is_shared:
            lines.append(
                f"{shards} {_shards(shards)} for {ranks} ranks: every rank reads all of the text and keeps one "
                f"document in {ranks}; {ranks} or more files of like size would spare that"
            )
        elif shards % ranks:
            lines.append(
                f"{shards} {_shards(shards)} over {ranks} ranks: in each pass some ranks read {shards // ranks + 1}, "
                f"others {shards // ranks}"
            )
        return lines

    @property
    def ends_at_repeats(self) -> bool:
        return False

    def plan_notes(self, tokens: int) -> list[str]:
        del tokens  # one source has no stages
        return []

    def steps(
        self, reading: Reading, share: Share, *, start: int, position: Mapping[str, Any] | None, pin: bool
    ) -> Iterator[Step]:
        """This rank's steps from `position` (of a checkpoint; None at the beginning) on; endless."""
        assert (position is None) == (start == 0) and (share.rank, share.ranks) == (self.rank, self.ranks)
        began = RowPosition.from_dict(position) if position is not None else RowPosition()
        drawn = draw_rows(
            self._documents,
            self.encoder,
            self.options.context_length,
            began,
            block_rows=self.options.live.shuffle_rows if self.options.shuffle else 0,
            seed=(self.seed, self.rank),
        )
        while True:
            batches = []
            for _ in range(share.accumulation):
                rows, places = zip(*(next(drawn) for _ in range(share.micro_batch)), strict=True)
                mask = self.options.document_mask
                batches.append(to_batch(rows, self.encoder.eos_id, document_mask=mask, pin=pin))
            yield Step(batches, position=places[-1].to_dict())

    def check_length(self, global_batch: int) -> None:
        """Passes: a stream has no end."""

    def repeat_limit(self, order: SampleOrder, samples: int) -> tuple[int, str] | None:
        del order, samples  # data.max_epochs does not go with a live stream
        return None

    @cached_property
    def _documents(self) -> RankDocuments:
        seed = self.seed if self.options.shuffle else None
        return RankDocuments(
            self.stream, self.options.live.field, self.name, rank=self.rank, ranks=self.ranks, seed=seed
        )

    @cached_property
    def _held_out(self) -> HeldOut | None:
        """The same on every rank."""
        live = self.options.live
        if live.validation_split is None:
            return None
        stream = self.source.stream(live.validation_split, "data.live.validation_split")
        documents = RankDocuments(stream, live.field, f"{self.name}: the {live.validation_split} split")
        mask, context = self.options.document_mask, self.options.context_length
        return read_held_out(documents, self.encoder, context, live.validation_rows, document_mask=mask)


def open_live_text(data: Data, seed: int, *, rank: int = 0, ranks: int = 1) -> LiveText:
    """Opens the dataset and looks at its first texts; DataError, the same on every rank, when it cannot be read."""
    assert data.tokenizer is not None  # a rule of the recipe
    encoder = load_tokenizer(data.tokenizer)
    source, live = open_source(data), data.live
    stream = source.stream(live.split, "data.live.split")
    if live.validation_split is not None:
        source.stream(live.validation_split, "data.live.validation_split")
    next(RankDocuments(stream, live.field, source.name).read(Cursor()))
    if stream.num_shards < ranks:
        stream = split_further(source.name, stream)
    folder = _keep_tokenizer(encoder, cache_folder(data))
    return LiveText(source, stream, encoder, folder, data, seed, rank, ranks)


def _keep_tokenizer(tokenizer: Tokenizer, cache: Path) -> Path:
    try:
        return keep_tokenizer(tokenizer, cache)
    except OSError as error:
        raise DataError(
            f"{error.filename or cache} cannot be written ({error.strerror}): set data.cache.dir to a folder that can"
        ) from error


def _shards(count: int) -> str:
    return "shard" if count == 1 else "shards"
