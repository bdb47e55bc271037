"""Another tool's token files made into a dataset folder: the same tokens, checked, hashed and cut at document ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from scaletrain.data.foreign.folder import Found, find_files, is_foreign
from scaletrain.data.foreign.opening import ForeignFiles, open_foreign
from scaletrain.data.foreign.token_file import Given
from scaletrain.data.foreign.whole_documents import Changes, Documents, LongDocument, read_documents
from scaletrain.data.prepare.locks import hold
from scaletrain.data.prepare.options import PrepareOptions, Progress, check_options
from scaletrain.data.prepare.partial import (
    SEGMENTS,
    Plan,
    claim,
    discard,
    drop_empty,
    find_complete,
    partial_of,
    publish,
)
from scaletrain.data.prepare.shard_writer import ShardWriter
from scaletrain.data.prepare.units import Reading
from scaletrain.data.shards import DTYPES, INDEX, SPLITS, Dataset, Split, Tokens, index_text, local_dataset
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.errors import DataError
from scaletrain.runtime.files import write_whole

_INDEXES = (".idx", ".ds.index")  # in place of a file's own suffix


def convert(source: Path, options: PrepareOptions, progress: Progress, dtype: str | None = None) -> Dataset:
    """Makes, or finds complete, the dataset of the token files at `source`; DataError for what the user can mend.

    Where the source has no validation files of its own, `options.validation` of its documents are held out, whole and
    by the hash of their tokens. `dtype` is the type of tokens in files that do not tell it. Bytes of text stay 0.
    """
    _check(source, options, dtype)
    options = replace(options, output=Path(os.path.abspath(options.output)))  # noqa: PTH100 (keeps a link a link)
    assert options.tokenizer is not None, "checked"
    given = Given(load_tokenizer(options.tokenizer, options.eos_token), dtype)
    plan = _make_plan(find_files(source), options, given)
    if (complete := _find_complete(options, plan, progress)) is not None:
        return complete
    partial = partial_of(options.output)
    with _writing(partial), hold(partial):
        if (complete := _find_complete(options, plan, progress)) is not None:
            drop_empty(partial)
            return complete
        claim(partial, plan, options.overwrite)
        if not (partial / INDEX).is_file():
            try:
                _make(partial, source, options, plan, given, progress)
            except DataError:  # nothing in there would be of use to the next run
                discard(partial)
                drop_empty(partial)
                raise
        return publish(partial, options.output)


def _check(source: Path, options: PrepareOptions, dtype: str | None) -> None:
    """DataError for the first option that does not go with tokens, and for a source without tokens."""
    rules = [
        (options.train_tokenizer is None and options.tokenizer_sample is None,
         "--train-tokenizer does not go with --from, whose tokens are made: give the --tokenizer that made them"),
        (options.reading == Reading() and options.glob is None and options.format is None,
         "--from reads tokens: options that say how text is read do not go with it"),
        (not options.drop_duplicates, "--drop-duplicates compares texts and does not go with --from"),
        (dtype in (None, *DTYPES), f"--dtype {dtype} is not known: it is one of {', '.join(DTYPES)}"),
        (not (source / INDEX).is_file(), f"--from {source} is a dataset already: use it as it is"),
        (is_foreign(source), f"--from {source} is neither a token file nor a folder of such: expected Megatron's .bin "
         "with .idx, .npy, nanoGPT's or llm.c's .bin, or datatrove's .ds"),
    ]  # fmt: skip
    for is_kept, message in rules:
        if not is_kept:
            raise DataError(message)
    check_options(replace(options, inputs=(str(source),)))


def _make_plan(found: Found, options: PrepareOptions, given: Given) -> Plan:
    sources: list[list[Any]] = []
    for file in (file for split in SPLITS for file in found.splits[split]):
        for path in (file, *(file.with_suffix(suffix) for suffix in _INDEXES)):
            if path.is_file():
                status = path.stat()
                sources.append([str(path), found.format, status.st_size, str(status.st_mtime_ns)])
    content = {
        "from": found.format,
        "tokenizer": {"name": given.tokenizer.name, "fingerprint": given.tokenizer.fingerprint},
        "dtype": given.dtype,
        "validation": options.validation,
        "shard_tokens": options.shard_tokens,
        "seed": options.seed,
    }
    return Plan(content, sources)


def _find_complete(options: PrepareOptions, plan: Plan, progress: Progress) -> Dataset | None:
    complete = find_complete(options.output, plan, options.overwrite)
    if complete is not None:
        progress.say(f"{options.output} is complete with these files and options: nothing to do")
    return complete


@contextmanager
def _writing(partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or partial} cannot be written ({error.strerror}): free some space or choose another "
            "--output; the same command begins anew"
        ) from error


def _make(partial: Path, source: Path, options: PrepareOptions, plan: Plan, given: Given, progress: Progress) -> None:
    """All files of the dataset; the index, which says that they are whole, last."""
    opened = open_foreign(
        source, tokenizer=options.tokenizer, dtype=given.dtype, cache=partial / SEGMENTS, eos_token=options.eos_token
    )
    fraction = 0.0 if opened.validation else options.validation
    if opened.validation:
        progress.say("the validation split is that of the source's own files")
    kind = min(opened.dtype, given.tokenizer.dtype)  # uint16 before uint32: every id is checked
    writers = {split: ShardWriter(partial, split, DTYPES[kind], options.shard_tokens) for split in SPLITS}
    changes = Changes()
    progress.stage("converting", opened.tokens("train") + opened.tokens("validation"))
    for split in SPLITS:
        for documents in _documents(opened, split, given, changes, progress):
            _put(documents, split, fraction if split == "train" else 0.0, options.seed, writers)
    shards = {split: writer.close() for split, writer in writers.items()}
    given.tokenizer.save(partial / "tokenizer")
    dataset = local_dataset(partial, kind, given.tokenizer.info, shards["train"], shards["validation"])
    _check_splits(dataset, fraction)
    listed = [(name, size) for name, _, size, _ in plan.sources]
    write_whole(partial / INDEX, index_text(dataset, listed, plan.options))
    for line in _report(dataset, changes):
        progress.say(line)


def _documents(
    opened: Dataset, split: Split, given: Given, changes: Changes, progress: Progress
) -> Iterator[Documents | LongDocument]:
    files = opened.files
    assert isinstance(files, ForeignFiles)
    for shard in opened.shards(split):
        file = files.files[shard.file]
        ends = None if file.index is None else files.document_ends(shard)
        closed = changes.closed
        for documents in read_documents(file, ends, given, changes):
            yield documents
            made = documents.length if isinstance(documents, LongDocument) else len(documents.tokens)
            progress.advance(made - (changes.closed - closed))
            closed = changes.closed


def _put(
    documents: Documents | LongDocument, split: Split, fraction: float, seed: int, writers: dict[Split, ShardWriter]
) -> None:
    """Gives documents to the writer of their split; of a long one the hash is that of its beginning."""
    if isinstance(documents, LongDocument):
        held = _is_held_out(documents.head, fraction, seed)
        writers["validation" if held else split].add_long(documents)
    elif not fraction:
        writers[split].add(documents)
    else:
        tokens, lengths = documents
        places = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        mask = np.array([_is_held_out(tokens[a:b], fraction, seed) for a, b in pairwise(places)])
        for name, chosen in ((split, ~mask), ("validation", mask)):
            writers[name].add(Documents(tokens[np.repeat(chosen, lengths)], lengths[chosen]))


def _is_held_out(tokens: Tokens, fraction: float, seed: int) -> bool:
    """By the ids, of whatever type they are stored: equal documents go the same way."""
    return bool(xxhash.xxh3_64_intdigest(tokens.astype("<u4").data, seed=seed) < fraction * 2**64)


def _check_splits(dataset: Dataset, fraction: float) -> None:
    for split in SPLITS:
        if not dataset.documents(split) and (split == "train" or fraction):
            remedy = "a larger --validation, or 0 for none" if split == "validation" else "a smaller --validation"
            raise DataError(
                f"--validation {fraction} leaves the {split} split empty with these "
                f"{sum(dataset.documents(split) for split in SPLITS)} document(s): use {remedy}"
            )


def _report(dataset: Dataset, changes: Changes) -> Iterator[str]:
    for split in (split for split in SPLITS if dataset.shards(split)):
        yield (
            f"{split:<10} {dataset.documents(split):,} documents, {dataset.tokens(split):,} tokens, "
            f"{len(dataset.shards(split))} shard(s)"
        )
    if changes.closed:
        yield f"closed     {changes.closed:,} documents that did not end with the end-of-text id"
    if changes.divided:
        yield f"divided    {changes.divided:,} more documents than the index names: they held end-of-text ids"
