"""What a prepare is asked for, what it tells while it works, and what it reports at the end."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from scaletrain.data.prepare.partial import Plan
from scaletrain.data.prepare.train_tokenizer import SAMPLE_BYTES, Kind
from scaletrain.data.prepare.units import Findings, Reading, Source
from scaletrain.data.shards import Dataset
from scaletrain.data.tokenizer import Tokenizer
from scaletrain.errors import DataError

SHARD_TOKENS = 1 << 27


@dataclass(frozen=True)
class PrepareOptions:
    """All that decides a dataset's content, and (workers, overwrite) how it is made."""

    inputs: tuple[str, ...]
    output: Path
    tokenizer: str | None = None
    train_tokenizer: int | None = None
    tokenizer_kind: Kind = "byte-bpe"
    tokenizer_sample: int | None = None
    eos_token: str | None = None
    reading: Reading = field(default_factory=Reading)
    glob: str | None = None
    format: str | None = None
    drop_duplicates: bool = False
    validation: float = 0.01
    shard_tokens: int = SHARD_TOKENS
    seed: int = 0
    workers: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Report:
    """What a prepare did: encoded bytes and seconds are of this run, all else of the whole dataset.

    `duplicates` were left out of `documents` that were read; None where they were not looked for.
    """

    dataset: Dataset
    findings: Findings
    split: str
    documents: int
    duplicates: int | None
    encoded_bytes: int
    encode_seconds: float
    seconds: float


class Progress(Protocol):
    """Who watches a prepare: stages with a total, steps of one with the text and tokens they made, and lines to say."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, done: int, text_bytes: int = 0, tokens: int = 0) -> None: ...
    def say(self, line: str) -> None: ...
    def finish(self, report: Report) -> None: ...


def check_options(options: PrepareOptions) -> None:
    """DataError for the first option that cannot be meant."""
    rules = [
        (bool(options.inputs), "no --input given: name at least one file, folder or glob"),
        ((options.tokenizer is None) != (options.train_tokenizer is None),
         "give one of --tokenizer (a folder, file or name) and --train-tokenizer (a vocabulary size)"),
        (options.tokenizer is not None or options.eos_token is None, "--eos-token is for --tokenizer only"),
        (0 <= options.validation < 1, f"--validation {options.validation} is not in [0, 1): 0.01 holds out 1%"),
        (options.shard_tokens >= 1, f"--shard-tokens {options.shard_tokens} is below 1"),
        (options.workers is None or options.workers >= 1, f"--workers {options.workers} is below 1"),
        (options.reading.separator != "", "--separator is empty: leave it out to make each file one document"),
    ]  # fmt: skip
    for is_kept, message in rules:
        if not is_kept:
            raise DataError(message)


def make_plan(options: PrepareOptions, sources: list[Source], given: Tokenizer | None) -> Plan:
    """What decides the content, as plain JSON: two prepares with an equal plan make equal shards."""
    tokenizer: dict[str, Any]
    if given is not None:
        tokenizer = {"name": given.name, "fingerprint": given.fingerprint}
    else:
        tokenizer = {"train": options.train_tokenizer, "kind": options.tokenizer_kind, "sample": sample_bytes(options)}
    content = {
        "tokenizer": tokenizer,
        **asdict(options.reading),
        "validation": options.validation,
        "shard_tokens": options.shard_tokens,
        "seed": options.seed,
        **({"drop_duplicates": True} if options.drop_duplicates else {}),
    }
    return Plan(content, [[source.name, source.kind, source.bytes, source.stamp] for source in sources])


def sample_bytes(options: PrepareOptions) -> int:
    """Bytes of text that a tokenizer is trained on at most."""
    return options.tokenizer_sample or SAMPLE_BYTES[options.tokenizer_kind]
