"""The texts of one rank, pass after pass over its shards of a stream; where it stands is a value that JSON holds."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from scaletrain.data.live.opening import first_line
from scaletrain.data.shuffle import permute
from scaletrain.errors import DataError

_DOCUMENTS, _CHARACTERS = 256, 1 << 20  # read at once: the first of the two that is reached
_WAITS = (2.0, 10.0, 30.0)  # seconds before a stream that broke off is opened again
_NETWORK = ("aiohttp", "httpx", "httpcore", "requests", "urllib3", "fsspec", "huggingface_hub", "botocore")


@dataclass(frozen=True)
class Cursor:
    """Before which document a rank stands: in `epoch`, in the `place`-th of its shards, `seen` of that shard read.

    `state` is the state_dict of the datasets library within the shard, None at its start. `empty` counts the documents
    so far that held no text.
    """

    epoch: int = 0
    place: int = 0
    seen: int = 0
    state: dict[str, Any] | None = None
    empty: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Texts:
    """Consecutive documents of a rank, and the cursor after them."""

    texts: list[str]
    after: Cursor


class RankDocuments:
    """This rank's documents of a stream. Over all ranks a pass reads each document once.

    A shard (a file) is one rank's, another's in the next pass, so that a rank with a shard more than others is not
    always the same. Where there are fewer shards than ranks, all ranks read all shards and each keeps its part of the
    documents. Only public calls of the library are used: each shard is a stream of its own, whose order no epoch number
    changes.
    """

    def __init__(
        self,
        stream: Any,
        field: str,
        name: str,
        *,
        rank: int = 0,
        ranks: int = 1,
        seed: int | None = None,
        at_once: int = _DOCUMENTS,
        waits: Sequence[float] = _WAITS,
    ) -> None:
        """`seed`: of the order of the shards in each pass; None: as they are stored. `name`: for messages.

        `at_once`: documents that are read together, at most. `waits`: seconds before each new try when the stream
        breaks off.
        """
        self._stream, self._field, self.name = stream, field, name
        self._rank, self._ranks, self._seed = rank, ranks, seed
        self._at_once, self._waits = at_once, waits
        self.shards = int(stream.num_shards)
        self.is_shared = self.shards < ranks

    def read(self, cursor: Cursor, *, epochs: int | None = None) -> Iterator[Texts]:
        """From the cursor on, endless unless `epochs` says before which pass it ends.

        DataError when the stream fails, or a whole pass holds no text for this rank.
        """
        while epochs is None or cursor.epoch < epochs:
            whole, has_text = (cursor.place, cursor.seen) == (0, 0), False
            mine = self._mine(cursor.epoch)
            for place in range(cursor.place, len(mine)):
                for part in self._read_shard(mine[place], replace(cursor, place=place)):
                    cursor, has_text = part.after, has_text or bool(part.texts)
                    yield part
                cursor = Cursor(cursor.epoch, place + 1, empty=cursor.empty)
            if whole and not has_text:
                share = f" for rank {self._rank} of {self._ranks}" if self._ranks > 1 else ""
                raise DataError(
                    f"{self.name} holds no text{share}: give it documents"
                    + (", or start fewer ranks" if self._ranks > 1 else "")
                )
            cursor = Cursor(cursor.epoch + 1, empty=cursor.empty)

    def _mine(self, epoch: int) -> list[int]:
        """This rank's shards of a pass, in the order in which it reads them."""
        order = np.arange(self.shards, dtype=np.int64)
        if self._seed is not None:
            order = permute(order, self.shards, self._seed, epoch)
        return order.tolist() if self.is_shared else order[self._turn(epoch) :: self._ranks].tolist()

    def _turn(self, epoch: int) -> int:
        return (self._rank + epoch) % self._ranks

    def _read_shard(self, shard: int, cursor: Cursor) -> Iterator[Texts]:
        """The rest of one shard; a connection that breaks is opened again where the last texts ended."""
        failed, reading = 0, self._open(shard, cursor)
        while True:
            try:
                part = next(reading, None)
            except _BrokenError as broken:
                error = broken.error
                if not _is_transient(error) or failed == len(self._waits):
                    raise self._fault(shard, cursor, error) from error
                time.sleep(self._waits[failed])
                failed, reading = failed + 1, self._open(shard, cursor)
                continue
            if part is None:
                return
            failed, cursor = 0, part.after
            yield part

    def _open(self, shard: int, cursor: Cursor) -> Iterator[Texts]:
        stream = self._stream.shard(num_shards=self.shards, index=shard)
        if cursor.state is not None:
            stream.load_state_dict(cursor.state)
        turn = self._turn(cursor.epoch)
        texts: list[str] = []
        characters, seen, empty, passed = 0, cursor.seen, cursor.empty, 0
        for example in _examples(stream):
            if not self.is_shared or seen % self._ranks == turn:
                text = self._text(example, shard, seen)
                if text.strip():
                    texts.append(text)
                    characters += len(text)
                else:
                    empty += 1
            seen, passed = seen + 1, passed + 1
            if len(texts) == self._at_once or characters >= _CHARACTERS or passed == 16 * self._at_once:
                yield Texts(texts, replace(cursor, seen=seen, state=stream.state_dict(), empty=empty))
                texts, characters, passed = [], 0, 0
        if passed:
            yield Texts(texts, replace(cursor, seen=seen, state=stream.state_dict(), empty=empty))

    def _text(self, example: dict[str, Any], shard: int, number: int) -> str:
        if self._field not in example:
            raise missing_field(f"document {number:,} of {self._where(shard)}", self._field, list(example))
        text = example[self._field]
        if text is None:
            return ""
        if not isinstance(text, str):
            raise DataError(
                f"document {number:,} of {self._where(shard)}: field {self._field!r} is a {type(text).__name__}, no "
                "text: choose another with data.live.field"
            )
        return text

    def _where(self, shard: int) -> str:
        return f"{self.name} (shard {shard} of {self.shards})"

    def _fault(self, shard: int, cursor: Cursor, error: Exception) -> DataError:
        remedy = (
            "check the network and run the same command again; it goes on from the last checkpoint"
            if _is_transient(error)
            else "repair or replace that file"
        )
        return DataError(
            f"{self._where(shard)} cannot be read on after {cursor.seen:,} documents ({first_line(error)}): {remedy}"
        )


def missing_field(place: str, field: str, found: Sequence[str]) -> DataError:
    """The error for a text column that is not there; lists those that are."""
    return DataError(
        f"{place} has no field {field!r}, its fields are {', '.join(found)}: choose one with data.live.field"
    )


class _BrokenError(Exception):
    """What the library raised while a stream was read."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _examples(stream: Any) -> Iterator[dict[str, Any]]:
    iterator = iter(stream)
    while True:
        try:
            example = next(iterator, None)
        except Exception as error:  # of the library, its file systems and formats: of many kinds
            raise _BrokenError(error) from error
        if example is None:
            return
        yield example


def _is_transient(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError):
        return False
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0] in _NETWORK
