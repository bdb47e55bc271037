"""Answers to prompts: messages written by the tokenizer's chat template, the loss on the assistant's words only.

B rows, T tokens; with data.packing a row holds several examples, and positions begin anew in each.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaletrain.config.finetune_schema import FinetuneData, TaskSection
from scaletrain.data.conversation import Conversation, read_conversation
from scaletrain.data.encoded_rows import Row, padded
from scaletrain.data.examples.example import Example
from scaletrain.data.packing import pack_documents
from scaletrain.data.rows import IGNORED, Batch
from scaletrain.data.shards import Split
from scaletrain.data.text_tokenizer import need_chat_template, token_texts
from scaletrain.model.adapters import virtual_tokens
from scaletrain.model.network import Head, Network
from scaletrain.tasks.generation import write_answers
from scaletrain.tasks.kind import Encoded, Shown
from scaletrain.tasks.scores.result import Scores, merged
from scaletrain.tasks.scores.text import check_text_metrics, text_names, text_scores
from scaletrain.tasks.task import Evaluated, Prediction, Sums


class Sft:
    """As Kind."""

    head: Head = "causal"

    def __init__(self, task: TaskSection, data: FinetuneData, tokenizer: Any) -> None:
        need_chat_template(tokenizer)
        check_text_metrics(task.generate.metrics, task.generate.tokenizer)
        self.task, self.data, self.tokenizer = task, data, tokenizer
        self._conversations: list[Conversation] = []  # of the validation split, where answers are written

    def config(self) -> dict[str, Any]:
        return {}

    def extra(self, config: Any) -> nn.Module | None:
        del config
        return None

    def encode(self, examples: Sequence[Example], split: Split) -> Encoded:
        longest = self.data.max_length
        writes = split == "validation" and bool(self.task.generate.metrics)
        read = [
            read_conversation(example.values["messages"], self.tokenizer, example.place, with_prompt=writes)
            for example in examples
        ]
        long = sum(len(one.ids) > longest for one in read)
        if self.data.too_long == "skip":
            read = [one for one in read if len(one.ids) <= longest]
        read = [one.cut(longest) for one in read]
        silent = sum(not one.answers[1:].any() for one in read)
        read = [one for one in read if one.answers[1:].any()]
        notes = []
        if long:
            done = "left out" if self.data.too_long == "skip" else "cut there"
            notes.append(f"{long:,} examples longer than {longest} tokens are {done}")
        if silent:
            notes.append(f"{silent:,} examples are left out: no answer is left within {longest} tokens")
        if writes:
            self._conversations = read
        if writes or not self.data.packing:
            return Encoded([_row([one]) for one in read], notes)
        rows = _packed(read, longest)
        if read:
            notes.append(f"{len(read) / len(rows):.1f} examples a row")
        return Encoded(rows, notes)

    def collate(self, rows: Sequence[Row | None]) -> Batch:
        """`labels`: the token itself where it is an answer's, so that a model shifts them; `positions`: in each
        example from 0 on; padding is an example of its own."""
        pad = self.tokenizer.pad_token_id
        ids = padded([row["input_ids"] if row is not None else [] for row in rows], pad)
        labels = padded([row["labels"] if row is not None else [] for row in rows], IGNORED)
        counts = torch.tensor([len(row["input_ids"]) if row is not None else 0 for row in rows])
        positions = torch.arange(ids.shape[1]).expand_as(ids) - counts[:, None]
        for line, row in zip(positions, rows, strict=True):
            if row is not None:
                line[: len(row["positions"])] = torch.as_tensor(row["positions"])
        return {"input_ids": ids, "labels": labels, "positions": positions, "counts": counts}

    def weight(self, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def tokens(self, batch: Batch) -> int:
        return int(batch["counts"].sum())

    def loss_sums(self, model: nn.Module, batch: Batch) -> Sums:
        sums: Sums = model(self._losses, batch)
        return sums

    def _losses(self, network: Network, batch: Mapping[str, Tensor]) -> Sums:
        """The output layer is computed at the places that predict an answer's token alone."""
        targets_BT = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        is_target_BT = targets_BT != IGNORED
        kept = is_target_BT.any(0).nonzero().flatten()
        if not len(kept):
            kept = torch.zeros(1, dtype=torch.int64, device=kept.device)  # a padding row: a pass as of any other
        logits_BKV = network.model(
            input_ids=batch["input_ids"],
            position_ids=batch["positions"],
            use_cache=False,
            logits_to_keep=kept + virtual_tokens(network.model),
        ).logits
        logits_NV, targets_N = logits_BKV[is_target_BT[:, kept]], targets_BT[is_target_BT]
        loss = logits_BKV.sum() * 0.0 if not len(targets_N) else F.cross_entropy(
            logits_NV.float(), targets_N, label_smoothing=self.task.label_smoothing, reduction="sum"
        )  # fmt: skip
        return {"loss": loss, "items": is_target_BT.sum()}

    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluated:
        sums: Sums = model(self._losses, batch)
        if not self._conversations:
            return Evaluated(sums)
        wanted = self.task.generate
        rows = batch["row"].tolist()
        prompts = [self._conversations[row].prompt if row >= 0 else [] for row in rows]
        said = write_answers(model, self.tokenizer, prompts, wanted, batch["input_ids"].device)
        predictions = [
            {"row": row, "reference": self._conversations[row].answer, "predicted": text}
            for row, text in zip(rows, said, strict=True)
            if row >= 0
        ]
        return Evaluated(sums, predictions)

    @property
    def metric_names(self) -> Sequence[str]:
        return ("loss", "perplexity", *text_names(self.task.generate.metrics))

    def metrics(self, sums: Mapping[str, float], predictions: Sequence[Prediction]) -> Scores:
        loss = sums["loss"] / max(sums["items"], 1)
        found = Scores({"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf})
        said, wanted = [one["predicted"] for one in predictions], self.task.generate
        return merged(
            found, text_scores(said, [[one["reference"]] for one in predictions], wanted.metrics, wanted.tokenizer)
        )

    def describe(self) -> list[str]:
        told = f", {' and '.join(self.task.generate.metrics)} of written answers" if self.task.generate.metrics else ""
        return [f"task    answers to prompts{', packed' if self.data.packing else ''}{told}"]

    def show(self, row: Row) -> Shown:
        texts, is_learned = token_texts(self.tokenizer, row["input_ids"]), row["labels"] != IGNORED
        count = int(is_learned.sum())
        return Shown(list(zip(texts, is_learned.tolist(), strict=True)), f"{count} of {len(texts)} tokens")

    def record(self) -> dict[str, Any]:
        return {}


def _row(parts: Sequence[Conversation]) -> Row:
    ids = np.concatenate([part.ids for part in parts])
    # The first token of an example is predicted from nothing: it bears no loss.
    answers = np.concatenate([np.concatenate([[False], part.answers[1:]]) for part in parts])
    return {
        "input_ids": ids,
        "labels": np.where(answers, ids, IGNORED),
        "positions": np.concatenate([np.arange(len(part.ids)) for part in parts]),
    }


def _packed(read: Sequence[Conversation], longest: int) -> list[Row]:
    """Best-fit decreasing, see data/packing.py: no example is longer than a row, so none is cut."""
    if not read:
        return []
    ends = np.cumsum([len(one.ids) for one in read], dtype=np.uint64)
    packing = pack_documents(ends, longest)
    numbers = np.searchsorted(ends, packing.starts, side="right")
    bounds = packing.rows.tolist()
    return [_row([read[n] for n in numbers[a:b]]) for a, b in pairwise(bounds)]
