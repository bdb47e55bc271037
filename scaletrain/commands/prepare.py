"""`scaletrain prepare`: the options, and nothing else; the work is in scaletrain/data/prepare/."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scaletrain.commands.prepare_progress import PrepareProgress
from scaletrain.data.prepare.convert import convert
from scaletrain.data.prepare.options import SHARD_TOKENS, PrepareOptions
from scaletrain.data.prepare.parts import read_part
from scaletrain.data.prepare.run import merge_parts, prepare_dataset, prepare_part
from scaletrain.data.prepare.units import Reading
from scaletrain.errors import DataError

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "0": "\0", "\\": "\\"}


class TokenizerKind(StrEnum):
    """What --train-tokenizer trains."""

    BYTE_BPE = "byte-bpe"
    UNIGRAM = "unigram"
    BPE = "bpe"


class EncodingErrors(StrEnum):
    """What invalid UTF-8 does."""

    REPLACE = "replace"
    FAIL = "fail"


def prepare(
    output: Annotated[Path, typer.Option(help="Dataset folder to make. A stopped run goes on from OUTPUT.partial.")],
    input: Annotated[  # noqa: A002  (the option is --input)
        list[str] | None,
        typer.Option(
            help="Text, .jsonl, .csv, .tsv (each also .gz or .zst), .parquet: a file, a quoted glob or a folder; a "
            "folder that datasets saved; or hf:NAME[:CONFIG] from the hub. Repeat for more."
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Convert another tool's token files instead of text: Megatron .bin + .idx, .npy, nanoGPT's and "
            "llm.c's .bin, datatrove's .ds, or a folder of such. Needs --tokenizer.",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="With --from: type of tokens in files that do not tell it: uint16 or uint32.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face folder or hub name, tokenizer.json, GPT-2 vocab.json + merges.txt folder, or "
            "SentencePiece .model."
        ),
    ] = None,
    train_tokenizer: Annotated[
        int | None, typer.Option(metavar="VOCAB", help="Train a tokenizer of this many tokens on the input instead.")
    ] = None,
    tokenizer_kind: Annotated[
        TokenizerKind, typer.Option(help="What to train: byte-level BPE, or SentencePiece unigram or BPE.")
    ] = TokenizerKind.BYTE_BPE,
    tokenizer_sample: Annotated[
        int | None,
        typer.Option(metavar="MB", help="Text to train it on at most. Default: 512 for byte-bpe, 64 unigram, 128 bpe."),
    ] = None,
    eos_token: Annotated[
        str | None, typer.Option(help="End-of-text token, where the tokenizer does not name one or another is wanted.")
    ] = None,
    field: Annotated[str, typer.Option(help="Field or column that holds the text.")] = "text",
    separator: Annotated[
        str | None,
        typer.Option(
            help=r"Cut text files into documents at this string (\n, \t are understood). Default: a file each."
        ),
    ] = None,
    glob: Annotated[
        str | None, typer.Option(help="Files to take from an input folder, such as '**/*.py'. Default: known suffixes.")
    ] = None,
    format: Annotated[  # noqa: A002
        str | None, typer.Option(help="Read all files as text, jsonl, csv or parquet, whatever their suffix.")
    ] = None,
    dataset_split: Annotated[str, typer.Option(help="Split to take of a datasets folder or hub dataset.")] = "train",
    validation: Annotated[
        float, typer.Option(help="Share held out for validation: whole documents, or the end of each if they are few.")
    ] = 0.01,
    shard_tokens: Annotated[int, typer.Option(help="Tokens in a shard at most (a longer document has its own).")] = (
        SHARD_TOKENS
    ),
    seed: Annotated[int, typer.Option(help="Decides which documents are held out.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes. Default: the processors this job may use. Changes no content.")
    ] = None,
    encoding_errors: Annotated[
        EncodingErrors, typer.Option(help="Invalid UTF-8: replace by U+FFFD, count and name it, or fail.")
    ] = EncodingErrors.REPLACE,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Count and skip broken JSON lines instead of stopping.")
    ] = False,
    drop_duplicates: Annotated[
        bool,
        typer.Option("--drop-duplicates", help="Leave out documents whose text an earlier one has, and say how many."),
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Make one of N parts (I from 1 on) in OUTPUT.partial, on a disk that all machines share, at the same "
            "time as others or one after another. With --train-tokenizer the first to come trains, the others wait.",
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Join the finished parts: the same bytes as one prepare without --part.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a dataset (when the new one is complete) or partial work.")
    ] = False,
) -> None:
    """Turn text into a dataset of token shards, with a tokenizer given or trained on it."""
    reading = Reading(field, _unescape(separator), encoding_errors.value, skip_bad_lines, dataset_split)
    options = PrepareOptions(
        inputs=tuple(input or ()),
        output=output,
        tokenizer=tokenizer,
        train_tokenizer=train_tokenizer,
        tokenizer_kind=tokenizer_kind.value,
        tokenizer_sample=tokenizer_sample * 10**6 if tokenizer_sample else None,
        eos_token=eos_token,
        reading=reading,
        glob=glob,
        format=format,
        drop_duplicates=drop_duplicates,
        validation=validation,
        shard_tokens=shard_tokens,
        seed=seed,
        workers=workers,
        overwrite=overwrite,
    )
    if merge and part is not None:
        raise DataError(f"--merge and --part {part} do not go together: make all parts, then --merge")
    if from_ is not None and (input or part is not None or merge):
        raise DataError("--from does not go with --input, --part and --merge: give --from alone")
    if from_ is None and dtype is not None:
        raise DataError(f"--dtype {dtype} is for --from only: leave it out")
    progress = PrepareProgress()
    try:
        if from_ is not None:
            convert(from_, options, progress, dtype)
        elif part is not None:
            prepare_part(options, read_part(part), progress)
        elif merge:
            merge_parts(options, progress)
        else:
            prepare_dataset(options, progress)
    finally:
        progress.close()


def _unescape(text: str | None) -> str | None:
    r"""A shell passes \n as two characters; here it means a line end."""
    return None if text is None else re.sub(r"\\([ntrf0\\])", lambda match: _ESCAPES[match[1]], text)
