"""All that a run reads: its sources opened, their rows, the order of its samples, and what it must be able to tell."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from scaletrain.config.data_rules import weights_by_stage
from scaletrain.config.schema import Data
from scaletrain.data.loader import Step, token_steps
from scaletrain.data.mixture import MixtureOrder, Segment, plan_segments, to_millionths
from scaletrain.data.opening import cache_folder, open_data
from scaletrain.data.order import Order, SampleOrder, Share
from scaletrain.data.packed_rows import PackedRows
from scaletrain.data.reader import ShardReader
from scaletrain.data.remote import is_url
from scaletrain.data.rows import CutRows, Rows
from scaletrain.data.shards import DTYPES, Dataset, Split, TokenizerInfo
from scaletrain.data.sources import JoinedRows, MixedRows
from scaletrain.errors import DataError

ONLY = "data"  # the name of the source that data.path gives
_HORIZON = 1 << 18  # samples ahead of need that a remote source is told of, at most


@dataclass(frozen=True)
class Reading:
    """How a run reads its data from where it stands on: the order, and what a checkpoint must say to continue it."""

    order: SampleOrder
    record: dict[str, Any]
    is_changed: bool  # since the checkpoint that the run goes on from

    def planned(self, samples: int) -> dict[str, int]:
        """Of a mixture: how many of the run's `samples` each source gives."""
        return self.order.used(samples) if isinstance(self.order, MixtureOrder) else {}


@dataclass(frozen=True)
class TrainingData:
    """The sources of a run by name, in the order that numbers them, and the recipe's data section."""

    sources: Mapping[str, Dataset]
    options: Data
    seed: int

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
        held_out = {name: dataset for name, dataset in self.sources.items() if dataset.tokens("validation") > 1}
        return {name: self._rows(dataset, "validation") for name, dataset in held_out.items()}

    def rows(self, split: Split) -> Rows:
        """The rows of all sources: in training by the ids of the order, in validation one source after the other."""
        if split == "validation":
            return JoinedRows(list(self.validation.values()))
        return MixedRows(list(self.train.values())) if self.options.mixture else self.train[ONLY]

    def validation_rows(self) -> Rows | None:
        """What an evaluation reads, if anything is held out."""
        return self.rows("validation") if self.validation else None

    def bytes_per_target(self) -> float | None:
        """UTF-8 bytes of the validation text for each token that it has to predict; None where they are not known."""
        size = sum(self.sources[name].bytes("validation") for name in self.validation)
        return size / sum(rows.targets for rows in self.validation.values()) if size else None

    def stages(self) -> list[Segment]:
        """The weights of a mixture, as the recipe has them now."""
        return [
            Segment(-(-tokens // self.options.context_length), to_millionths(weights, "data.mixture"))
            for tokens, weights in weights_by_stage(self.options)
        ]

    def renumbered(self, recorded: Mapping[str, Any]) -> "TrainingData":
        """The same with the sources that a run already numbers in its order, new ones after them."""
        known = recorded.get("sources", [])
        if missing := [name for name in known if name not in self.sources]:
            raise DataError(
                f"data.mixture no longer names {missing[0]}, from which this run has read: keep it with weight 0"
            )
        names = [*known, *(name for name in self.sources if name not in known)]
        return replace(self, sources={name: self.sources[name] for name in names})

    def reading(self, recorded: Mapping[str, Any], samples_seen: int) -> Reading:
        """From sample `samples_seen` on; `recorded` is the record of the checkpoint there, empty for a new run."""
        orders = {name: self._source_order(name) for name in self.sources}
        if self.options.mixture is None:
            return Reading(orders[ONLY], {}, False)
        before = [Segment(part["start"], part["weights"]) for part in recorded.get("segments", [])]
        segments, is_changed = plan_segments(self.stages(), before, samples_seen)
        record = {"sources": list(orders), "segments": [segment.to_dict() for segment in segments]}
        return Reading(MixtureOrder(orders, segments, self.seed), record, is_changed)

    def repeat_limit(self, order: SampleOrder, samples: int) -> tuple[int, str] | None:
        """The first position below `samples` at which a source would be read too often, and its name."""
        limits = {name: self._max_epochs(name) for name in self.sources}
        found = []
        for name, epochs in limits.items():
            if epochs is None:
                continue
            limit = int(epochs * len(self.train[name]))
            if isinstance(order, MixtureOrder):
                position = order.first_beyond(name, limit, samples)
                found += [(position, name)] if position is not None else []
            elif samples > limit:
                found.append((limit, name))
        return min(found) if found else None

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

    @cached_property
    def horizon(self) -> int:
        """Samples ahead of need that remote sources are told of: 0 without any, else about a window's."""
        remote = [name for name, dataset in self.sources.items() if is_url(dataset.name)]
        window = self.options.shuffle_window_shards or 2
        largest = max((int(self.train[name].shard_rows.max()) for name in remote), default=0)
        return min(_HORIZON, window * largest)

    def steps(
        self, reading: Reading, share: Share, *, start: int, position: Mapping[str, Any] | None, pin: bool
    ) -> Iterator[Step]:
        """This rank's steps from sample `start` of the run on; endless."""
        assert position is None  # the start is all that it takes
        return token_steps(self.rows("train"), reading.order, share, start=start, pin=pin, horizon=self.horizon)

    def check_length(self, global_batch: int) -> None:
        """DataError when a batch is larger than the data."""
        samples = sum(map(len, self.train.values()))
        if samples < global_batch:
            raise DataError(
                f"{self.name} has {samples:,} samples of {self.options.context_length} tokens, fewer than one batch of "
                f"train.global_batch_size={global_batch}: prepare more text, or lower the batch or data.context_length"
            )

    def check_cache(self) -> None:
        """DataError where a remote source cannot be read through a cache of the given size."""
        limit = self.options.cache.max_gb
        remote = [dataset for dataset in self.sources.values() if is_url(dataset.name)]
        if limit is None or not remote:
            return
        sizes = [_sizes(dataset) for dataset in remote]
        whole, largest = sum(map(sum, sizes)), max(map(max, sizes))
        window = self.options.shuffle_window_shards or (1 if not self.options.shuffle else None)
        if window is None and whole > limit * 1e9:
            raise DataError(
                f"data.cache.max_gb={limit:g} is less than the {whole / 1e9:.3g} GB of {self.name}, and a full shuffle "
                "reads all of it at once: set data.shuffle_window_shards, or raise data.cache.max_gb"
            )
        need = len(remote) * (2 * window if window else 1) * largest
        if window is not None and min(need, whole) > limit * 1e9:
            raise DataError(
                f"data.cache.max_gb={limit:g} does not hold two windows of {window} shards of "
                f"{largest / 1e9:.3g} GB of each remote source ({need / 1e9:.3g} GB): raise it, or lower "
                "data.shuffle_window_shards"
            )

    def _rows(self, dataset: Dataset, split: Split) -> CutRows | PackedRows:
        reader, data = ShardReader(dataset, split), self.options
        if data.packing == "best_fit":
            return PackedRows(reader, data.context_length, cache_folder(data), document_mask=data.document_mask)
        return CutRows(reader, data.context_length, document_mask=data.document_mask)

    def _source_order(self, name: str) -> Order:
        data = self.options
        seed = self.seed if name == ONLY else self.seed ^ xxhash.xxh3_64_intdigest(name.encode())
        rows = self.train[name].shard_rows
        return Order(rows, seed, shuffle=data.shuffle, window=data.shuffle_window_shards)

    def _max_epochs(self, name: str) -> float | None:
        return self.options.mixture[name].max_epochs if self.options.mixture else self.options.max_epochs


def open_training_data(data: Data, seed: int) -> TrainingData:
    """Opens every source; DataError when one is not whole, or they were made with different tokenizers."""
    places = {name: s.path for name, s in data.mixture.items()} if data.mixture else {ONLY: data.path or ""}
    sources = {name: open_data(place, data) for name, place in places.items()}
    first = next(iter(sources.values()))
    for dataset in sources.values():
        if dataset.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise DataError(
                f"{dataset.name} was prepared with the tokenizer {dataset.tokenizer.name}, {first.name} with "
                f"{first.tokenizer.name}: prepare both with one"
            )
    found = TrainingData(sources, data, seed)
    found.check_cache()
    return found


def _sizes(dataset: Dataset) -> list[int]:
    itemsize = np.dtype(DTYPES[dataset.dtype]).itemsize
    return [shard.tokens * itemsize for shard in dataset.train] or [0]
