"""A label, several labels or a number for a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
from scaletrain.tasks.kind import Encoded, Shown
from scaletrain.tasks.scores.classification import classification, classification_names
from scaletrain.tasks.scores.multi_label import multi_label, multi_label_names
from scaletrain.tasks.scores.regression import REGRESSION_NAMES, regression
from scaletrain.tasks.scores.result import Scores, merged
from scaletrain.tasks.task import Evaluated, Prediction, Sums


class Classify:
    """As Kind. `labels`: in the order of the head's outputs, none for a number; `weights`: of each label's examples."""

    head: Head = "sequence"

    def __init__(
        self,
        task: TaskSection,
        data: FinetuneData,
        tokenizer: Any,
        labels: Sequence[str],
        weights: Sequence[float] | None = None,
    ) -> None:
        self.task, self.data, self.tokenizer, self.labels = task, data, tokenizer, tuple(labels)
        self._numbers = {label: number for number, label in enumerate(self.labels)}
        self._weights = torch.tensor(weights) if weights is not None else None

    def config(self) -> dict[str, Any]:
        names = ["score"] if self.task.regression else list(self.labels)
        problem = "multi_label_classification" if self.task.multi_label else "single_label_classification"
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": "regression" if self.task.regression else problem,
            "pad_token_id": self.tokenizer.pad_token_id,
        }

    def extra(self, config: Any) -> nn.Module | None:
        del config
        return None

    def encode(self, examples: Sequence[Example], split: Split) -> Encoded:
        del split
        texts = [example.values["text"] for example in examples]
        pairs = [example.values["pair"] for example in examples]
        second = [pair or "" for pair in pairs] if any(pairs) else None
        encoded = self.tokenizer(texts, second, truncation=False)
        longest = self.data.max_length
        long = [len(ids) > longest for ids in encoded["input_ids"]]
        if any(long) and self.data.too_long == "truncate":
            encoded = self.tokenizer(texts, second, truncation=True, max_length=longest)
        keeps = [not (is_long and self.data.too_long == "skip") for is_long in long]
        rows = [
            {
                "input_ids": ids,
                "token_type_ids": encoded["token_type_ids"][number] if "token_type_ids" in encoded else None,
                "label": self._target(examples[number].values["label"]),
                "place": examples[number].place,
            }
            for number, ids in enumerate(encoded["input_ids"])
            if keeps[number]
        ]
        done = "left out" if self.data.too_long == "skip" else "cut there"
        notes = [f"{sum(long):,} texts longer than {longest} tokens are {done}"] if any(long) else []
        return Encoded(rows, notes)

    def _target(self, label: Any) -> Any:
        if self.task.regression:
            return float(label)
        if self.task.multi_label:
            return [float(name in label) for name in self.labels]
        return self._numbers[label]

    def collate(self, rows: Sequence[Row | None]) -> Batch:
        pad = self.tokenizer.pad_token_id
        ids = [row["input_ids"] if row is not None else [pad] for row in rows]
        batch = {
            "input_ids": padded(ids, pad),
            "attention_mask": padded([[1] * len(line) for line in ids], 0),
            "is_row": torch.tensor([row is not None for row in rows]),
        }
        if any(row is not None and row["token_type_ids"] is not None for row in rows):
            types = [(row["token_type_ids"] if row is not None else None) or [0] for row in rows]
            batch["token_type_ids"] = padded(types, 0)
        if self.task.regression or self.task.multi_label:
            nothing: Any = 0.0 if self.task.regression else [0.0] * len(self.labels)
            batch["target"] = torch.tensor([row["label"] if row is not None else nothing for row in rows])
        else:
            batch["target"] = torch.tensor([row["label"] if row is not None else IGNORED for row in rows])
        return batch

    def weight(self, batch: Batch) -> int:
        return int(batch["is_row"].sum())

    def tokens(self, batch: Batch) -> int:
        return int((batch["attention_mask"].sum(1) * batch["is_row"]).sum())

    def loss_sums(self, model: nn.Module, batch: Batch) -> Sums:
        return self._sums(model(_logits, batch), batch)

    def _sums(self, logits_BC: Tensor, batch: Batch) -> Sums:
        target, is_row = batch["target"], batch["is_row"]
        if self.task.regression:
            loss = (F.mse_loss(logits_BC.squeeze(1), target, reduction="none") * is_row).sum()
        elif self.task.multi_label:
            loss = (F.binary_cross_entropy_with_logits(logits_BC, target, reduction="none").mean(1) * is_row).sum()
        else:
            each_B = F.cross_entropy(
                logits_BC, target, ignore_index=IGNORED, label_smoothing=self.task.label_smoothing, reduction="none"
            )
            if self._weights is not None:
                each_B = each_B * self._weights.to(each_B.device)[target.clamp_min(0)]
            loss = each_B.sum()
        return {"loss": loss, "items": is_row.sum()}

    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluated:
        logits_BC = model(_logits, batch)
        said = [
            {"row": row, **self._said(outputs_C), **self._right(target)}
            for row, outputs_C, target in zip(
                batch["row"].tolist(), logits_BC.cpu(), batch["target"].tolist(), strict=True
            )
            if row >= 0
        ]
        return Evaluated(self._sums(logits_BC, batch), said)

    def _said(self, outputs_C: Tensor) -> Prediction:
        if self.task.regression:
            return {"predicted": outputs_C.item()}
        if self.task.multi_label:
            labels = [label for label, output in zip(self.labels, outputs_C.tolist(), strict=True) if output >= 0]
            return {"predicted": labels, "scores": outputs_C.sigmoid().tolist(), "logits": outputs_C.tolist()}
        best = int(outputs_C.argmax())
        score = outputs_C.softmax(0)[best].item()
        return {"predicted": self.labels[best], "score": score, "logits": outputs_C.tolist()}

    def _right(self, target: Any) -> Prediction:
        if self.task.regression:
            return {"label": target}
        if self.task.multi_label:
            return {"label": [label for label, has in zip(self.labels, target, strict=True) if has]}
        return {"label": self.labels[target]}

    @property
    def metric_names(self) -> Sequence[str]:
        if self.task.regression:
            return ("loss", *REGRESSION_NAMES)
        return ("loss", *(multi_label_names if self.task.multi_label else classification_names)(self.labels))

    def metrics(self, sums: Mapping[str, float], predictions: Sequence[Prediction]) -> Scores:
        return merged(Scores({"loss": sums["loss"] / max(sums["items"], 1)}), self._scores(predictions))

    def _scores(self, predictions: Sequence[Prediction]) -> Scores:
        right = [one["label"] for one in predictions]
        if self.task.regression:
            return regression(right, [one["predicted"] for one in predictions])
        logits_NC = np.array([one["logits"] for one in predictions])
        if self.task.multi_label:
            return multi_label(
                np.array([[name in has for name in self.labels] for has in right]), logits_NC, self.labels
            )
        return classification([self._numbers[label] for label in right], logits_NC, self.labels)

    def describe(self) -> list[str]:
        if self.task.regression:
            return ["task    a number for a text"]
        several = "any of" if self.task.multi_label else "one of"
        return [f"task    {several} {len(self.labels)} labels for a text: {', '.join(self.labels[:8])}"]

    def show(self, row: Row) -> Shown:
        label = row["label"]
        if self.task.multi_label:
            said = ", ".join(name for name, has in zip(self.labels, label, strict=True) if has) or "no label"
        else:
            said = f"{label:g}" if self.task.regression else self.labels[label]
        return Shown([(token, False) for token in token_texts(self.tokenizer, row["input_ids"])], said)

    def record(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}


def _logits(network: Network, batch: Mapping[str, Tensor]) -> Tensor:
    """(B, C), float32."""
    types = {"token_type_ids": batch["token_type_ids"]} if "token_type_ids" in batch else {}
    out = network.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **types)
    logits: Tensor = out.logits.float()
    return logits
