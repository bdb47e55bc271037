"""Exact match and F1 of answers, by the rules that SQuAD publishes (Rajpurkar et al. 2016, 2018), from 0 to 100.

Answers are compared in lower case, without ASCII punctuation, without `a`, `an` and `the`, and with single spaces.
Words are what spaces divide: in a script without spaces F1 is nearly exact match.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from scaletrain.tasks.scores.result import Scores

ANSWER_NAMES = ("exact_match", "f1")
SQUAD_NAMES = (
    *ANSWER_NAMES,
    *(f"{name}_{side}" for side in ("has_answer", "no_answer") for name in ANSWER_NAMES),
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def answer_scores(predicted: str, references: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of one answer, 0 to 1 each: the best over its references.

    No reference, or none with a word, means that there is no answer; an empty prediction says so.
    """
    given = normalise(predicted)
    wanted = [text for text in map(normalise, references) if text] or [""]
    return max(float(given == text) for text in wanted), max(_f1(given.split(), text.split()) for text in wanted)


def exact_match_f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The means over all answers, 0 to 100; nothing without an answer."""
    found = [answer_scores(given, wanted) for given, wanted in zip(predictions, references, strict=True)]
    if not found:
        return {}
    return {
        name: 100 * sum(scores) / len(found)
        for name, scores in zip(ANSWER_NAMES, zip(*found, strict=True), strict=True)
    }


def squad(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Of one predicted answer a question, empty for none; a question without references has no answer.

    Where there are both kinds of questions (SQuAD 2.0), each is scored by itself too: `_has_answer` and `_no_answer`.
    """
    values = exact_match_f1(predictions, references)
    answered = [bool(wanted) for wanted in references]
    if len(set(answered)) == 2:
        for side, kind in (("has_answer", True), ("no_answer", False)):
            kept = [place for place, has in enumerate(answered) if has is kind]
            found = exact_match_f1([predictions[place] for place in kept], [references[place] for place in kept])
            values |= {f"{name}_{side}": value for name, value in found.items()}
    return Scores(values, {"questions": len(answered), "with_answer": sum(answered)})


def _f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    same = sum((Counter(given) & Counter(wanted)).values())
    return 2 * same / (len(given) + len(wanted))
