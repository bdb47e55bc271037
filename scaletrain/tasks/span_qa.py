"""The place of an answer in a text: where it begins and where it ends, or that there is none (Rajpurkar et al. 2016,
2018). B rows, T tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaletrain.config.finetune_schema import FinetuneData, TaskSection
from scaletrain.data.encoded_rows import Row, padded
from scaletrain.data.examples.example import Example
from scaletrain.data.rows import IGNORED, Batch
from scaletrain.data.shards import Split
from scaletrain.data.text_tokenizer import token_texts
from scaletrain.errors import DataError
from scaletrain.model.adapters import without_wrapper
from scaletrain.model.network import Head, Network
from scaletrain.tasks.kind import Encoded, Shown
from scaletrain.tasks.scores.result import Scores, merged
from scaletrain.tasks.scores.squad import SQUAD_NAMES, squad
from scaletrain.tasks.task import Evaluated, Prediction, Sums

_NOWHERE = 0  # the token that stands for "no answer here": the first


class SpanQa:
    """As Kind. A context that is too long for a row becomes several, which share data.stride tokens."""

    head: Head = "span"

    def __init__(self, task: TaskSection, data: FinetuneData, tokenizer: Any) -> None:
        self.task, self.data, self.tokenizer = task, data, tokenizer
        self._examples: Sequence[Example] = ()  # of the validation split
        self._has_unanswerable = False

    def config(self) -> dict[str, Any]:
        return {"pad_token_id": self.tokenizer.pad_token_id}

    def extra(self, config: Any) -> nn.Module | None:
        del config
        return None

    def encode(self, examples: Sequence[Example], split: Split) -> Encoded:
        if split == "validation":
            self._examples = examples
            self._has_unanswerable = any(not example.values["answers"] for example in examples)
        stride = self.data.stride if self.data.stride is not None else self.data.max_length // 4
        questions = [example.values["question"].strip() for example in examples]
        self._check_questions(examples, questions, stride)
        encoded = self.tokenizer(
            questions, [example.values["context"] for example in examples],
            truncation="only_second", max_length=self.data.max_length, stride=stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        rows: list[Row] = []
        for number, of_example in enumerate(encoded["overflow_to_sample_mapping"]):
            parts = encoded.sequence_ids(number)
            offsets = [
                place if part == 1 else None
                for place, part in zip(encoded["offset_mapping"][number], parts, strict=True)
            ]
            answers = examples[of_example].values["answers"]
            start, end = _places(offsets, *answers[0]) if answers else (_NOWHERE, _NOWHERE)
            types = encoded["token_type_ids"][number] if "token_type_ids" in encoded else None
            rows.append(
                {
                    "input_ids": encoded["input_ids"][number],
                    "token_type_ids": types,
                    "offsets": offsets,
                    "start": start,
                    "end": end,
                    "example": of_example,
                }
            )
        if split == "validation":
            self._rows = rows
        several = len(rows) - len(examples)
        notes = [f"{several:,} rows more than questions, whose contexts are longer than a row"] if several else []
        return Encoded(rows, notes)

    def _check_questions(self, examples: Sequence[Example], questions: Sequence[str], stride: int) -> None:
        """DataError for a question that leaves a window no room to move on."""
        lengths = [len(ids) for ids in self.tokenizer(list(questions), add_special_tokens=False)["input_ids"]]
        room = self.data.max_length - stride - 8
        if (longest := max(lengths, default=0)) > room:
            where = examples[lengths.index(longest)].place
            raise DataError(
                f"{where}: a question of {longest:,} tokens leaves no room for its context in data.max_length="
                f"{self.data.max_length} with data.stride={stride}: raise the one, or lower the other"
            )

    def collate(self, rows: Sequence[Row | None]) -> Batch:
        pad = self.tokenizer.pad_token_id
        ids = [row["input_ids"] if row is not None else [pad] for row in rows]
        is_context = [[int(at is not None) for at in row["offsets"]] if row is not None else [0] for row in rows]
        batch = {
            "input_ids": padded(ids, pad),
            "attention_mask": padded([[1] * len(line) for line in ids], 0),
            "is_context": padded(is_context, 0).bool(),
            "start": torch.tensor([row["start"] if row is not None else IGNORED for row in rows]),
            "end": torch.tensor([row["end"] if row is not None else IGNORED for row in rows]),
        }
        if any(row is not None and row["token_type_ids"] is not None for row in rows):
            types = [(row["token_type_ids"] if row is not None else None) or [0] for row in rows]
            batch["token_type_ids"] = padded(types, 0)
        return batch

    def weight(self, batch: Batch) -> int:
        return int((batch["start"] != IGNORED).sum())

    def tokens(self, batch: Batch) -> int:
        return int((batch["attention_mask"].sum(1) * (batch["start"] != IGNORED)).sum())

    def loss_sums(self, model: nn.Module, batch: Batch) -> Sums:
        return _sums(model(_logits, batch), batch)

    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluated:
        logits_BT2 = model(_logits, batch)
        start_BT, end_BT = logits_BT2.unbind(2)
        nothing_B = start_BT[:, _NOWHERE] + end_BT[:, _NOWHERE]
        spans = best_spans(start_BT, end_BT, batch["is_context"], self.task.max_answer_tokens)
        predictions = []
        for at, row in enumerate(batch["row"].tolist()):
            if row < 0:
                continue
            score, first, last = (values[at].item() for values in spans)
            offsets, example = self._rows[row]["offsets"], self._rows[row]["example"]
            found = offsets[int(first)][0], offsets[int(last)][1]
            predictions.append(
                {"row": row, "example": example, "score": score, "nothing": nothing_B[at].item(), "span": found}
            )
        return Evaluated(_sums(logits_BT2, batch), predictions)

    @property
    def metric_names(self) -> Sequence[str]:
        return ("loss", *SQUAD_NAMES)

    def answers(self, predictions: Sequence[Prediction]) -> dict[int, str]:
        """Example -> its answer: of all rows' spans the best, or nothing where that scores too little more."""
        best: dict[int, Prediction] = {}
        nothing: dict[int, float] = {}
        for one in predictions:
            number = one["example"]
            if number not in best or one["score"] > best[number]["score"]:
                best[number] = one
            nothing[number] = min(nothing.get(number, one["nothing"]), one["nothing"])
        found = {}
        for number, one in best.items():
            first, last = one["span"]
            is_answered = not self._has_unanswerable or one["score"] - nothing[number] > self.task.null_threshold
            text = self._examples[number].values["context"][first:last]
            found[number] = text.strip() if is_answered else ""  # some tokenizers count a space to the word after it
        return found

    def metrics(self, sums: Mapping[str, float], predictions: Sequence[Prediction]) -> Scores:
        answers = self.answers(predictions)
        references = [[text for text, _ in self._examples[number].values["answers"]] for number in sorted(answers)]
        found = squad([answers[number] for number in sorted(answers)], references)
        return merged(Scores({"loss": sums["loss"] / max(sums["items"], 1)}), found)

    def describe(self) -> list[str]:
        return [f"task    the answer's place in a text, at most {self.task.max_answer_tokens} tokens"]

    def show(self, row: Row) -> Shown:
        start, end = row["start"], row["end"]
        texts = token_texts(self.tokenizer, row["input_ids"])
        answer = "".join(texts[start : end + 1]).strip() if end else "no answer in this row"
        return Shown([(text, bool(end) and start <= at <= end) for at, text in enumerate(texts)], answer)

    def record(self) -> dict[str, Any]:
        return {}


def _logits(network: Network, batch: Mapping[str, Tensor]) -> Tensor:
    """(B, T, 2), float32: where an answer begins and where it ends."""
    types = {"token_type_ids": batch["token_type_ids"]} if "token_type_ids" in batch else {}
    out = without_wrapper(network.model)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **types)
    logits_BT2 = torch.stack([out.start_logits, out.end_logits], dim=2).float()
    is_padding_BT = batch["attention_mask"] == 0
    return logits_BT2.masked_fill(is_padding_BT.unsqueeze(2), torch.finfo(torch.float32).min)


def _sums(logits_BT2: Tensor, batch: Batch) -> Sums:
    losses = [
        F.cross_entropy(logits_BT2[:, :, end], batch[name], ignore_index=IGNORED, reduction="sum")
        for end, name in enumerate(("start", "end"))
    ]
    return {"loss": (losses[0] + losses[1]) / 2, "items": (batch["start"] != IGNORED).sum()}


def best_spans(start_BT: Tensor, end_BT: Tensor, is_context_BT: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score, first and last token of each row's best span of at most `longest` tokens inside the context."""
    lowest = torch.finfo(torch.float32).min / 4
    start_BT, end_BT = (values.masked_fill(~is_context_BT, lowest) for values in (start_BT, end_BT))
    T = start_BT.shape[1]
    places = torch.arange(T, device=start_BT.device)
    is_span_TT = (places[None, :] >= places[:, None]) & (places[None, :] < places[:, None] + longest)
    scores_BTT = (start_BT[:, :, None] + end_BT[:, None, :]).masked_fill(~is_span_TT, 2 * lowest)
    score_B, place_B = scores_BTT.flatten(1).max(1)
    return score_B, place_B // T, place_B % T


def _places(offsets: Sequence[tuple[int, int] | None], text: str, start: int) -> tuple[int, int]:
    """First and last token of the answer, or nowhere when it is not whole inside of this window."""
    start += len(text) - len(text.lstrip())
    end = start + len(text.strip())
    inside = [at for at, place in enumerate(offsets) if place is not None and place[0] < end and place[1] > start]
    if not inside:
        return _NOWHERE, _NOWHERE
    first, last = offsets[inside[0]], offsets[inside[-1]]
    assert first is not None and last is not None
    whole = first[0] <= start and last[1] >= end
    return (inside[0], inside[-1]) if whole else (_NOWHERE, _NOWHERE)
