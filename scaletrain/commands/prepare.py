"""`scaletrain prepare`: the options, and nothing else; the work is in scaletrain/data/prepare.py."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scaletrain.commands.prepare_progress import PrepareProgress
from scaletrain.data.prepare.run import SHARD_TOKENS, PrepareOptions, prepare_dataset
from scaletrain.data.prepare.units import Reading

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
    input: Annotated[  # noqa: A002  (the option is --input)
        list[str],
        typer.Option(
            help="Text, .jsonl, .csv, .tsv (each also .gz or .zst), .parquet: a file, a quoted glob or a folder; a "
            "folder that datasets saved; or hf:NAME[:CONFIG] from the hub. Repeat for more."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Dataset folder to make. A stopped run goes on from OUTPUT.partial.")],
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a dataset (when the new one is complete) or partial work.")
    ] = False,
) -> None:
    """Turn text into a dataset of token shards, with a tokenizer given or trained on it."""
    reading = Reading(field, _unescape(separator), encoding_errors.value, skip_bad_lines, dataset_split)
    options = PrepareOptions(
        inputs=tuple(input),
        output=output,
        tokenizer=tokenizer,
        train_tokenizer=train_tokenizer,
        tokenizer_kind=tokenizer_kind.value,
        tokenizer_sample=tokenizer_sample * 10**6 if tokenizer_sample else None,
        eos_token=eos_token,
        reading=reading,
        glob=glob,
        format=format,
        validation=validation,
        shard_tokens=shard_tokens,
        seed=seed,
        workers=workers,
        overwrite=overwrite,
    )
    progress = PrepareProgress()
    try:
        prepare_dataset(options, progress)
    finally:
        progress.close()


def _unescape(text: str | None) -> str | None:
    r"""A shell passes \n as two characters; here it means a line end."""
    return None if text is None else re.sub(r"\\([ntrf0\\])", lambda match: _ESCAPES[match[1]], text)
