"""What a GPT writes after its evaluations: sampled from its own shares, row by row, whatever else is in the batch."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from scaletrain.assemble.pretraining import begin
from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.load import load_with_deepspeed
from scaletrain.config.schema import Model, Recipe
from scaletrain.data.shards import Dataset
from scaletrain.errors import ConfigError
from scaletrain.model.gpt import GPT
from scaletrain.model.init import init_parameters
from scaletrain.tasks.continuation import Beginnings, continue_all
from tests.conftest import write_recipe


@dataclass(frozen=True)
class Letters:
    """A tokenizer, as far as it is called here: a token a letter, 0 ends a text."""

    eos_id = 0
    vocab_size = 27

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(96 + i) for i in ids)


def gpt(family: str) -> GPT:
    sizes = Model(family=family, num_layers=2, num_heads=2, hidden_size=32, tie_embeddings=False)  # type: ignore[arg-type]
    model = GPT(resolve_architecture(sizes, 27, 256))
    init_parameters(model, 3)
    return model


def begun(rows: list[list[int]], new_tokens: int, longest: int = 256) -> Beginnings:
    return Beginnings([""] * len(rows), rows, new_tokens, longest, Letters())  # type: ignore[arg-type]


def one_by_one(model: GPT, row: list[int], new_tokens: int) -> list[int]:
    """The row alone, grown by a token at a time."""
    chance = torch.Generator().manual_seed(1)
    for _ in range(new_tokens):
        logits_V = model(torch.tensor([row]))[0, -1, :27].float()
        shares_V = torch.softmax(logits_V / 0.8, dim=-1)
        row = [*row, int(torch.multinomial(shares_V, 1, generator=chance))]
    return row


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_the_text_is_what_the_model_gives_to_the_prompt_alone(family: str) -> None:
    model = gpt(family)
    model.head.weight.mul_(20)  # shares far from equal
    row = [5, 9, 3]
    new = one_by_one(model, row, 40)[3:]
    before = torch.get_rng_state()
    (text,) = continue_all(model, begun([row], 40))
    assert text == Letters().decode(new[: new.index(0)] if 0 in new else new)
    assert len(set(text)) > 5
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_rows_of_all_lengths_are_continued_within_the_context() -> None:
    model = gpt("llama")
    texts = continue_all(model, begun([[1] * 40, [2], [3] * 7], 24, longest=64))
    assert len(texts) == 3
    assert all(len(text) <= 24 and set(text) <= set("abcdefghijklmnopqrstuvwxyz") for text in texts)
    assert any(texts)


@torch.no_grad()
def test_broken_weights_write_something() -> None:
    model = gpt("gpt2")
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    assert len(continue_all(model, begun([[1], [2]], 5))) == 2


def recipe_of(dataset: Dataset, folder: Path, *overrides: str) -> Recipe:
    loaded, _ = load_with_deepspeed(write_recipe(folder, dataset, folder / "run"), overrides, None)
    assert isinstance(loaded, Recipe)
    return loaded


def test_prompts_become_tokens_and_an_empty_one_begins_a_document(dataset: Dataset, tmp_path: Path) -> None:
    recipe = recipe_of(dataset, tmp_path, 'evaluate.prompts=["def ", ""]', "evaluate.prompt_tokens=8")
    found = begin("r.yaml", recipe, dataset.tokenizer_folder)
    assert found is not None
    assert (found.new_tokens, found.longest) == (8, 32)
    assert found.tokenizer.decode(found.rows[0]) == "def "
    assert list(found.rows[1]) == [found.tokenizer.eos_id]
    assert begin("r.yaml", recipe_of(dataset, tmp_path), dataset.tokenizer_folder) is None


def test_prompts_that_cannot_be_continued_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    long = recipe_of(dataset, tmp_path, 'evaluate.prompts=["a", "b b b b b b b b b b"]', "evaluate.prompt_tokens=28")
    with pytest.raises(ConfigError, match=r"evaluate.prompts\[1\] has \d+ tokens, .* more than data.context_length=32"):
        begin("r.yaml", long, dataset.tokenizer_folder)
    shared = recipe_of(dataset, tmp_path, 'evaluate.prompts=["a"]', "train.sequence_parallel=2")
    with pytest.raises(ConfigError, match="no rank sees a whole row"):
        begin("r.yaml", shared, dataset.tokenizer_folder)
