"""The examples of a fine-tuning recipe: read, checked, held out and encoded by their kind."""

from collections.abc import Sequence
from typing import Any

import xxhash

from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.data.encoded_rows import EncodedRows
from scaletrain.data.example_data import ExampleData
from scaletrain.data.examples.example import Example
from scaletrain.data.examples.hold_out import hold_out
from scaletrain.data.examples.labels import check_labels, class_counts, label_set
from scaletrain.data.examples.read import read_examples
from scaletrain.data.shards import Split
from scaletrain.data.text_tokenizer import saver
from scaletrain.errors import DataError
from scaletrain.tasks.classify import Classify
from scaletrain.tasks.kind import Encoded, Kind
from scaletrain.tasks.sft import Sft
from scaletrain.tasks.span_qa import SpanQa
from scaletrain.tasks.tag import Tag


def open_examples(recipe: FinetuneRecipe, tokenizer: Any) -> tuple[Kind, ExampleData]:
    """The kind of task with its labels, and the rows of both splits. DataError for examples at fault."""
    train, validation, notes = _splits(recipe)
    labels = _labels(recipe, train, validation)
    kind = make_kind(recipe, tokenizer, labels, _class_weights(recipe, train, labels))
    splits: dict[Split, Sequence[Example]] = {"train": train, "validation": validation}
    # transformers' tokenizers fail on an empty list.
    encoded = {split: kind.encode(found, split) if found else Encoded([], []) for split, found in splits.items()}
    for split, part in encoded.items():
        notes += [f"{split}: {note}" for note in part.notes]
    if not encoded["train"].rows:
        raise DataError(
            f"data.train={recipe.data.train} gives no row to train on: see data.max_length and data.columns"
        )
    rows = {split: EncodedRows(part.rows, kind.collate) for split, part in encoded.items()}
    held_out = rows["validation"] if encoded["validation"].rows else None
    name = recipe.data.train if isinstance(recipe.data.train, str) else ", ".join(recipe.data.train)
    told = f"{len(train):,} examples to train on, {len(validation):,} to validate"
    data = ExampleData(
        name=name,
        training=rows["train"],
        validation=held_out,
        seed=recipe.seed,
        shuffle=recipe.data.shuffle,
        prints={"examples": _print_of(train, recipe), "tokenizer": _tokenizer_print(tokenizer)},
        lines=[
            f"data    {name}: {told}; {len(rows['train']):,} rows, {rows['train'].tokens:,} tokens",
            *(f"note    {note}" for note in notes),
        ],
        save_tokenizer=saver(tokenizer),
    )
    return kind, data


def _splits(recipe: FinetuneRecipe) -> tuple[Sequence[Example], Sequence[Example], list[str]]:
    """Examples to train on and to evaluate, and what was wrong with others."""
    data, task = recipe.data, recipe.task
    read = read_examples(data.train, data, task, "data.train")
    notes = read.check(data.on_fault)
    train: Sequence[Example] = read.kept
    validation: Sequence[Example] = ()
    if data.validation is not None:
        held = read_examples(data.validation, data.model_copy(update={"max_examples": None}), task, "data.validation")
        notes += held.check(data.on_fault)
        validation = held.kept
    elif data.validation_share is not None:
        train, validation = hold_out(train, data.validation_share, recipe.seed)
    return train, validation, notes


def make_kind(
    recipe: FinetuneRecipe, tokenizer: Any, labels: Sequence[str], weights: Sequence[float] | None = None
) -> Kind:
    """The recipe's kind of task; `weights`: of the examples of each label."""
    task, data = recipe.task, recipe.data
    if task.kind == "sft":
        return Sft(task, data, tokenizer)
    if task.kind == "span_qa":
        return SpanQa(task, data, tokenizer)
    if task.kind == "tag":
        return Tag(task, data, tokenizer, labels)
    return Classify(task, data, tokenizer, labels, weights)


def _labels(recipe: FinetuneRecipe, train: Sequence[Example], validation: Sequence[Example]) -> tuple[str, ...]:
    """Those of the training examples. DataError when validation has others."""
    if recipe.task.kind in ("sft", "span_qa") or recipe.task.regression:
        return ()
    labels = label_set(train, recipe.task)
    check_labels(labels, validation)
    return labels


def _class_weights(recipe: FinetuneRecipe, train: Sequence[Example], labels: Sequence[str]) -> list[float] | None:
    wanted = recipe.task.class_weights
    if wanted == "none":
        return None
    if wanted == "balanced":
        counts = class_counts(train, labels)
        return [len(train) / (len(labels) * counts[label]) if counts[label] else 0.0 for label in labels]
    if unknown := sorted(set(wanted) - set(labels)):
        raise DataError(f"task.class_weights names {unknown[0]}, which is no label: the labels are {', '.join(labels)}")
    return [wanted.get(label, 1.0) for label in labels]


def _print_of(examples: Sequence[Example], recipe: FinetuneRecipe) -> str:
    """Tells the examples and what they become apart from others."""
    digest = xxhash.xxh3_128()
    for example in examples:
        digest.update(repr(sorted(example.values.items())).encode())
    kept = recipe.data.model_dump(mode="json", exclude={"train", "validation", "prefetch_steps", "shuffle"})
    digest.update(repr(sorted(kept.items())).encode())
    return digest.hexdigest()


def _tokenizer_print(tokenizer: Any) -> str:
    text = tokenizer.backend_tokenizer.to_str() + repr((tokenizer.pad_token, getattr(tokenizer, "chat_template", None)))
    return xxhash.xxh3_128_hexdigest(text.encode())
