"""Scores of texts equal sacrebleu's command line and rouge-score; signatures; other scripts than ours."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from scaletrain.errors import ConfigError
from scaletrain.tasks.scores.text import check_text_metrics, text_names, text_scores

GIVEN = [
    "The cat sat on the mat, didn't it?",
    "Ein kleiner Fehler: 3,5 % größer.",
    "completely different",
    "He said “hello” - and left.",
]
WANTED = [
    "The cat is sitting on the mat, isn't it?",
    "Ein kleiner Fehler: 3.5 % größer als zuvor.",
    "nothing shared here at all",
    'He said "hello" and left.',
]
OTHERS = ["A cat sat on a mat.", "Ein Fehlerchen.", "different, completely", "He left."]


def _command_line(folder: Path, metric: str, references: list[list[str]], *options: str) -> tuple[float, str]:
    files = []
    for number, texts in enumerate([*references, GIVEN]):
        files.append(folder / f"{number}.txt")
        files[-1].write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", *files[:-1], "-i", files[-1], "-m", metric, "-w", "12", *options]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    return found["score"], found["signature"]


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter"])
def test_scores_and_signatures_are_those_of_the_sacrebleu_command(metric: str, tmp_path: Path) -> None:
    scores = text_scores(GIVEN, [[text] for text in WANTED], [metric])
    value, signature = _command_line(tmp_path, metric, [WANTED])
    assert scores.values == {metric: pytest.approx(value, abs=1e-9)}
    assert scores.details == {f"{metric}_signature": signature}
    assert 0 < value < 100 or metric == "ter"


def test_bleu_with_several_references_and_another_tokenizer_is_that_of_the_command(tmp_path: Path) -> None:
    pairs = [[a, b] for a, b in zip(WANTED, OTHERS, strict=True)]
    scores = text_scores(GIVEN, pairs, ["bleu"], "intl")
    value, signature = _command_line(tmp_path, "bleu", [WANTED, OTHERS], "--tokenize", "intl")
    assert scores.values == {"bleu": pytest.approx(value, abs=1e-9)}
    assert scores.details == {"bleu_signature": signature}
    assert "tok:intl" in signature


def test_examples_may_have_more_or_fewer_references() -> None:
    references = [*([text] for text in WANTED[:2]), [WANTED[2], OTHERS[2]], [WANTED[3]]]
    mixed = text_scores(GIVEN, references, ["bleu", "chrf", "ter", "rouge"])
    single = text_scores(GIVEN, [[text] for text in WANTED], ["bleu", "chrf", "ter", "rouge"])
    assert mixed.values["bleu"] > single.values["bleu"]
    assert mixed.values["rouge1"] > single.values["rouge1"]


def test_rouge_is_the_mean_f1_of_rouge_score() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    each = [scorer.score(wanted, given) for wanted, given in zip(WANTED, GIVEN, strict=True)]
    scores = text_scores(GIVEN, [[text] for text in WANTED], ["rouge"])
    assert scores.values == {
        name: pytest.approx(100 * sum(one[name].fmeasure for one in each) / len(each))
        for name in ("rouge1", "rouge2", "rougeL")
    }
    assert scores.details["rouge_signature"].startswith("case:lc|tok:a-z0-9|stem:no|version:")


def test_chinese_has_words_for_every_score_with_its_tokenizer() -> None:
    given, wanted = ["我喜欢猫。", "今天天气好"], [["我喜欢狗。"], ["今天天气很好"]]
    scores = text_scores(given, wanted, ["bleu", "ter", "rouge"], "zh")
    assert scores.values["rouge1"] == pytest.approx(100 * (4 / 5 + 10 / 11) / 2)
    assert 0 < scores.values["ter"] < 30  # one word in each sentence, of 5 and 6
    assert scores.values["bleu"] > 30
    assert "tok:zh" in scores.details["bleu_signature"]
    assert "asian:yes" in scores.details["ter_signature"]


def test_rouge_without_a_latin_letter_is_left_out() -> None:
    scores = text_scores(["我喜欢猫"], [["我喜欢猫"]], ["rouge", "exact_match"])
    assert scores.values == {"exact_match": 100.0}
    fault = "no reference has a word of a-z or 0-9: choose another tokenizer than 13a"
    assert scores.details["left_out"] == dict.fromkeys(("rouge1", "rouge2", "rougeL"), fault)


def test_exact_match_and_f1_are_those_of_answers() -> None:
    scores = text_scores(["the cat", "in France"], [["Cat!"], ["France"]], ["exact_match", "f1"])
    assert scores.values == {"exact_match": 50.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 2)}
    assert [*text_scores(["a"], [["b"]], ["f1"]).values] == ["f1"]


def test_the_names_are_told_beforehand() -> None:
    metrics = ["bleu", "chrf", "ter", "rouge", "exact_match", "f1"]
    assert text_names(metrics) == ("bleu", "chrf", "ter", "rouge1", "rouge2", "rougeL", "exact_match", "f1")
    assert [*text_scores(GIVEN, [[text] for text in WANTED], metrics).values] == [*text_names(metrics)]


def test_no_texts_and_empty_texts() -> None:
    assert text_scores([], [], ["bleu", "rouge"]).values == {}
    values = text_scores(["", ""], [["a b"], ["c"]], ["bleu", "chrf", "ter", "rouge", "f1"]).values
    assert values == {"bleu": 0, "chrf": 0, "ter": 100, "rouge1": 0, "rouge2": 0, "rougeL": 0, "f1": 0}


@pytest.mark.parametrize(
    ("metric", "module", "package"), [("ter", "sacrebleu", "sacrebleu"), ("rouge", "rouge_score", "rouge-score")]
)
def test_a_missing_library_is_named_with_its_extra(
    metric: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        check_text_metrics([metric])
    assert str(caught.value) == f"{metric} needs {package}, not installed here: pip install 'scaletrain[finetune]'"


@pytest.mark.skipif(importlib.util.find_spec("MeCab") is not None, reason="MeCab is installed")
@pytest.mark.parametrize(("tokenizer", "extra"), [("ja-mecab", "ja"), ("ko-mecab", "ko")])
def test_a_tokenizer_without_its_dictionary_is_refused_before_a_run(tokenizer: str, extra: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_text_metrics(["bleu"], tokenizer)
    assert str(caught.value) == f"tokenizer={tokenizer} needs MeCab: pip install 'sacrebleu[{extra}]'"
    check_text_metrics(["chrf", "exact_match"], tokenizer)  # they have no use for words
