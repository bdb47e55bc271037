"""Holds examples out for validation: by what they say, so that none, nor one of the same text, is on both sides."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b

from scaletrain.data.examples.example import Example
from scaletrain.errors import DataError

_SPAN = 1 << 64


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[Sequence[Example], Sequence[Example]]:
    """(training, validation): about `share` of the texts are for validation, at least one, and not all.

    The side of an example is a function of its text and the seed alone, in whatever order and company it comes. Texts
    that differ only in case and spaces are one; so are questions on one context, and conversations of equal questions.
    """
    keys = [_hash(example, seed) for example in examples]
    lowest, highest = min(keys, default=0), max(keys, default=0)
    if lowest == highest:
        raise DataError(
            f"data.validation_share={share:g} has nothing to hold out: all {len(keys)} examples have the same text; "
            "set data.validation to other files"
        )
    bound = max(lowest + 1, min(highest, round(share * _SPAN)))  # of few examples, so that no side is empty
    training = [example for example, key in zip(examples, keys, strict=True) if key >= bound]
    return training, [example for example, key in zip(examples, keys, strict=True) if key < bound]


def _hash(example: Example, seed: int) -> int:
    digest = blake2b(seed.to_bytes(16, "little", signed=True), digest_size=8)
    for text in _texts(example):
        digest.update(b"\0" + " ".join(text.casefold().split()).encode())
    return int.from_bytes(digest.digest(), "little")


def _texts(example: Example) -> Iterator[str]:
    """What is given to the model, without the answer that it learns."""
    values = example.values
    if "messages" in values:
        yield from (message["content"] for message in values["messages"] if message["role"] in ("user", "tool"))
    elif "context" in values:
        yield values["context"]
    elif "tokens" in values:
        yield " ".join(values["tokens"])
    else:
        yield values["text"]
        yield values["pair"] or ""
