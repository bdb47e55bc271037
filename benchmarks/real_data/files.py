"""The written files: a side of a split each, in the formats that the recipes' data.train and data.validation read."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.real_data.split import Split

Sentence = list[tuple[str, str]]  # word, tag
Counts = dict[str, Any]


def write_jsonl(folder: Path, sides: Split[dict[str, Any]]) -> Counts:
    return _write(folder, sides, "jsonl", lambda rows: (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_conll(folder: Path, sides: Split[Sentence]) -> Counts:
    """A word a line with its tag after a tab, a blank line after each sentence."""
    return _write(
        folder, sides, "conll", lambda rows: ("".join(f"{word}\t{tag}\n" for word, tag in row) + "\n" for row in rows)
    )


def write_tsv(folder: Path, sides: Split[tuple[str, str]], columns: tuple[str, str]) -> Counts:
    """No quoting: the values hold neither tabs nor line ends."""
    return _write(folder, sides, "tsv", lambda rows: ("\t".join(row) + "\n" for row in (columns, *rows)))


def write_squad(folder: Path, sides: Split[dict[str, Any]], **notes: str) -> Counts:
    """Articles in SQuAD's JSON; `notes` stand beside them."""
    for side, articles in sides.sides():
        _write_text(folder / f"{side}.json", [json.dumps({**notes, "data": articles}, ensure_ascii=False)])
    return {side: sum(len(part["qas"]) for article in articles for part in article["paragraphs"])
            for side, articles in sides.sides()}  # fmt: skip


def _write(folder: Path, sides: Split[Any], ending: str, lines: Callable[[list[Any]], Iterable[str]]) -> Counts:
    for side, rows in sides.sides():
        _write_text(folder / f"{side}.{ending}", lines(rows))
    return {side: len(rows) for side, rows in sides.sides()}


def _write_text(path: Path, pieces: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(pieces)
