"""Answers in texts: places found again, windows, and the best span."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
from tokenizers import models as bpe
from transformers import PreTrainedTokenizerFast

from scaletrain.config.finetune_schema import FinetuneData, FinetuneModel, TaskSection
from scaletrain.data.examples.example import Example
from scaletrain.data.text_tokenizer import load_text_tokenizer
from scaletrain.errors import DataError
from scaletrain.tasks.span_qa import SpanQa, best_spans

CONTEXT = "the film was good . Anna lives in Paris . Bob was in Berlin . it is a great plot . the actor is awful ."


def kind_of(models: Path, max_length: int, stride: int, **task: Any) -> SpanQa:
    tokenizer = load_text_tokenizer(FinetuneModel(path="x"), models / "bert")
    data = FinetuneData(train="x", max_length=max_length, stride=stride)
    return SpanQa(TaskSection(kind="span_qa", **task), data, tokenizer)


def question(answer: str | None, context: str = CONTEXT) -> Example:
    answers = ((answer, context.index(answer)),) if answer else ()
    return Example({"id": "1", "question": "where ?", "context": context, "answers": answers}, "x:1")


@pytest.mark.parametrize("answer", ["the", "Paris", "in Berlin", "awful .", CONTEXT[:20]])
@pytest.mark.parametrize(("max_length", "stride"), [(64, 8), (20, 6), (14, 2)])
def test_the_marked_tokens_are_the_answer(answer: str, max_length: int, stride: int, models: Path) -> None:
    kind = kind_of(models, max_length, stride)
    rows = kind.encode([question(answer)], "validation").rows
    found = [row for row in rows if row["end"]]
    assert found or len(answer.split()) > stride + 1  # an answer may be cut by every window if it is longer than that
    for row in found:
        begin, end = row["offsets"][row["start"]][0], row["offsets"][row["end"]][1]
        assert CONTEXT[begin:end] == answer.strip()


WORDS = ("Müller", "lives", "in", "Zürich", "日本", "since", "1999,", "naïve", "🙂", "(so)", "unbelievably")
CONTEXTS = st.lists(st.sampled_from(WORDS), min_size=4, max_size=40)


@cache
def bytes_tokenizer(trims: bool) -> Any:
    """A byte-level BPE: words and characters are split; without `trims` a token's place begins with its space."""
    backend = Tokenizer(bpe.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["[PAD]"],
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=trims)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


@given(CONTEXTS, st.booleans(), st.data())
def test_the_gold_span_of_each_question_gives_its_answer(words: list[str], trims: bool, data: st.DataObject) -> None:
    """From bytes, with windows: in the row that holds an answer, and by the words that an evaluation gives."""
    first = data.draw(st.integers(0, len(words) - 1))
    answer = " ".join(words[first : first + data.draw(st.integers(1, 3))])
    context, start = " ".join(words), len(" ".join(["", *words[:first]])) if first else 0
    tokenizer = bytes_tokenizer(trims)
    longest = len(tokenizer(" " + answer)["input_ids"])
    settings = FinetuneData(train="x", max_length=longest + 40, stride=longest + 2)
    kind = SpanQa(TaskSection(kind="span_qa", max_answer_tokens=longest), settings, tokenizer)
    example = Example({"id": "1", "question": "where ?", "context": context, "answers": ((answer, start),)}, "x:1")
    rows = kind.encode([example], "validation").rows
    assert any(row["end"] for row in rows)
    batch = {**kind.collate([*rows, None]), "row": torch.tensor([*range(len(rows)), -1])}
    _, predictions = kind.evaluate(perfect(kind, rows), batch)
    assert kind.answers(predictions) == {0: answer}


def perfect(kind: SpanQa, rows: list[Any]) -> Any:
    """A model that marks what is to be marked."""

    def model(work: Any, batch: Any) -> torch.Tensor:
        logits = torch.zeros(len(batch["start"]), batch["input_ids"].shape[1], 2)
        for line, (start, end) in enumerate(zip(batch["start"].tolist(), batch["end"].tolist(), strict=True)):
            if start >= 0:
                logits[line, start, 0] = logits[line, end, 1] = 9.0
        return logits

    return model


def test_right_places_score_full_marks(models: Path) -> None:
    kind = kind_of(models, 20, 6)
    rows = kind.encode([question("Paris"), question("in Berlin"), question(None)], "validation").rows
    batch = {**kind.collate([*rows, None]), "row": torch.tensor([*range(len(rows)), -1])}
    sums, predictions = kind.evaluate(perfect(kind, rows), batch)
    assert kind.answers(predictions) == {0: "Paris", 1: "in Berlin", 2: ""}
    found = kind.metrics({name: float(value) for name, value in sums.items()}, predictions).values
    assert (found["exact_match"], found["f1"], found["exact_match_no_answer"]) == (100, 100, 100)
    assert set(found) <= set(kind.metric_names)
    assert kind.weight(batch) == len(rows)


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_best_span_is_that_of_a_search_over_all(seed: int, longest: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    start, end = torch.randn(3, 9, generator=draw), torch.randn(3, 9, generator=draw)
    is_context = torch.rand(3, 9, generator=draw) < 0.7
    is_context[:, 4] = True
    score, first, last = best_spans(start, end, is_context, longest)
    for row in range(3):
        places = [p for p in range(9) if is_context[row, p]]
        spans = [(a, b) for a in places for b in places if a <= b < a + longest]
        a, b = max(spans, key=lambda span: float(start[row, span[0]] + end[row, span[1]]))
        assert (int(first[row]), int(last[row])) == (a, b)
        assert float(score[row]) == pytest.approx(float(start[row, a] + end[row, b]))


def test_a_question_that_fills_a_row_is_refused(models: Path) -> None:
    long = Example({"id": "1", "question": "where " * 12, "context": CONTEXT, "answers": ()}, "q.json:7")
    with pytest.raises(DataError, match="q.json:7: a question of 12 tokens leaves no room for its context"):
        kind_of(models, 24, 8).encode([long], "train")
