"""Labels of texts: one, several or a number."""

from pathlib import Path
from typing import Any

import pytest
import torch

from scaletrain.config.finetune_schema import FinetuneData, FinetuneModel, TaskSection
from scaletrain.data.examples.example import Example
from scaletrain.data.text_tokenizer import load_text_tokenizer
from scaletrain.tasks.classify import Classify

LABELS = ("bad", "good")


def kind_of(models: Path, weights: list[float] | None = None, **given: Any) -> Classify:
    tokenizer = load_text_tokenizer(FinetuneModel(path="x"), models / "bert")
    data = {name: given.pop(name) for name in ("max_length", "too_long") if name in given}
    labels = () if given.get("regression") else LABELS
    return Classify(TaskSection(kind="classify", **given), FinetuneData(train="x", **data), tokenizer, labels, weights)


def text(label: Any, words: str = "the film is good", pair: str | None = None) -> Example:
    return Example({"text": words, "pair": pair, "label": label}, "x:1")


def constant(*logits: float) -> Any:
    return lambda work, batch: torch.tensor([logits]).repeat(len(batch["is_row"]), 1)


def evaluated(kind: Classify, examples: list[Example], model: Any) -> tuple[dict[str, float], list[Any]]:
    rows = kind.encode(examples, "validation").rows
    batch = {**kind.collate([*rows, None]), "row": torch.tensor([*range(len(rows)), -1])}
    sums, predictions = kind.evaluate(model, batch)
    found = kind.metrics({name: float(value) for name, value in sums.items()}, predictions)
    assert set(found.values) <= set(kind.metric_names)
    return found.values, list(predictions)


def test_one_label(models: Path) -> None:
    found, said = evaluated(kind_of(models), [text("good"), text("good"), text("bad")], constant(0.0, 2.0))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["loss"] == pytest.approx((2 * 0.126928 + 2.126928) / 3, rel=1e-5)
    assert (said[2]["label"], said[2]["predicted"]) == ("bad", "good")


def test_several_labels(models: Path) -> None:
    kind = kind_of(models, multi_label=True)
    found, said = evaluated(kind, [text(("good",)), text(("bad", "good")), text(())], constant(-1.0, 1.0))
    assert found["subset_accuracy"] == pytest.approx(1 / 3)
    assert said[1] == {"row": 1, "predicted": ["good"], "scores": said[1]["scores"], "logits": [-1.0, 1.0],
                       "label": ["bad", "good"]}  # fmt: skip
    assert kind.config()["problem_type"] == "multi_label_classification"


def test_a_number(models: Path) -> None:
    found, said = evaluated(kind_of(models, regression=True), [text(1.0), text(3.0)], constant(2.0))
    assert (found["mse"], found["loss"], said[0]["predicted"]) == (1.0, 1.0, 2.0)


def test_labels_of_more_weight_count_more(models: Path) -> None:
    plain, weighted = kind_of(models), kind_of(models, [3.0, 0.5])
    batch = plain.collate(plain.encode([text("bad"), text("good")], "train").rows)
    model = constant(0.0, 0.0)
    log2 = 0.693147
    assert float(plain.loss_sums(model, batch)["loss"]) == pytest.approx(2 * log2, rel=1e-5)
    assert float(weighted.loss_sums(model, batch)["loss"]) == pytest.approx(3.5 * log2, rel=1e-5)
    assert weighted.weight(batch) == 2


def test_a_pair_is_two_segments(models: Path) -> None:
    kind = kind_of(models)
    row = kind.encode([text("good", "the film", "is good")], "train").rows[0]
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert kind.show(row).answer == "good"


@pytest.mark.parametrize(("policy", "rows", "told"), [("truncate", 2, "cut there"), ("skip", 1, "left out")])
def test_long_texts_are_cut_or_left_out(policy: str, rows: int, told: str, models: Path) -> None:
    kind = kind_of(models, max_length=8, too_long=policy)
    found, notes = kind.encode([text("good", "good " * 20), text("bad")], "train")
    assert len(found) == rows
    assert max(len(row["input_ids"]) for row in found) <= 8
    assert notes == [f"1 texts longer than 8 tokens are {told}"]
