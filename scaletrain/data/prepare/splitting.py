"""Which part of which document is for training and which for validation, as texts small enough to encode."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import xxhash

from scaletrain.data.prepare.units import Document
from scaletrain.data.shards import Split

PART = 1 << 20  # characters encoded at once: what bounds the memory of a document of any length
_BREAK_WINDOW = 2000  # characters around a cut in which a line end or a space is looked for


@dataclass(frozen=True)
class SplitRule:
    """`hash`: whole documents by the hash of their text; `span`: the end of each document; `none`: all is training."""

    mode: Literal["hash", "span", "none"]
    fraction: float
    seed: int


class Piece(NamedTuple):
    """A stretch of one document for one split; the last stretch of it closes the document."""

    split: Split
    text: str
    is_last: bool


def documents_for_hash(fraction: float) -> int:
    """From how many documents on whole ones are held out: some ten are then expected in the validation split."""
    return int(10 / fraction + 0.5)


def split_document(document: Document, rule: SplitRule) -> Iterator[Piece]:
    """The document's pieces in order; a pure function of its text and the rule."""
    if rule.mode != "span" and isinstance(document.parts, tuple) and len(document.parts[0]) <= PART:
        (text,) = document.parts  # nearly all documents: what follows does the same and takes longer than encoding them
        yield Piece(_split_of(text, rule), text, True)
        return
    for split, group in groupby(_labelled(document, rule), key=lambda item: item[0]):
        parts = encode_parts(text for _, text in group)
        held = next(parts, None)
        for part in parts:
            yield Piece(split, held or "", False)
            held = part
        if held:
            yield Piece(split, held, True)


def encode_parts(texts: Iterable[str]) -> Iterator[str]:
    """The concatenated text in parts of at most PART characters, the same parts however it arrives.

    A part ends at a line end before a line that does not start with white space, where common tokenizers cut anyway.
    """
    held = ""
    for text in texts:
        held += text
        while len(held) > PART:
            cut = _part_end(held)
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _part_end(text: str) -> int:
    end = PART
    while (found := text.rfind("\n", PART // 2, end)) > 0:
        if not text[found + 1].isspace():
            return found + 1
        end = found
    return (text.rfind("\n", PART // 2, PART) + 1) or max(text.rfind(" ", PART // 2, PART), 0) or PART


def _labelled(document: Document, rule: SplitRule) -> Iterator[tuple[Split, str]]:
    if rule.mode == "span":
        yield from _by_span(document, rule.fraction)
        return
    split: Split | None = None
    for text in document.parts:
        split = split or _split_of(text, rule)  # a document read in parts is placed by its first one
        yield split, text


def _split_of(text: str, rule: SplitRule) -> Split:
    if rule.mode == "none":
        return "train"
    digest = xxhash.xxh3_64_intdigest(text.encode(), seed=rule.seed)
    return "validation" if digest < rule.fraction * 2**64 else "train"


def _by_span(document: Document, fraction: float) -> Iterator[tuple[Split, str]]:
    parts = document.parts
    if document.measure is not None:
        total = document.measure()
    else:
        parts = tuple(parts)  # one part
        total = sum(len(text.encode()) for text in parts)
    target, place = total * (1 - fraction), 0
    for text in parts:
        size = len(text.encode())
        if place + size <= target:
            yield "train", text
        elif place >= target:
            yield "validation", text
        else:
            cut = _near_break(text, round(len(text) * (target - place) / size))
            yield "train", text[:cut]
            yield "validation", text[cut:]
            target = place  # what follows is validation, wherever the break was found
        place += size


def _near_break(text: str, index: int) -> int:
    """A place just after a line end or a space close to `index`, so that no word is cut; else `index` itself."""
    window = min(_BREAK_WINDOW, index // 2, (len(text) - index) // 2)
    for mark in ("\n", " "):
        before = text.rfind(mark, index - window, index)
        if before >= 0:
            return before + 1
        after = text.find(mark, index, index + window)
        if after >= 0:
            return after + 1
    return index
