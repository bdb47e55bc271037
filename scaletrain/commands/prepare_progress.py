"""What a person sees of a prepare: a bar with MB/s, tokens and time left, or plain lines where there is no terminal."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from scaletrain.data.prepare.options import Report
from scaletrain.data.prepare.units import Findings
from scaletrain.data.shards import SPLITS, Dataset

_LINE_SECONDS = 10.0
_REPLACED = "invalid byte sequences became U+FFFD (iconv converts to UTF-8; --encoding-errors fail stops at the first)"
_SPLITS = {
    "hash": "whole documents, by hash",
    "span": "the end of each document: there are too few to hold out whole ones",
    "none": "none",
}


class PrepareProgress:
    """The stages of one prepare on a console (stderr, so that output stays clean)."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._name, self._total, self._done = "", 0, 0
        self._bytes = self._tokens = 0
        self._started = self._told = time.monotonic()

    def stage(self, name: str, total: int) -> None:
        self._close()
        self._name, self._total, self._done = name, total, 0
        self._bytes = self._tokens = 0
        self._started = self._told = time.monotonic()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<18}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self._console,
            )
            self._task = self._bar.add_task(name, total=max(1, total), rate="")
            self._bar.start()

    def advance(self, done: int, text_bytes: int = 0, tokens: int = 0) -> None:
        self._done += done
        self._bytes += text_bytes
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=min(self._done, self._total), rate=self._rate())
        elif time.monotonic() - self._told > _LINE_SECONDS:
            self._told = time.monotonic()
            share = 100 * self._done / max(1, self._total)
            self.say(f"{self._name}: {share:.0f}% {self._rate()} {self._time_left()}".rstrip())

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def finish(self, report: Report) -> None:
        self._close()
        for line in report_lines(report):
            self.say(line)

    def close(self) -> None:
        """Leaves the terminal as it was, after success, error or interrupt."""
        self._close()

    def _rate(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._started)
        tokens = f", {_count(self._tokens)} tokens" if self._tokens else ""
        return f"{self._bytes / 1e6 / seconds:.1f} MB/s{tokens}" if self._bytes else ""

    def _time_left(self) -> str:
        if not self._done or self._done >= self._total:
            return ""
        seconds = (time.monotonic() - self._started) * (self._total - self._done) / self._done
        return f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def report_lines(report: Report) -> list[str]:
    """The summary of a finished prepare."""
    dataset = report.dataset
    tokenizer = dataset.tokenizer
    lines = [f"{split:<10} {_split_line(dataset, split == 'train')}" for split in SPLITS if dataset.shards(split)]
    text, tokens = (sum(count(split) for split in SPLITS) for count in (dataset.bytes, dataset.tokens))
    rate = f"{tokens / max(1, text):.3f} tokens/byte"
    if report.encoded_bytes:  # a merge encodes nothing
        rate += f", {report.encoded_bytes / 1e6 / max(1e-9, report.encode_seconds):.1f} MB/s"
    lines += [
        f"held out   {_SPLITS[report.split]}",
        f"tokenizer  {tokenizer.name}: {tokenizer.vocab_size:,} tokens ({dataset.dtype}), eos {tokenizer.eos_id}",
        f"rate       {rate}; {report.seconds:.1f} s in all",
        *_duplicate_lines(report),
        *_finding_lines(report.findings),
        f"dataset    {dataset.path}",
    ]
    return lines


def _split_line(dataset: Dataset, is_train: bool) -> str:
    split = SPLITS[0] if is_train else SPLITS[1]
    return (
        f"{dataset.documents(split):,} documents, {dataset.tokens(split):,} tokens, "
        f"{dataset.bytes(split) / 1e6:,.2f} MB of text, {len(dataset.shards(split))} shard(s)"
    )


def _duplicate_lines(report: Report) -> list[str]:
    if report.duplicates is None:
        return []
    share = report.duplicates / report.documents
    return [f"duplicates {report.duplicates:,} of {report.documents:,} documents ({share:.2%}) were left out"]


def _finding_lines(findings: Findings) -> list[str]:
    lines = []
    if findings.empty_documents:
        lines.append(f"skipped    {findings.empty_documents:,} empty documents")
    for count, places, what in (
        (findings.encoding_errors, findings.encoding_places, _REPLACED),
        (findings.bad_lines, findings.bad_places, "broken lines were skipped"),
    ):
        if count:
            lines.append(f"faults     {count:,} {what}, at:")
            lines += [f"             {place}" for place in places]
    return lines


def _count(number: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)
