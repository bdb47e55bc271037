"""Preparing a dataset: inputs -> units -> segments -> shards, so that a kill leaves a resumable partial or a whole.

Either one process does it all, or parts on many machines make the segments in one OUT.partial and a merge joins them.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from scaletrain.data.prepare.disk import writing
from scaletrain.data.prepare.duplicates import Duplicates, find_duplicates
from scaletrain.data.prepare.inputs import find_sources
from scaletrain.data.prepare.join import join_segments
from scaletrain.data.prepare.locks import hold, hold_part, join_in, parts_at_work
from scaletrain.data.prepare.options import PrepareOptions, Progress, Report, check_options, make_plan
from scaletrain.data.prepare.partial import (
    DUPLICATES,
    SEGMENTS,
    Plan,
    check_claim,
    claim,
    claim_for_parts,
    discard,
    drop_empty,
    find_complete,
    partial_of,
    publish,
    read_count,
)
from scaletrain.data.prepare.parts import Part, is_unfinished, list_numbers, share_out
from scaletrain.data.prepare.pool import run_units
from scaletrain.data.prepare.segments import SegmentRecord, read_record
from scaletrain.data.prepare.set_up import TOKENIZER, Work, find_work, set_up
from scaletrain.data.prepare.units import Source
from scaletrain.data.prepare.worker import Job
from scaletrain.data.shards import DTYPES, INDEX, SPLITS, Dataset, index_text, local_dataset
from scaletrain.data.tokenizer import Tokenizer, load_tokenizer
from scaletrain.errors import DataError
from scaletrain.runtime.files import write_whole
from scaletrain.runtime.machine import cores


class _Request(NamedTuple):
    """The options with what they name on this machine."""

    options: PrepareOptions
    sources: list[Source]
    given: Tokenizer | None
    plan: Plan
    partial: Path


def prepare_dataset(options: PrepareOptions, progress: Progress) -> Dataset:
    """Makes, resumes or finds complete the dataset at `options.output`; DataError for whatever the user can mend."""
    started = time.perf_counter()
    request = _look_up(options)
    if (complete := _find_complete(request, progress)) is not None:
        return complete
    report = None
    partial = request.partial
    with writing(partial), hold(partial):
        if (complete := _find_complete(request, progress)) is not None:
            drop_empty(partial)
            return complete
        if claim(partial, request.plan, options.overwrite):
            progress.say(f"going on with {partial}")
        if not (partial / INDEX).is_file():
            work = set_up(partial, options, request.sources, request.given, progress)
            encoding = time.perf_counter()
            encoded = _encode(work, range(len(work.units)), options, progress)
            seconds = time.perf_counter() - encoding
            report = replace(_join(work, request, progress), encoded_bytes=encoded, encode_seconds=seconds)
        dataset = publish(partial, request.options.output)
    if report is not None:
        progress.finish(replace(report, dataset=dataset, seconds=time.perf_counter() - started))
    return dataset


def prepare_part(options: PrepareOptions, part: Part, progress: Progress) -> None:
    """Makes or resumes the segments of one part, while others are made by other processes; `merge_parts` ends it.

    The first part that comes settles the split and the tokenizer, the others wait for it: so nothing is done twice,
    and parts may as well run one after another.
    """
    request = _look_up(options)
    if _find_complete(request, progress) is not None:
        return
    partial, said = request.partial, False

    def wait() -> None:
        nonlocal said
        if not said:
            progress.say(f"part {part} waits for another part, which trains the tokenizer or looks through the input")
        said = True

    def begin(is_alone: bool) -> Work | None:
        if find_complete(request.options.output, request.plan, options.overwrite) is not None:
            return None
        claim_for_parts(partial, request.plan, part.count, options.overwrite, is_alone)
        if (partial / INDEX).is_file():
            return None
        return set_up(partial, options, request.sources, request.given, progress)

    with writing(partial), join_in(partial, begin, wait) as work:
        if work is not None:
            _make_part(work, part, partial, options, progress)
    if work is None:
        progress.say(f"part {part}: all parts of {request.options.output} are finished: run --merge")
        with suppress(DataError), hold(partial):  # made anew while the dataset was given its name
            drop_empty(partial)


def _make_part(work: Work, part: Part, partial: Path, options: PrepareOptions, progress: Progress) -> None:
    with hold_part(partial, part.number, part.count):
        numbers = share_out(work.units, part.count)[part.number - 1]
        started = time.perf_counter()
        encoded = _encode(work, numbers, options, progress)
        seconds = time.perf_counter() - started
    progress.say(
        f"part {part} is finished: {len(numbers):,} of {len(work.units):,} units; {encoded / 1e6:,.1f} MB of text "
        f"encoded now in {seconds:.1f} s ({encoded / 1e6 / seconds:.1f} MB/s); once all parts are, run --merge"
    )


def merge_parts(options: PrepareOptions, progress: Progress) -> Dataset:
    """Joins the parts into the dataset, the same bytes as `prepare_dataset` makes; DataError names missing parts."""
    started = time.perf_counter()
    request = _look_up(options)
    if (complete := _find_complete(request, progress)) is not None:
        return complete
    report = None
    partial = request.partial
    check_claim(partial, request.plan)
    count = read_count(partial) or 1
    if busy := parts_at_work(partial, count):
        raise DataError(f"part {list_numbers(busy)} of {count} is still at work in {partial}: wait, then --merge")
    with writing(partial), hold(partial):
        if (complete := _find_complete(request, progress)) is not None:
            drop_empty(partial)
            return complete
        check_claim(partial, request.plan)
        claim(partial, request.plan, overwrite=False)
        if not (partial / INDEX).is_file():
            work = find_work(partial, options, request.sources, request.given)
            if work is None:
                raise DataError(f"no part of {count} has begun in {partial}: make --part 1/{count} to {count}/{count}")
            (partial / SEGMENTS).mkdir(exist_ok=True)
            missing = [i for i, record in _records(work, range(len(work.units))) if record is None]
            if missing:
                raise is_unfinished(partial, work.units, missing, count)
            report = _join(work, request, progress)
        dataset = publish(partial, request.options.output)
    if report is not None:
        progress.finish(replace(report, dataset=dataset, seconds=time.perf_counter() - started))
    return dataset


def _look_up(options: PrepareOptions) -> _Request:
    check_options(options)
    options = replace(options, output=Path(os.path.abspath(options.output)))  # noqa: PTH100 (keeps a link a link)
    sources = find_sources(options.inputs, options.glob, options.format, options.reading)
    given = load_tokenizer(options.tokenizer, options.eos_token) if options.tokenizer else None
    return _Request(options, sources, given, make_plan(options, sources, given), partial_of(options.output))


def _find_complete(request: _Request, progress: Progress) -> Dataset | None:
    options = request.options
    complete = find_complete(options.output, request.plan, options.overwrite)
    if complete is not None:
        progress.say(f"{options.output} is complete with these inputs and options: nothing to do")
    return complete


def _encode(work: Work, numbers: Sequence[int], options: PrepareOptions, progress: Progress) -> int:
    """Makes the segments of these units where they are missing; the bytes of text encoded now."""
    segments = work.partial / SEGMENTS
    segments.mkdir(exist_ok=True)
    todo = [(i, work.units[i]) for i, record in _records(work, numbers) if record is None]
    todo.sort(key=lambda item: -item[1].bytes)  # a large unit begun last would keep one process busy alone
    total = sum(work.units[i].bytes for i in numbers)
    progress.stage("encoding", total)
    progress.advance(total - sum(unit.bytes for _, unit in todo))
    job = Job(
        str(segments), str(work.partial / TOKENIZER), options.reading, work.rule, options.drop_duplicates, threads=1
    )
    encoded = 0

    def step(text_bytes: int, tokens: int) -> None:
        nonlocal encoded
        encoded += text_bytes
        progress.advance(0, text_bytes, tokens)

    run_units(job, todo, options.workers or cores(), step, lambda unit: progress.advance(unit.bytes))
    return encoded


def _records(work: Work, numbers: Sequence[int]) -> Iterator[tuple[int, SegmentRecord | None]]:
    segments = work.partial / SEGMENTS
    os.listdir(segments)  # noqa: PTH208  (over NFS: else a file looked for before it was made stays missing for a minute)
    for i in numbers:
        yield i, read_record(segments, i, work.itemsize)


def _join(work: Work, request: _Request, progress: Progress) -> Report:
    """The dataset's files but for the tokenizer, which is there; then the index, which says that they are whole."""
    total, hashed, options = SegmentRecord(), [], request.options
    for i, record in _records(work, range(len(work.units))):
        assert record is not None, f"unit {i} was reported done and its record is not there"
        total.add(record)
        hashed.append(record.hashes)
    segments, advance = work.partial / SEGMENTS, progress.advance
    duplicates: Duplicates | None = None
    extras = {}
    if options.drop_duplicates:
        progress.stage("finding duplicates", 2 * sum(hashed))
        duplicates = find_duplicates(segments, hashed, work.partial / DUPLICATES, advance)
        extras["duplicates_dropped"] = duplicates.count
    progress.stage("writing shards", sum(total.tokens.values()))
    dtype = DTYPES[work.tokenizer.dtype]
    train, validation = (
        join_segments(work.partial, segments, len(work.units), split, dtype, options.shard_tokens, duplicates, advance)
        for split in SPLITS
    )
    dataset = local_dataset(work.partial, work.tokenizer.dtype, work.tokenizer.info, train, validation)
    _check_splits(dataset, options.validation, work.partial)
    listed = [(source.name, source.bytes) for source in request.sources]
    write_whole(work.partial / INDEX, index_text(dataset, listed, {**request.plan.options, **extras}).encode())
    documents = total.hashes if duplicates else sum(total.documents.values())
    dropped = duplicates.count if duplicates else None
    return Report(dataset, total.findings, work.rule.mode, documents, dropped, 0, 0.0, 0.0)


def _check_splits(dataset: Dataset, validation: float, partial: Path) -> None:
    for split in SPLITS:
        if not dataset.documents(split) and (split == "train" or validation):
            discard(partial)  # little is lost: it is a small input that leaves a split empty
            remedy = "a larger --validation, or 0 for none" if split == "validation" else "a smaller --validation"
            raise DataError(
                f"--validation {validation} leaves the {split} split empty with this input of "
                f"{sum(dataset.documents(split) for split in SPLITS)} document part(s): use {remedy}"
            )
