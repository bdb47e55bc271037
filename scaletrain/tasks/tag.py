"""A label for each word of a sentence: one softmax a word, or a linear-chain CRF over the sentence.

B rows, T tokens, W words of a row, C labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaletrain.config.finetune_schema import FinetuneData, TaskSection
from scaletrain.data.encoded_rows import Row, padded
from scaletrain.data.examples.example import Example
from scaletrain.data.rows import IGNORED, Batch
from scaletrain.data.shards import Split
from scaletrain.data.text_tokenizer import token_texts
from scaletrain.model.network import Head, Network
from scaletrain.tasks.crf import CRF, forbidden_in_bio
from scaletrain.tasks.kind import Encoded, Shown
from scaletrain.tasks.scores.entities import entities, entity_names, word_tag_names, word_tags
from scaletrain.tasks.scores.result import Scores, merged
from scaletrain.tasks.task import Evaluated, Prediction, Sums
from scaletrain.tasks.windows import owners


class Tag:
    """As Kind. A sentence longer than data.max_length becomes several rows, which share data.stride tokens; in an
    evaluation each word counts in the row in which it is furthest from an end."""

    head: Head = "token"

    def __init__(self, task: TaskSection, data: FinetuneData, tokenizer: Any, labels: Sequence[str]) -> None:
        self.task, self.data, self.tokenizer, self.labels = task, data, tokenizer, tuple(labels)
        self._numbers = {label: number for number, label in enumerate(self.labels)}
        self.is_bio = is_bio(self.labels) if data.tag_scheme == "auto" else data.tag_scheme == "bio"
        self._forbidden = forbidden_in_bio(self.labels) if self.is_bio else None
        self._examples: Sequence[Example] = ()  # of the validation split

    def config(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": self._numbers,
            "pad_token_id": self.tokenizer.pad_token_id,
        }

    def extra(self, config: Any) -> nn.Module | None:
        del config
        return CRF(len(self.labels)) if self.task.crf else None

    def encode(self, examples: Sequence[Example], split: Split) -> Encoded:
        if split == "validation":
            self._examples = examples
        stride = self.data.stride if self.data.stride is not None else self.data.max_length // 4
        encoded = self.tokenizer(
            [list(example.values["tokens"]) for example in examples],
            is_split_into_words=True, truncation=True, max_length=self.data.max_length,
            return_overflowing_tokens=True, stride=stride,
        )  # fmt: skip
        of_example = encoded["overflow_to_sample_mapping"]
        rows: list[Row] = []
        for number, first, last in _runs(of_example):
            tags = [self._numbers[tag] for tag in examples[number].values["tags"]]
            windows = _windows([(encoded["input_ids"][n], encoded.word_ids(n)) for n in range(first, last)], stride)
            rows += self._rows(number, windows, tags)
        several = len(rows) - len(examples)
        notes = [f"{several:,} rows more than sentences, which are longer than data.max_length"] if several > 0 else []
        lost = sum(len(e.values["tags"]) for e in examples) - sum(sum(row["is_own"]) for row in rows)
        if lost:
            notes.append(f"{lost:,} words give no token and bear no label")
        return Encoded(rows, notes)

    def _rows(self, number: int, windows: Sequence["_Window"], tags: Sequence[int]) -> Iterator[Row]:
        # A word that gives no token has no place among those that do.
        place_of = {word: at for at, word in enumerate(sorted({word for w in windows for word, _ in w.firsts}))}
        spans = [(place_of[window.firsts[0][0]], place_of[window.firsts[-1][0]] + 1) for window in windows]
        own = owners(spans, len(place_of))
        for place, window in enumerate(windows):
            yield {
                "input_ids": window.ids,
                "example": number,
                "words": [word for word, _ in window.firsts],
                "places": [at for _, at in window.firsts],
                "tags": [tags[word] for word, _ in window.firsts],
                "is_own": [bool(own[place_of[word]] == place) for word, _ in window.firsts],
                "subwords": [IGNORED if word is None else tags[word] for word in window.word_ids],
            }

    def collate(self, rows: Sequence[Row | None]) -> Batch:
        pad = self.tokenizer.pad_token_id
        ids = [row["input_ids"] if row is not None else [pad] for row in rows]
        empty: list[int] = []
        found = [
            row if row is not None else dict.fromkeys(("places", "tags", "is_own", "words"), empty) for row in rows
        ]
        batch = {
            "input_ids": padded(ids, pad),
            "attention_mask": padded([[1] * len(line) for line in ids], 0),
            "places": padded([row["places"] for row in found], 0, multiple=1),
            "tags": padded([row["tags"] for row in found], IGNORED, multiple=1),
            "is_own": padded([[int(own) for own in row["is_own"]] for row in found], 0, multiple=1).bool(),
            "words": padded([row["words"] for row in found], -1, multiple=1),
            "example": torch.tensor([row["example"] if row is not None else -1 for row in rows]),
        }
        if self.task.word_label == "all":
            batch["subwords"] = padded([row["subwords"] if row is not None else [] for row in rows], IGNORED)
            width = batch["input_ids"].shape[1]
            batch["subwords"] = F.pad(batch["subwords"], (0, width - batch["subwords"].shape[1]), value=IGNORED)
        return batch

    def weight(self, batch: Batch) -> int:
        bearing = batch["subwords"] if "subwords" in batch else batch["tags"]
        return int((bearing != IGNORED).sum())

    def tokens(self, batch: Batch) -> int:
        return int((batch["attention_mask"].sum(1) * (batch["example"] >= 0)).sum())

    def loss_sums(self, model: nn.Module, batch: Batch) -> Sums:
        sums: Sums = model(self._outputs, batch)[0]
        return sums

    def _outputs(self, network: Network, batch: Mapping[str, Tensor]) -> tuple[Sums, list[list[int]]]:
        """Loss sums, and in evaluation the likeliest labels of each row's words."""
        out = network.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits_BTC, tags_BW = out.logits.float(), batch["tags"]
        places_BW1 = batch["places"].unsqueeze(2).expand(-1, -1, logits_BTC.shape[2])
        words_BWC, is_word_BW = logits_BTC.gather(1, places_BW1), tags_BW != IGNORED
        if isinstance(network.extra, CRF):
            loss = network.extra(words_BWC, is_word_BW, tags_BW.clamp_min(0)).sum()
            said = [] if network.training else network.extra(words_BWC, is_word_BW, None, self._forbidden)
            return {"loss": loss, "items": is_word_BW.sum()}, said
        if "subwords" in batch:
            logits, labels = logits_BTC.flatten(0, 1), batch["subwords"].flatten()
        else:
            logits, labels = words_BWC.flatten(0, 1), tags_BW.flatten()
        smoothing = self.task.label_smoothing
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
        said = [] if network.training else words_BWC.argmax(2).tolist()
        return {"loss": loss, "items": (labels != IGNORED).sum()}, said

    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluated:
        sums, said = model(self._outputs, batch)
        rows, examples = batch["row"].tolist(), batch["example"].tolist()
        own, words = batch["is_own"].tolist(), batch["words"].tolist()
        predictions = [
            {
                "row": row,
                "example": examples[at],
                "tags": {words[at][w]: self.labels[said[at][w]] for w, mine in enumerate(own[at]) if mine},
            }
            for at, row in enumerate(rows)
            if row >= 0
        ]
        return Evaluated(sums, predictions)

    @property
    def metric_names(self) -> Sequence[str]:
        return ("loss", *(entity_names if self.is_bio else word_tag_names)(self.labels))

    def metrics(self, sums: Mapping[str, float], predictions: Sequence[Prediction]) -> Scores:
        """By sentence, over the words that have a prediction."""
        said: dict[int, dict[int, str]] = {}
        for prediction in predictions:
            said.setdefault(prediction["example"], {}).update(prediction["tags"])
        right, found = [], []
        for number, by_word in sorted(said.items()):
            tags = self._examples[number].values["tags"]
            right.append([tags[word] for word in sorted(by_word)])
            found.append([by_word[word] for word in sorted(by_word)])
        scores = entities(right, found) if self.is_bio else word_tags(right, found, self.labels)
        return merged(Scores({"loss": sums["loss"] / max(sums["items"], 1)}), scores)

    def describe(self) -> list[str]:
        head = "a linear-chain CRF" if self.task.crf else "a softmax a word"
        return [f"task    {len(self.labels)} labels a word by {head}, {'BIO' if self.is_bio else 'plain'} tags"]

    def show(self, row: Row) -> Shown:
        tags = dict(zip(row["places"], (self.labels[tag] for tag in row["tags"]), strict=True))
        texts = token_texts(self.tokenizer, row["input_ids"])
        return Shown([(text, at in tags) for at, text in enumerate(texts)], " ".join(tags.values()))

    def record(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}


class _Window(NamedTuple):
    """Token ids of a row, the word of each, and (word, place) of the first token of each word that begins in it."""

    ids: list[int]
    word_ids: list[int | None]
    firsts: list[tuple[int, int]]


def _windows(encoded: Sequence[tuple[list[int], list[int | None]]], stride: int) -> list[_Window]:
    """The windows over a sentence in which a word begins. One may begin inside of a word: that piece bears no label."""
    found: list[_Window] = []
    before: int | None = None  # the word of the token before this window, of which it is a piece if it is of that word
    for ids, word_ids in encoded:
        firsts, last = [], before
        for at, word in enumerate(word_ids):
            if word is None:
                continue
            if word != last:
                firsts.append((word, at))
            last = word
        if firsts:
            found.append(_Window(ids, word_ids, firsts))
        words = [word for word in word_ids if word is not None]
        before = words[-stride - 1] if len(words) > stride else None
    return found


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Each number with the first and one after the last of its places, which follow one another."""
    first = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[first]:
            yield numbers[first], first, at
            first = at


def is_bio(labels: Sequence[str]) -> bool:
    """Whether all labels are O, B-X or I-X, as tags of entities are."""
    return all(label == "O" or label[:2] in ("B-", "I-") for label in labels) and len(set(labels) - {"O"}) > 0
