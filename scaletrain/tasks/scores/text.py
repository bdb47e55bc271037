"""Scores of written texts: BLEU, chrF (Popović 2015), TER (Snover et al. 2006), ROUGE (Lin 2004); 0 to 100."""

from collections.abc import Sequence
from importlib.metadata import version
from itertools import zip_longest
from typing import Any, Literal

from scaletrain.errors import ConfigError
from scaletrain.tasks.scores.libraries import require
from scaletrain.tasks.scores.result import Scores, merged
from scaletrain.tasks.scores.squad import ANSWER_NAMES, exact_match_f1

TextMetric = Literal["bleu", "chrf", "ter", "rouge", "exact_match", "f1"]
Tokenizer = Literal["13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"]
NEEDS = {"bleu": "sacrebleu", "chrf": "sacrebleu", "ter": "sacrebleu", "rouge": "rouge_score"}
ROUGE_NAMES = ("rouge1", "rouge2", "rougeL")
_EXTRAS = {"ja-mecab": "ja", "ko-mecab": "ko"}  # tokenizer -> sacrebleu's extra
_UNSPACED = ("zh", "ja-mecab")


def text_names(metrics: Sequence[TextMetric]) -> tuple[str, ...]:
    return tuple(name for metric in metrics for name in (ROUGE_NAMES if metric == "rouge" else (metric,)))


def check_text_metrics(metrics: Sequence[TextMetric], tokenizer: Tokenizer = "13a") -> None:
    """Refuses what this machine cannot compute, before there is anything to score."""
    for metric in metrics:
        if metric in NEEDS:
            require(metric, NEEDS[metric])
    if tokenizer != "13a" and {"bleu", "rouge"} & {*metrics}:
        require(f"tokenizer={tokenizer}", "sacrebleu")
        _bleu(tokenizer)


def text_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[TextMetric],
    tokenizer: Tokenizer = "13a",
) -> Scores:
    """Of one text an example against one or more references; `details` has the signature of each score.

    `tokenizer` is sacrebleu's and finds the words of BLEU. 13a is for languages with spaces. ROUGE finds words by its
    published rule, a-z and 0-9, in lower case and without stemming; with another tokenizer than 13a it takes its words.
    """
    check_text_metrics(metrics, tokenizer)
    if not predictions:
        return Scores({})
    assert len(predictions) == len(references), "a list of references for each prediction"
    scores = Scores({})
    for metric in metrics:
        if metric == "rouge":
            scores = merged(scores, _rouge(predictions, references, tokenizer))
        elif metric in NEEDS:
            scores = merged(scores, _sacrebleu(metric, predictions, references, tokenizer))
    exact = exact_match_f1(predictions, references) if {*ANSWER_NAMES} & {*metrics} else {}
    return merged(scores, Scores({name: value for name, value in exact.items() if name in metrics}))


def _sacrebleu(
    metric: str, predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: Tokenizer
) -> Scores:
    from sacrebleu.metrics import CHRF, TER

    if metric == "bleu":
        scorer = _bleu(tokenizer)
    elif metric == "chrf":
        scorer = CHRF()
    else:  # without these, a sentence without spaces is one word to TER
        scorer = TER(normalized=tokenizer in _UNSPACED, asian_support=tokenizer in _UNSPACED)
    streams = [list(stream) for stream in zip_longest(*references)]  # None where an example has fewer
    score = scorer.corpus_score(list(predictions), streams).score
    return Scores({metric: float(score)}, {f"{metric}_signature": str(scorer.get_signature())})


def _bleu(tokenizer: Tokenizer) -> Any:
    from sacrebleu.metrics import BLEU

    try:
        return BLEU(tokenize=tokenizer)
    except RuntimeError:  # MeCab is missing
        extra = _EXTRAS[tokenizer]
        raise ConfigError(f"tokenizer={tokenizer} needs MeCab: pip install 'sacrebleu[{extra}]'") from None


class _Words:
    """A tokenizer of sacrebleu as rouge-score asks for one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._split = _bleu(tokenizer).tokenizer

    def tokenize(self, text: str) -> list[str]:
        words: list[str] = self._split(text.lower()).split()
        return words


def _rouge(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: Tokenizer) -> Scores:
    """Mean F1 over the examples, each with the best of its references."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    words = DefaultTokenizer() if tokenizer == "13a" else _Words(tokenizer)
    if not any(words.tokenize(text) for texts in references for text in texts):
        fault = "no reference has a word of a-z or 0-9: choose another tokenizer than 13a"
        return Scores({}, {"left_out": dict.fromkeys(ROUGE_NAMES, fault)})
    scorer = RougeScorer([*ROUGE_NAMES], tokenizer=words)
    found = [scorer.score_multi(list(wanted), given) for given, wanted in zip(predictions, references, strict=True)]
    values = {name: 100 * sum(float(one[name].fmeasure) for one in found) / len(found) for name in ROUGE_NAMES}
    rule = "a-z0-9" if tokenizer == "13a" else tokenizer
    return Scores(values, {"rouge_signature": f"case:lc|tok:{rule}|stem:no|version:{version('rouge-score')}"})
