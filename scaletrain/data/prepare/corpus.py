"""The corpus as a whole: how its documents are split, and a bounded sample of its training text."""

import random
from collections.abc import Iterator, Sequence

from scaletrain.data.prepare.readers import read_documents
from scaletrain.data.prepare.splitting import SplitRule, documents_for_hash, split_document
from scaletrain.data.prepare.units import Document, Findings, Reading, Unit
from scaletrain.errors import DataError


def decide_split(units: Sequence[Unit], reading: Reading, fraction: float, seed: int) -> SplitRule:
    """Whole documents where there are enough of them, else a span of each; counting stops when that is known."""
    enough = documents_for_hash(fraction) if fraction else 1
    count = 0
    for _ in _documents(units, reading):
        count += 1
        if count >= enough:
            break
    if not count:
        names = ", ".join(dict.fromkeys(path for unit in units[:3] for path in unit.paths[:1]))
        raise DataError(f"the input ({names} ...) holds only empty documents: there is nothing to prepare")
    if not fraction:
        return SplitRule("none", 0.0, seed)
    return SplitRule("hash" if count >= enough else "span", fraction, seed)


def sample_text(units: Sequence[Unit], reading: Reading, rule: SplitRule, budget: int) -> Iterator[str]:
    """Training text for a tokenizer: all of it, or units in a seeded random order until `budget` bytes are read.

    Held-out text is left out, so that bits per byte are measured on text the tokenizer has not seen either.
    """
    order = list(units)
    if sum(unit.bytes for unit in units) > budget:
        random.Random(rule.seed).shuffle(order)
    left = budget
    for document in _documents(order, reading):
        for piece in split_document(document, rule):
            if piece.split == "train":
                yield piece.text
                left -= len(piece.text.encode())
                if left <= 0:
                    return


def _documents(units: Sequence[Unit], reading: Reading) -> Iterator[Document]:
    """Documents in order; what is amiss in them is counted later, when they are encoded."""
    findings = Findings()
    for unit in units:
        yield from read_documents(unit, reading, findings)
