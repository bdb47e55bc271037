"""Instruction tuning: what is learned, and that examples in one row do not see each other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaletrain.commands.model_source import Loaded
from scaletrain.commands.printer import write_one
from scaletrain.config.finetune_schema import Adapter, FinetuneData, FinetuneModel, Generation, TaskSection
from scaletrain.data.conversation import read_conversation
from scaletrain.data.examples.example import Example
from scaletrain.data.text_tokenizer import load_text_tokenizer
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.errors import DataError
from scaletrain.model.adapters import add_adapter
from scaletrain.model.network import Network, build_network, load_network, read_config
from scaletrain.tasks.generation import write_answers
from scaletrain.tasks.sft import Sft

TURNS = [
    {"role": "user", "content": "count one ?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "count two ?"},
    {"role": "assistant", "content": "three four"},
]


def tokenizer_of(models: Path, template: str = "chatml", model: str = "llama") -> Any:
    return load_text_tokenizer(FinetuneModel(path="x", chat_template=template), models / model)


def network_of(models: Path, model: str) -> Network:
    network = build_network(read_config(models / model, {}), "causal", torch.float32)
    assert load_network(network, models / model, 1) == []
    return network.eval()


def examples_of(lengths: list[int]) -> list[Example]:
    words = ["one", "two", "three", "four", "five"]
    return [
        Example(
            {
                "messages": (
                    {"role": "user", "content": " ".join(words[: 1 + n % 4])},
                    {"role": "assistant", "content": " ".join(words[(n + k) % 5] for k in range(n))},
                )
            },
            f"x:{n}",
        )
        for n in lengths
    ]


def sft(models: Path, packing: bool, model: str = "llama", **task: Any) -> Sft:
    data = FinetuneData(train="x", max_length=64, packing=packing)
    return Sft(TaskSection(kind="sft", **task), data, tokenizer_of(models, model=model))


@pytest.mark.parametrize("template", ["chatml", "plain"])
def test_only_the_assistants_words_are_learned(template: str, models: Path) -> None:
    tokenizer = tokenizer_of(models, template)
    read = read_conversation(TURNS, tokenizer, "x:1")
    learned = tokenizer.decode(read.ids[read.answers])
    end = "<|im_end|>"
    assert learned.replace(" ", "") == f"two{end}threefour{end}"
    assert read.answer == "three four"
    asked = tokenizer.decode(read.prompt)
    assert asked.endswith("assistant" if template == "chatml" else "count two ?")


def test_a_template_that_changes_what_it_has_written_is_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages|length }}{% for m in messages %} {{ m['content'] }}{% endfor %}")
    with pytest.raises(DataError, match="x:1: the chat template does not write message 2 as the beginning"):
        read_conversation(TURNS, tokenizer_of(models, str(tmp_path / "t.jinja")), "x:1")


def test_a_template_that_refuses_messages_is_told(models: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ raise_exception('no system here') }}")
    with pytest.raises(DataError, match=r"x:1: the chat template does not take these messages \(no system here\)"):
        read_conversation(TURNS, tokenizer_of(models, str(tmp_path / "t.jinja")), "x:1")


def losses(kind: Sft, network: Network, rows: list[Any], at_once: int) -> tuple[float, int, list[torch.Tensor]]:
    network.zero_grad()
    loss, items = torch.zeros(()), 0
    for first in range(0, len(rows), at_once):
        batch = kind.collate(rows[first : first + at_once])
        sums = kind.loss_sums(network, batch)
        assert int(sums["items"]) == kind.weight(batch)
        loss, items = loss + sums["loss"], items + int(sums["items"])
    loss.backward()
    return float(loss.detach()), items, [p.grad.clone() for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_packed_examples_are_learned_as_if_each_stood_alone(model: str, models: Path) -> None:
    made = examples_of([1, 3, 2, 9, 4, 14, 1, 6])
    network = network_of(models, model)
    packed, alone = sft(models, True, model), sft(models, False, model)
    rows = packed.encode(made, "train").rows
    assert len(rows) < len(made)
    assert any((row["positions"] == 0).sum() > 1 for row in rows)
    loss, items, gradients = losses(packed, network, rows, 2)
    wanted, count, right = losses(alone, network, alone.encode(made, "train").rows, 1)
    assert items == count
    assert loss == pytest.approx(wanted, rel=1e-5)
    largest = max(float(want.abs().max()) for want in right)
    for got, want in zip(gradients, right, strict=True):
        assert (got - want).abs().max() < 1e-5 * largest


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_no_token_of_one_example_moves_a_logit_of_another(model: str, models: Path) -> None:
    kind, network = sft(models, True, model), network_of(models, model)
    row = kind.encode(examples_of([3, 3, 3]), "train").rows[0]
    begins = np.flatnonzero(row["positions"] == 0)
    assert len(begins) == 3
    batch = kind.collate([row])

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return network.model(input_ids=batch["input_ids"], position_ids=batch["positions"], use_cache=False).logits[
                0
            ]

    before = logits()
    batch["input_ids"][0, begins[1]] = 20
    moved = (logits() - before).abs().amax(1) > 0
    assert moved[begins[1] : begins[2]].all()
    assert not moved[: begins[1]].any()
    assert not moved[begins[2] : len(row["input_ids"])].any()


def prompt_tuned(models: Path, model: str) -> Network:
    """With five virtual tokens, far from those of any word."""
    network = network_of(models, model)
    adapter = Adapter(kind="prompt_tuning", virtual_tokens=5)
    network.model = add_adapter(network.model, adapter, "causal", 1, models / model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return network.eval()


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_tuned_prompt_stands_before_each_row(model: str, models: Path) -> None:
    """In the loss and where answers are written: as if its embeddings were those of words."""
    network, kind = prompt_tuned(models, model), sft(models, False, model)
    base: Any = network.model
    base = base.get_base_model()
    conversations = [
        read_conversation(one.values["messages"], kind.tokenizer, one.place) for one in examples_of([3, 6])
    ]

    def logits(ids: Any) -> torch.Tensor:
        words = base.get_input_embeddings()(torch.as_tensor(ids)[None])
        with torch.no_grad():
            found: torch.Tensor = base(inputs_embeds=torch.cat([network.model.get_prompt(1), words], 1)).logits[0, 5:]
        return found

    batch = kind.collate(kind.encode(examples_of([3, 6]), "train").rows)
    wanted = 0.0
    for one in conversations:
        learned = torch.from_numpy(one.answers[1:])
        targets = torch.from_numpy(one.ids[1:])[learned]
        wanted += float(torch.nn.functional.cross_entropy(logits(one.ids)[:-1][learned], targets, reduction="sum"))
    assert float(kind.loss_sums(network, batch)["loss"].detach()) == pytest.approx(wanted, rel=1e-5)

    prompts = [list(one.prompt) for one in conversations]
    said = write_answers(network, kind.tokenizer, prompts, Generation(max_new_tokens=6), torch.device("cpu"))
    for prompt, text in zip(prompts, said, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 6 and (len(ids) == len(prompt) or ids[-1] != kind.tokenizer.eos_token_id):
            ids.append(int(logits(ids)[-1].argmax()))
        assert text == kind.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
        assert written(models / model, network, prompt) == text


def written(folder: Path, network: Network, prompt: list[int]) -> str:
    """What `scaletrain generate` would say."""
    tokenizer, cpu = load_tokenizer(folder), torch.device("cpu")
    loaded = Loaded(network.model, tokenizer, folder, answers=True, device=cpu, context=100)
    return write_one(loaded, prompt, {"do_sample": False, "max_new_tokens": 6}).strip()


def test_a_batch_of_padding_bears_no_loss_and_no_gradient(models: Path) -> None:
    kind, network = sft(models, True), network_of(models, "llama")
    batch = kind.collate([None, None])
    sums = kind.loss_sums(network, batch)
    assert (float(sums["loss"]), int(sums["items"]), kind.tokens(batch)) == (0.0, 0, 0)
    sums["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


def test_what_is_cut_or_left_out_is_told(models: Path) -> None:
    long = examples_of([90, 2])
    rows, notes = sft(models, True).encode(long, "train")
    assert notes[0] == "1 examples longer than 64 tokens are cut there"
    assert max(len(row["input_ids"]) for row in rows) <= 64
    kind = Sft(
        TaskSection(kind="sft"),
        FinetuneData(train="x", max_length=64, too_long="skip", packing=False),
        tokenizer_of(models),
    )
    rows, notes = kind.encode(long, "train")
    assert (len(rows), notes) == (1, ["1 examples longer than 64 tokens are left out"])


def test_answers_are_written_and_compared(models: Path) -> None:
    kind = sft(models, True, generate={"metrics": ["exact_match", "bleu"], "max_new_tokens": 4})
    rows = kind.encode(examples_of([1, 2, 3, 4]), "validation").rows
    assert len(rows) == 4  # an example a row, where answers are written
    batch = {**kind.collate([*rows, None]), "row": torch.tensor([0, 1, 2, 3, -1])}
    sums, predictions = kind.evaluate(network_of(models, "llama"), batch)
    assert [one["row"] for one in predictions] == [0, 1, 2, 3]
    assert predictions[1]["reference"] == "three four"
    found = kind.metrics({name: float(value) for name, value in sums.items()}, predictions)
    assert {"loss", "perplexity", "exact_match", "bleu"} == set(found.values)
