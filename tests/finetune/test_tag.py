"""Tags of words: alignment with subwords, windows over long sentences, scores."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from scaletrain.config.finetune_schema import FinetuneData, TaskSection
from scaletrain.data.examples.example import Example
from scaletrain.data.rows import IGNORED
from scaletrain.model.init import whole_parameter
from scaletrain.model.network import Network, begin_weights
from scaletrain.tasks.tag import Tag, is_bio

LABELS = ("O", "B-PER", "I-PER")


def pieces() -> Any:
    """WordPiece: a word of k letters is k tokens, and a zero-width space is none."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocab = {t: n for n, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{x}" for x in letters)])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.Replace("\u200b", ""), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


def tag(max_length: int = 32, stride: int | None = None, **task: Any) -> Tag:
    data = FinetuneData(train="x", max_length=max_length, stride=stride)
    return Tag(TaskSection(kind="tag", **task), data, pieces(), LABELS)


def sentence(*words: str) -> Example:
    tags = ["B-PER" if word.startswith("a") else "I-PER" if word.startswith("b") else "O" for word in words]
    return Example({"tokens": words, "tags": tuple(tags)}, "x:1")


class Echo(torch.nn.Module):
    """Says of a token the label of its first letter: a and b name persons."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        scores = torch.zeros(*input_ids.shape, 3)
        scores[..., 0] = 1.0
        scores[..., 1] = 2.0 * (input_ids == 4)
        scores[..., 2] = 2.0 * (input_ids == 5)
        return type("Out", (), {"logits": scores})


def test_a_words_label_stands_at_its_first_piece() -> None:
    kind = tag()
    row = kind.encode([sentence("abc", "x", "bb")], "train").rows[0]
    assert [row["input_ids"][place] for place in row["places"]] == [4, 27, 5]  # a, x, b
    assert [kind.labels[t] for t in row["tags"]] == ["B-PER", "O", "I-PER"]
    assert kind.show(row).answer == "B-PER O I-PER"
    batch = kind.collate([row, None])
    assert (kind.weight(batch), kind.tokens(batch)) == (3, len(row["input_ids"]))


def test_every_piece_bears_the_label_if_asked() -> None:
    kind = tag(word_label="all")
    batch = kind.collate(kind.encode([sentence("abc", "x")], "train").rows)
    assert batch["subwords"][0, :6].tolist() == [IGNORED, 1, 1, 1, 0, IGNORED]
    assert kind.weight(batch) == 4


@pytest.mark.parametrize("crf", [False, True])
def test_each_word_of_a_long_sentence_is_judged_once(crf: bool) -> None:
    kind = tag(max_length=12, stride=4, crf=crf)
    words = ["a", "bc", "x", "ab", "yyy", "z", "b", "a", "qq", "bb", "x", "abcd", "y", "z", "a"]
    rows, notes = kind.encode([sentence(*words)], "validation")
    assert len(rows) > 2
    assert notes == [f"{len(rows) - 1} rows more than sentences, which are longer than data.max_length"]
    own = [word for row in rows for word, mine in zip(row["words"], row["is_own"], strict=True) if mine]
    assert sorted(own) == list(range(len(words)))
    network = Network(Echo(), kind.extra(None))
    if network.extra is not None:
        begin_weights(network.extra, "extra", 1, whole_parameter)
        for parameter in network.extra.parameters():
            parameter.data.zero_()
    network.eval()
    batch = {**kind.collate([*rows, None]), "row": torch.tensor([*range(len(rows)), -1])}
    sums, predictions = kind.evaluate(network, batch)
    said: dict[int, str] = {}
    for one in predictions:
        said |= one["tags"]
    assert sorted(said) == list(range(len(words)))
    if not crf:  # a CRF gives no I-PER that follows O
        assert [said[n] for n in range(len(words))] == list(sentence(*words).values["tags"])
    found = kind.metrics({name: float(value) for name, value in sums.items()}, predictions)
    assert set(kind.metric_names) >= set(found.values)


WORD = st.one_of(st.just("\u200b"), st.text("abxyz", min_size=1, max_size=25))


@given(st.lists(WORD, min_size=1, max_size=12), st.integers(8, 16), st.integers(0, 3))
def test_a_label_stands_at_its_words_first_piece_in_every_window(words: list[str], room: int, stride: int) -> None:
    """However words are cut, and though some give no token."""
    kind = tag(max_length=room, stride=stride)
    example = sentence(*words)
    rows, notes = kind.encode([example], "train")
    for row in rows:
        assert [row["input_ids"][place] for place in row["places"]] == [
            kind.tokenizer.convert_tokens_to_ids(words[word][0]) for word in row["words"]
        ]
        assert [kind.labels[t] for t in row["tags"]] == [example.values["tags"][word] for word in row["words"]]
    own = [word for row in rows for word, mine in zip(row["words"], row["is_own"], strict=True) if mine]
    assert sorted(own) == [number for number, word in enumerate(words) if word != "\u200b"]
    lost = len(words) - len(own)
    assert any("give no token" in note for note in notes) == bool(lost)


def test_tags_are_bio_when_all_are() -> None:
    assert is_bio(("O", "B-X", "I-X"))
    assert not is_bio(("O",))
    assert not is_bio(("O", "NOUN"))


def test_a_crf_counts_words_and_padding_bears_none(models: Path) -> None:
    kind = tag(crf=True)
    rows = kind.encode([sentence("a", "b"), sentence("x", "y", "z")], "train").rows
    network = Network(Echo(), kind.extra(None))
    assert network.extra is not None
    begin_weights(network.extra, "extra", 1, whole_parameter)
    together = kind.loss_sums(network, kind.collate([*rows, None]))
    alone = [kind.loss_sums(network, kind.collate([row])) for row in rows]
    assert int(together["items"]) == 5
    assert float(together["loss"]) == pytest.approx(sum(float(sums["loss"]) for sums in alone), rel=1e-6)
