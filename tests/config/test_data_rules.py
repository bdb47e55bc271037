"""The rules of the data section: each broken one is a line that says what to do."""

from typing import Any

import pytest

from scaletrain.config.data_rules import data_problems, unreached_stages, weights_by_stage
from scaletrain.config.schema import Data

TWO = {"web": {"path": "a", "weight": 3}, "code": {"path": "b"}}


@pytest.mark.parametrize(
    "data",
    [
        {"path": "a"},
        {"mixture": TWO},
        {"mixture": TWO, "stages": [{"from_tokens": "1M", "weights": {"code": 1}}]},
        {"path": "a", "max_epochs": 2, "on_repeat_limit": "stop"},
        {"source": "huggingface", "path": "a", "tokenizer": "t", "live": {"split": "test"}},
    ],
)
def test_a_sound_section_has_no_problem(data: dict[str, Any]) -> None:
    assert data_problems(Data.model_validate(data)) == []


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({}, "data.path is not set: add it to the recipe, or name several sources in data.mixture"),
        (
            {"path": "a", "mixture": TWO},
            "data.path=a and data.mixture both say what to read: keep one and set the other",
        ),
        (
            {"path": "a", "stages": [{"from_tokens": 1, "weights": {"a": 1}}]},
            "data.stages change the weights of data.mixture, which is not set: name the sources there",
        ),
        ({"mixture": {}}, "data.mixture names no source: give it at least one"),
        (
            {"mixture": TWO, "max_epochs": 2},
            "data.max_epochs=2 is for data.path: give it to each source of data.mixture",
        ),
        (
            {"mixture": TWO, "stages": [{"from_tokens": 1000, "weights": {"cod": 1}}]},
            "the stage from 1,000 tokens gives a weight to cod, which data.mixture does not name: add it there",
        ),
        (
            {"mixture": TWO, "stages": [{"from_tokens": 1000, "weights": {"code": 0}}]},
            "the stage from 1,000 tokens gives no source a weight above 0: raise one",
        ),
        ({"mixture": {"web": {"path": "a", "weight": 0}}}, "data.mixture gives no source a weight above 0: raise one"),
        (
            {"mixture": TWO, "stages": [{"from_tokens": n, "weights": {"code": 1}} for n in (2000, 1000)]},
            "data.stages begin at 2,000, 1,000 tokens: give each a later from_tokens than the one before",
        ),
        (
            {"path": "a", "on_repeat_limit": "stop"},
            "data.on_repeat_limit=stop has no effect without max_epochs: set one",
        ),
        (
            {"path": "a", "shuffle": False, "shuffle_window_shards": 4},
            "data.shuffle_window_shards=4 has no effect with data.shuffle=false: remove one of them",
        ),
        (
            {"path": "a", "live": {"split": "x"}},
            "data.live is read with data.source=huggingface only: set it, or remove",
        ),
        (
            {"source": "huggingface", "path": "a"},
            "data.tokenizer is not set: data.source=huggingface needs a tokenizer folder, file or hub name",
        ),
        (
            {"source": "huggingface", "path": "a", "tokenizer": "t", "packing": "best_fit"},
            "data.packing=best_fit does not go with data.source=huggingface: prepare the text",
        ),
        (
            {"source": "huggingface", "path": "a", "tokenizer": "t", "dtype": "uint32"},
            "data.dtype does not go with data.source=huggingface: prepare the text",
        ),
    ],
)
def test_a_broken_rule_is_a_line(data: dict[str, Any], line: str) -> None:
    problems = data_problems(Data.model_validate(data))
    assert [problem for problem in problems if problem.startswith(line)], problems


def test_weights_of_a_stage_leave_out_sources_that_it_does_not_name() -> None:
    data = Data.model_validate({"mixture": TWO, "stages": [{"from_tokens": "2K", "weights": {"code": 1}}]})
    assert weights_by_stage(data) == [(0, {"web": 3, "code": 1}), (2000, {"web": 0, "code": 1})]


def test_a_stage_that_the_run_does_not_come_to_is_told() -> None:
    stages = [{"from_tokens": n, "weights": {"code": 1}} for n in (1000, 3000)]
    data = Data.model_validate({"mixture": TWO, "stages": stages})
    assert unreached_stages(data, 3001) == []
    line = "the stage from 3,000 tokens never begins: the run ends at 3,000 tokens"
    assert unreached_stages(data, 3000) == [line]
