"""The process that turns units into segments: told by lines of JSON on stdin, answers by lines of JSON on stdout.

A program of its own rather than a fork: a fork would share the tokenizers library's dead threads, and multiprocessing's
spawn would import the command line (and torch) again in each process.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import xxhash

from scaletrain.data.prepare.disk import writing
from scaletrain.data.prepare.readers import read_documents
from scaletrain.data.prepare.segments import SegmentRecord, SegmentWriter
from scaletrain.data.prepare.splitting import SplitRule, split_document
from scaletrain.data.prepare.units import Document, Findings, Reading, Unit
from scaletrain.data.shards import Split
from scaletrain.data.tokenizer import Tokenizer, load_tokenizer
from scaletrain.errors import DataError


@dataclass(frozen=True)
class Job:
    """What all units of a prepare have in common."""

    segments: str
    tokenizer: str
    reading: Reading
    rule: SplitRule
    hash_documents: bool
    threads: int

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def read_job(line: str) -> Job:
    """The job that `Job.as_json` wrote."""
    value = json.loads(line)
    return Job(**{**value, "reading": Reading(**value["reading"]), "rule": SplitRule(**value["rule"])})


def make_segment(job: Job, tokenizer: Tokenizer, number: int, unit: Unit, out: TextIO) -> SegmentRecord:
    """Reads, splits, encodes and writes one unit, telling `out` of each batch."""
    findings = Findings()
    writer = SegmentWriter(Path(job.segments), number, tokenizer, job.threads)
    told = (0, 0)
    for document in read_documents(unit, job.reading, findings):
        digest = xxhash.xxh3_128()
        splits: set[Split] = set()
        for piece in split_document(_hashed(document, digest) if job.hash_documents else document, job.rule):
            splits.add(piece.split)
            if writer.add(piece):
                _tell(out, progress=[writer.bytes_done - told[0], writer.tokens_done - told[1]])
                told = (writer.bytes_done, writer.tokens_done)
        if job.hash_documents:
            writer.add_hash(digest.digest(), splits)
    record = writer.close(findings)
    _tell(out, progress=[writer.bytes_done - told[0], writer.tokens_done - told[1]])
    return record


def _hashed(document: Document, digest: Any) -> Document:
    """The same document, whose text goes through the digest, at once or while it is read."""
    if isinstance(document.parts, tuple):
        digest.update(document.parts[0].encode())
        return document

    def parts() -> Iterator[str]:
        for text in document.parts:
            digest.update(text.encode())
            yield text

    return document._replace(parts=parts())


def main() -> None:
    """Works until stdin ends; that is also how a killed parent ends its workers, at once and in any state."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not garble the answers
    job = read_job(sys.stdin.readline())
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    try:
        with writing(Path(job.segments)):
            tokenizer = load_tokenizer(job.tokenizer)
            while True:
                number, unit = json.loads(lines.get())
                unit["paths"] = tuple(unit["paths"])
                make_segment(job, tokenizer, number, Unit(**unit), out)
                _tell(out, done=number)
    except DataError as error:
        _tell(out, error=str(error))


def _listen(lines: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _tell(out: TextIO, **message: Any) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
