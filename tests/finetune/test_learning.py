"""Each kind of task learns a rule that its examples follow, and scores it on examples that it has not seen."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.finetune.conftest import Write
from tests.finetune.test_tag import pieces
from tests.finetune.training import evaluated, train
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow  # some minutes of two cores

WRITES = ["task.generate.metrics=[exact_match]", "task.generate.max_new_tokens=6"]
# What is trained -> the metric, its least value, and steps.
LORA = ["adapter.kind=lora", "adapter.targets=all-linear"]
CASES: dict[str, tuple[str, str, list[str], str, float, int]] = {
    "classify": ("classify", "bert", [], "accuracy", 0.95, 60),
    "classify with a decoder": ("classify", "llama", [], "accuracy", 0.95, 60),
    "tag": ("tag", "letters", [], "f1", 0.95, 80),
    "tag with a CRF": ("tag", "letters", ["task.crf=true"], "f1", 0.95, 80),
    "span_qa": ("span_qa", "bert", [], "exact_match", 95, 120),
    "sft": ("sft", "llama", WRITES, "exact_match", 95, 100),
    "sft with LoRA": ("sft", "llama", [*WRITES, *LORA], "exact_match", 95, 100),
}


def scores(recipes: dict[str, str], examples: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for case, recipe in recipes.items():
        kind, _, how, _, _, steps = CASES[case]
        if kind == "tag":
            how = [*how, f"data.train={examples}/names.jsonl", "data.max_length=24", "data.stride=6"]
        if kind == "sft":  # there are four conversations only, and all of them are to be learned
            how = [
                *how,
                "data.validation_share=null",
                f"data.validation={examples}/sft.jsonl",
                "evaluate.max_samples=16",
            ]
        found[case] = evaluated(train(recipe, how, steps), 8).scores.values
    return found


@pytest.fixture(scope="module")
def letters(models: Path, examples: Path) -> None:
    """The encoder with a token a letter, so that words are split, and sentences of several windows: a name begins with
    a word in a and goes on with words in b."""
    shutil.copytree(models / "bert", models / "letters", dirs_exist_ok=True)
    pieces().save_pretrained(models / "letters")
    draw = random.Random(1)

    def word(first: str) -> str:
        return draw.choice(first) + "".join(draw.choice("abcdefgh") for _ in range(draw.randint(0, 4)))

    lines = []
    for _ in range(160):
        tokens: list[str] = []
        for _ in range(draw.randint(2, 8)):
            tokens += (
                [word("a"), *(word("b") for _ in range(draw.randint(0, 2)))]
                if draw.random() < 0.3
                else [word("cdefgh")]
            )
        tags = [{"a": "B-PER", "b": "I-PER"}.get(token[0], "O") for token in tokens]
        lines.append(json.dumps({"tokens": tokens, "tags": tags}) + "\n")
    (examples / "names.jsonl").write_text("".join(lines))


def test_rules_are_learned(letters: None, write: Write, examples: Path) -> None:
    recipes: dict[str, str] = {case: str(write(kind, model)) for case, (kind, model, *_) in CASES.items()}
    (found,) = run_ranks(scores, 1, recipes, str(examples), seconds=300)
    reached: dict[str, Any] = {case: found[case][CASES[case][3]] for case in CASES}
    print(reached)
    assert {case: value for case, value in reached.items() if value < CASES[case][4]} == {}
