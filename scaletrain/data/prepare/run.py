"""Preparing a dataset: inputs -> units -> segments -> shards, so that a kill leaves a resumable partial or a whole."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from scaletrain.data.prepare.corpus import decide_split, sample_text
from scaletrain.data.prepare.disk import writing
from scaletrain.data.prepare.inputs import find_sources
from scaletrain.data.prepare.join import join_segments
from scaletrain.data.prepare.partial import SEGMENTS, Plan, claim, discard, find_complete, hold, partial_of, publish
from scaletrain.data.prepare.pool import run_units
from scaletrain.data.prepare.readers import cut_units
from scaletrain.data.prepare.segments import SegmentRecord, read_record, sum_findings
from scaletrain.data.prepare.splitting import SplitRule
from scaletrain.data.prepare.train_tokenizer import SAMPLE_BYTES, TRAINERS, Kind
from scaletrain.data.prepare.units import Findings, Reading, Source, Unit
from scaletrain.data.prepare.worker import Job
from scaletrain.data.shards import DTYPES, INDEX, SPLITS, Dataset, dataset_fingerprint, index_text
from scaletrain.data.tokenizer import Tokenizer, load_tokenizer
from scaletrain.errors import DataError
from scaletrain.runtime.files import TEMPORARY, write_whole
from scaletrain.runtime.machine import cores

SHARD_TOKENS = 1 << 27
_TOKENIZER = "tokenizer"


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
    validation: float = 0.01
    shard_tokens: int = SHARD_TOKENS
    seed: int = 0
    workers: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Report:
    """What a prepare did: encoded bytes and seconds are of this run, findings of the whole dataset."""

    dataset: Dataset
    findings: Findings
    split: str
    encoded_bytes: int
    encode_seconds: float
    seconds: float


class Progress(Protocol):
    """Who watches a prepare: stages with a total, steps of one with the text and tokens they made, and lines to say."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, done: int, text_bytes: int = 0, tokens: int = 0) -> None: ...
    def say(self, line: str) -> None: ...
    def finish(self, report: Report) -> None: ...


def prepare_dataset(options: PrepareOptions, progress: Progress) -> Dataset:
    """Makes, resumes or finds complete the dataset at `options.output`; DataError for whatever the user can mend."""
    started = time.perf_counter()
    _check(options)
    options = replace(options, output=Path(os.path.abspath(options.output)))  # noqa: PTH100 (keeps a link a link)
    sources = find_sources(options.inputs, options.glob, options.format, options.reading)
    given = load_tokenizer(options.tokenizer, options.eos_token) if options.tokenizer else None
    plan = make_plan(options, sources, given)
    partial = partial_of(options.output)
    if (complete := find_complete(options.output, plan, options.overwrite)) is not None:
        progress.say(f"{options.output} is complete with these inputs and options: nothing to do")
        return complete
    report = None
    with writing(partial), hold(partial):
        if claim(partial, plan, options.overwrite):
            progress.say(f"going on with {partial}")
        if not (partial / INDEX).is_file():
            report = _fill(partial, options, sources, plan, given, progress)
        dataset = publish(partial, options.output)
    if report is not None:
        progress.finish(replace(report, dataset=dataset, seconds=time.perf_counter() - started))
    return dataset


def make_plan(options: PrepareOptions, sources: list[Source], given: Tokenizer | None) -> Plan:
    """What decides the content, as plain JSON: two prepares with an equal plan make equal shards."""
    tokenizer: dict[str, Any]
    if given is not None:
        tokenizer = {"name": given.name, "fingerprint": given.fingerprint}
    else:
        sample = options.tokenizer_sample or SAMPLE_BYTES[options.tokenizer_kind]
        tokenizer = {"train": options.train_tokenizer, "kind": options.tokenizer_kind, "sample": sample}
    content = {
        "tokenizer": tokenizer,
        **asdict(options.reading),
        "validation": options.validation,
        "shard_tokens": options.shard_tokens,
        "seed": options.seed,
    }
    return Plan(content, [[source.name, source.kind, source.bytes, source.stamp] for source in sources])


def _check(options: PrepareOptions) -> None:
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


def _fill(
    partial: Path,
    options: PrepareOptions,
    sources: list[Source],
    plan: Plan,
    given: Tokenizer | None,
    progress: Progress,
) -> Report:
    """Every step from units to the index, each skipped where a former run finished it."""
    units = cut_units(sources, options.reading)
    rule = decide_split(units, options.reading, options.validation, options.seed)
    tokenizer = _settle_tokenizer(partial, options, units, rule, given, progress)
    started = time.perf_counter()
    records, encoded_bytes = _encode(partial, options, units, rule, tokenizer, progress)
    encode_seconds = time.perf_counter() - started
    _check_splits(records, options.validation, partial)
    dataset = _join(partial, records, tokenizer, options.shard_tokens, progress)
    listed = [(source.name, source.bytes) for source in sources]
    write_whole(partial / INDEX, index_text(dataset, listed, plan.options).encode())
    return Report(dataset, sum_findings(records), rule.mode, encoded_bytes, encode_seconds, 0.0)


def _settle_tokenizer(
    partial: Path,
    options: PrepareOptions,
    units: Sequence[Unit],
    rule: SplitRule,
    given: Tokenizer | None,
    progress: Progress,
) -> Tokenizer:
    """The tokenizer saved in the dataset, given or trained once; what workers load is what users will load."""
    folder = partial / _TOKENIZER
    name = given.name if given else f"{options.tokenizer_kind}-{options.train_tokenizer}"
    if not folder.exists():
        unfinished = partial / f"{_TOKENIZER}{TEMPORARY}"
        tokenizer = given
        if tokenizer is None:
            assert options.train_tokenizer is not None
            budget = options.tokenizer_sample or SAMPLE_BYTES[options.tokenizer_kind]
            progress.stage("training tokenizer", min(budget, sum(unit.bytes for unit in units)))
            texts = _watched(sample_text(units, options.reading, rule, budget), progress)
            tokenizer = TRAINERS[options.tokenizer_kind](texts, options.train_tokenizer, unfinished)
        tokenizer.save(unfinished)
        unfinished.rename(folder)
    return replace(load_tokenizer(folder), name=name)


def _watched(texts: Any, progress: Progress) -> Any:
    for text in texts:
        yield text
        progress.advance(len(text), len(text))


def _encode(
    partial: Path,
    options: PrepareOptions,
    units: Sequence[Unit],
    rule: SplitRule,
    tokenizer: Tokenizer,
    progress: Progress,
) -> tuple[list[SegmentRecord], int]:
    """The record of every unit, made where it is missing, and the bytes of text encoded now."""
    segments = partial / SEGMENTS
    segments.mkdir(exist_ok=True)
    itemsize = DTYPES[tokenizer.dtype].itemsize
    todo = [(i, unit) for i, unit in enumerate(units) if read_record(segments, i, itemsize) is None]
    progress.stage("encoding", sum(unit.bytes for unit in units))
    progress.advance(sum(unit.bytes for unit in units) - sum(unit.bytes for _, unit in todo))
    job = Job(str(segments), str(partial / _TOKENIZER), options.reading, rule, threads=1)
    encoded = 0

    def step(text_bytes: int, tokens: int) -> None:
        nonlocal encoded
        encoded += text_bytes
        progress.advance(0, text_bytes, tokens)

    run_units(job, todo, options.workers or cores(), step, lambda unit: progress.advance(unit.bytes))
    records = [read_record(segments, i, itemsize) for i in range(len(units))]
    whole = [record for record in records if record is not None]
    assert len(whole) == len(units), "a worker reported a unit whose record is not there"
    return whole, encoded


def _check_splits(records: Sequence[SegmentRecord], validation: float, partial: Path) -> None:
    documents = {split: sum(record.documents[split] for record in records) for split in SPLITS}
    for split in SPLITS:
        if not documents[split] and (split == "train" or validation):
            discard(partial)  # no work is lost: another fraction makes other segments
            remedy = "a larger --validation, or 0 for none" if split == "validation" else "a smaller --validation"
            raise DataError(
                f"--validation {validation} leaves the {split} split empty with this input of "
                f"{sum(documents.values())} document part(s): use {remedy}"
            )


def _join(
    partial: Path, records: Sequence[SegmentRecord], tokenizer: Tokenizer, shard_tokens: int, progress: Progress
) -> Dataset:
    dtype = DTYPES[tokenizer.dtype]
    progress.stage("writing shards", sum(record.tokens[split] for record in records for split in SPLITS))
    train, validation = (
        join_segments(partial, partial / SEGMENTS, len(records), split, dtype, shard_tokens, progress.advance)
        for split in SPLITS
    )
    fingerprint = dataset_fingerprint(tokenizer.dtype, tokenizer.info, train, validation)
    return Dataset(partial, tokenizer.dtype, tokenizer.info, train, validation, fingerprint)
