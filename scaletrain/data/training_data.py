"""All that a run reads: its sources opened, their rows, the order of its samples, and what it must be able to tell."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from scaletrain.config.data_rules import ONLY, source_places, unreached_stages, weights_by_stage
from scaletrain.config.schema import Data
from scaletrain.data.announce import announced
from scaletrain.data.cache_folder import cache_folder
from scaletrain.data.cache_need import check_cache
from scaletrain.data.loader import Step, token_steps
from scaletrain.data.mixture import SOURCE_SHIFT, MixtureOrder, Segment, plan_segments, to_millionths
from scaletrain.data.opening import check_given, open_data
from scaletrain.data.order import Order, SampleOrder, Share
from scaletrain.data.packed_rows import PackedRows
from scaletrain.data.reader import ShardReader
from scaletrain.data.rows import CutRows, Rows
from scaletrain.data.shards import Dataset, Split, TokenizerInfo
from scaletrain.data.sources import JoinedRows, MixedRows
from scaletrain.errors import DataError


@dataclass(frozen=True)
class Reading:
    """How a run reads its data from where it stands on: the order, and what a checkpoint must say to continue it."""

    order: SampleOrder
    record: dict[str, Any]
    is_changed: bool  # since the checkpoint that the run goes on from

    def planned(self, samples: int) -> dict[str, int]:
        """Of a mixture: how many of the run's `samples` each source gives."""
        if not isinstance(self.order, MixtureOrder):
            return {}
        return {name: count for name, count in self.order.used(samples).items() if name in self.order.present}


@dataclass(frozen=True)
class TrainingData:
    """The sources of a run by name, and the recipe's data section.

    `numbered`: the names as the run numbers them in its order; one that is no source any more was never read from.
    """

    sources: Mapping[str, Dataset]
    options: Data
    seed: int
    numbered: tuple[str, ...]

    @property
    def tokenizer(self) -> TokenizerInfo:
        return next(iter(self.sources.values())).tokenizer

    @property
    def tokenizer_folder(self) -> Path:
        return next(iter(self.sources.values())).tokenizer_folder

    @property
    def name(self) -> str:
        """Where the data is, for a message."""
        return ", ".join(dataset.name for dataset in self.sources.values())

    def tokens(self, split: Split) -> int:
        return sum(dataset.tokens(split) for dataset in self.sources.values())

    @cached_property
    def train(self) -> dict[str, CutRows | PackedRows]:
        """The training rows of each source."""
        return {name: self._rows(dataset, "train") for name, dataset in self.sources.items()}

    @cached_property
    def validation(self) -> dict[str, CutRows | PackedRows]:
        """The validation rows of each source that has some."""
        return {
            name: self._rows(dataset, "validation")
            for name, dataset in self.sources.items()
            if max((shard.tokens for shard in dataset.validation), default=0) > 1
        }

    def row_counts(self) -> dict[str, int]:
        """Training rows of each name that the run numbers, in that order; 0 of one that is no source any more."""
        return {name: len(self.train[name]) if name in self.train else 0 for name in self.numbered}

    def rows(self, split: Split) -> Rows:
        """The rows of all sources: in training by the ids of the order, in validation one source after the other."""
        if split == "validation":
            return JoinedRows(list(self.validation.values()))
        return MixedRows([self.train.get(name) for name in self.numbered]) if self.options.mixture else self.train[ONLY]

    def validation_rows(self) -> Rows | None:
        """What an evaluation reads, if anything is held out."""
        return self.rows("validation") if self.validation else None

    def bytes_per_target(self) -> float | None:
        """UTF-8 bytes of the validation text for each token that it has to predict; None where they are not known."""
        sizes = [self.sources[name].bytes("validation") for name in self.validation]
        targets = sum(rows.targets for rows in self.validation.values())
        return sum(sizes) / targets if all(sizes) and targets else None

    def stages(self) -> list[Segment]:
        """The weights of a mixture, as the recipe has them now."""
        return [
            Segment(-(-tokens // self.options.context_length), to_millionths(weights, "data.mixture"))
            for tokens, weights in weights_by_stage(self.options)
        ]

    def renumbered(self, recorded: Mapping[str, Any]) -> "TrainingData":
        """The same with the numbers that a run already has in its order, new sources after them."""
        known = recorded.get("sources", [])
        return replace(self, numbered=(*known, *(name for name in self.sources if name not in known)))

    def reading(self, recorded: Mapping[str, Any], samples_seen: int) -> Reading:
        """From sample `samples_seen` on; `recorded` is the record of the checkpoint there, empty for a new run."""
        if self.options.mixture is None:
            return Reading(self._orders[ONLY], {}, False)
        before = [Segment(part["start"], part["weights"]) for part in recorded.get("segments", [])]
        segments, is_changed = plan_segments(self.stages(), before, samples_seen)
        order = MixtureOrder({name: self._orders.get(name) for name in self.numbered}, segments, self.seed)
        read = order.used(samples_seen)
        if missing := [name for name in self.numbered if name not in self.sources and read[name]]:
            raise DataError(
                f"data.mixture no longer names {missing[0]}, from which this run has read: keep it with weight 0"
            )
        record = {"sources": list(self.numbered), "segments": [segment.to_dict() for segment in segments]}
        return Reading(order, record, is_changed)

    def repeat_limit(self, order: SampleOrder, samples: int) -> tuple[int, str] | None:
        """The first position below `samples` at which a source would be read too often, and its name."""
        limits = {name: self._max_epochs(name) for name in self.sources}
        found = []
        for name, epochs in limits.items():
            if epochs is None:
                continue
            limit = int(Fraction(repr(epochs)) * len(self.train[name]))  # as it is written: 0.29 x 100 is 29
            if isinstance(order, MixtureOrder):
                position = order.first_beyond(name, limit, samples)
                found += [(position, name)] if position is not None else []
            elif samples > limit:
                found.append((limit, name))
        return min(found) if found else None

    @property
    def ends_at_repeats(self) -> bool:
        return self.options.on_repeat_limit == "stop"

    def plan_notes(self, tokens: int) -> list[str]:
        """As RunData."""
        return unreached_stages(self.options, tokens)

    def describe(self) -> list[str]:
        """As RunData."""
        train, validation = self.tokens("train"), self.tokens("validation")
        return [f"data    {self.name}: {train:,} tokens to train on, {validation:,} to validate"]

    def report(self) -> dict[str, Any]:
        """What the run reads, by source: tokens, samples, and the shares of padding and of cut documents."""
        shown = {}
        for name, rows in self.train.items():
            found = rows.report()
            shown[name] = {
                "dataset": self.sources[name].name,
                "tokens": self.sources[name].tokens("train"),
                "samples": found.rows,
                "padding_share": round(found.padding, 6),
                "cut_documents_share": round(found.cut_documents, 6),
            }
        return {"data": shown}

    def identity(self) -> dict[str, Any]:
        """What decides which tokens a sample holds and when it is read, the weights of a mixture left out."""
        data = self.options
        prints = {name: dataset.fingerprint for name, dataset in self.sources.items()}
        return {
            **({f"source {name}": value for name, value in prints.items()} if data.mixture else
               {"dataset": prints[ONLY]}),
            "tokenizer": self.tokenizer.fingerprint,
            "context_length": data.context_length,
            "packing": data.packing,
            "document_mask": data.document_mask,
            "shuffle": data.shuffle,
            "shuffle_window_shards": data.shuffle_window_shards,
            "seed": self.seed,
        }  # fmt: skip

    def steps(
        self, reading: Reading, share: Share, *, start: int, position: Mapping[str, Any] | None, pin: bool
    ) -> Iterator[Step]:
        """This rank's steps from sample `start` of the run on; endless."""
        assert position is None  # the start is all that it takes
        steps = token_steps(self.rows("train"), reading.order, share, start=start, pin=pin)
        names = [name for name, dataset in self.sources.items() if dataset.files.is_remote]
        remote = {name: (self.train[name], self._orders[name]) for name in names}
        window = self.options.shuffle_window_shards or 2
        return announced(steps, reading.order, remote, window, share.global_batch, start) if remote else steps

    def check_length(self, global_batch: int) -> None:
        """DataError when a batch is larger than the data."""
        samples = sum(map(len, self.train.values()))
        if samples < global_batch:
            raise DataError(
                f"{self.name} has {samples:,} samples of {self.options.context_length} tokens, fewer than one batch of "
                f"train.global_batch_size={global_batch}: prepare more text, or lower the batch or data.context_length"
            )

    def _rows(self, dataset: Dataset, split: Split) -> CutRows | PackedRows:
        reader, data = ShardReader(dataset, split), self.options
        rows: CutRows | PackedRows
        if data.packing == "best_fit":
            rows = PackedRows(reader, data.context_length, cache_folder(data), document_mask=data.document_mask)
        else:
            rows = CutRows(reader, data.context_length, document_mask=data.document_mask)
        if len(rows) > 1 << SOURCE_SHIFT:
            raise DataError(
                f"{reader.name} has {len(rows):,} samples of {data.context_length} tokens, more than the "
                f"{1 << SOURCE_SHIFT:,} that get a number: raise data.context_length, or divide it among sources"
            )
        return rows

    @cached_property
    def _orders(self) -> dict[str, Order]:
        """Each source's own."""
        data = self.options
        return {
            name: Order(
                rows.shard_rows,
                self.seed if name == ONLY else self.seed ^ xxhash.xxh3_64_intdigest(name.encode()),
                shuffle=data.shuffle,
                window=data.shuffle_window_shards,
            )
            for name, rows in self.train.items()
        }

    def _max_epochs(self, name: str) -> float | None:
        return self.options.mixture[name].max_epochs if self.options.mixture else self.options.max_epochs


def open_training_data(data: Data, seed: int) -> TrainingData:
    """Opens every source; DataError when one is not whole, or they were made with different tokenizers."""
    sources = {name: open_data(place, data) for name, place in source_places(data).items()}
    first = next(iter(sources.values()))
    for dataset in sources.values():
        if dataset.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise DataError(
                f"the tokenizer of {dataset.name} ({dataset.tokenizer.name}) is another than that of {first.name} "
                f"({first.tokenizer.name}): prepare both with one, such as --tokenizer {first.tokenizer_folder}"
            )
    check_given(data, list(sources.values()))
    check_cache(list(sources.values()), data)
    return TrainingData(sources, data, seed, tuple(sources))
