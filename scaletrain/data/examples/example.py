"""An example as its task wants it, what is at fault with one, and all of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from scaletrain.errors import DataError

_TOLD_PROBLEMS, _TOLD_PLACES = 3, 3  # in one line; the rest are counted


@dataclass(frozen=True, slots=True)
class Example:
    """One example: `values` by the names that its task knows (docs/finetune-data.md), `place` is where it was read.

    classify: text, pair (or None), label (str; multi_label: tuple of str; regression: float).
    tag: tokens, tags (tuples of str of equal length).
    span_qa: id, question, context, answers (tuple of (text, start); empty: the context does not answer).
    sft: messages (tuple of {"role", "content"}, the last one from the assistant).
    """

    values: Mapping[str, Any]
    place: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no example at `place`; a fault of a whole file stands for its `examples`."""

    place: str
    problem: str
    examples: int = 1


@dataclass(frozen=True)
class Examples:
    """What was read of `what`, the recipe's key: the examples that can be used, and why the others cannot."""

    kept: Sequence[Example]
    faults: Sequence[Fault]
    what: str = "data.train"

    def check(self, on_fault: Literal["refuse", "skip"]) -> list[str]:
        """The lines to tell of the examples that are left out; DataError if they may not be, or if none is left."""
        if not self.faults:
            return []
        bad = sum(fault.examples for fault in self.faults)
        story = f"{bad:,} of {len(self.kept) + bad:,} examples"
        if on_fault == "refuse":
            raise DataError(
                f"{self.what}: {story} cannot be used: {self._told()}; repair them, or set data.on_fault=skip to go "
                "on without them"
            )
        if not self.kept:
            raise DataError(f"{self.what}: {story} cannot be used, none is left: {self._told()}")
        return [f"{self.what}: {story} are left out: {self._told()}"]

    def _told(self) -> str:
        """The problems in the order of their first places, each once."""
        by_problem: dict[str, list[str]] = {}
        for fault in self.faults:
            by_problem.setdefault(fault.problem, []).append(fault.place)
        told = []
        for problem, places in islice(by_problem.items(), _TOLD_PROBLEMS):
            others = len(places) - _TOLD_PLACES
            more = f" and {others:,} more" if others > 0 else ""
            told.append(f"{problem} ({', '.join(places[:_TOLD_PLACES])}{more})")
        others = len(by_problem) - _TOLD_PROBLEMS
        more = f" and {others:,} other problem{'s' if others > 1 else ''}" if others > 0 else ""
        return "; ".join(told) + more
