"""`scaletrain evaluate`: perplexity of a language model on text, or a fine-tuned model's scores on labelled files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from scaletrain.commands.evaluate_task import evaluate_task, is_text, open_task, write_predictions
from scaletrain.commands.harness import run_harness
from scaletrain.commands.model_source import DTYPES, Loaded, find_source, is_hugging_face, load_model
from scaletrain.errors import ConfigError, DataError
from scaletrain.tasks.scores.result import shown

if TYPE_CHECKING:
    from scaletrain.data.rows import CutRows
    from scaletrain.data.shards import Split


def evaluate(
    model: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder or Hugging Face folder")],
    data: Annotated[
        list[Path] | None, typer.Option(help="A dataset folder, or text or labelled files (repeat the option)")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset folder: validation or train")] = "validation",
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens a sample; default: the model's, at most 1024")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a forward pass")] = 8,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Stop after so many samples")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Of a fine-tuned model: a file for what it said of each row")
    ] = None,
    lm_eval: Annotated[
        str | None, typer.Option("--lm-eval", metavar="TASKS", help="Tasks of EleutherAI's harness, with commas")
    ] = None,
    lm_eval_tasks: Annotated[
        Path | None, typer.Option("--lm-eval-tasks", help="Folder with task files of your own for --lm-eval")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a line")] = False,
) -> None:
    """Measure loss, perplexity and bits per byte; each token is predicted once, within its sample's context.

    Of a fine-tuned model (a run of launch/finetune.py, or its export): the scores of its task on labelled files.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype} is unknown: choose one of {', '.join(DTYPES)}")
    if lm_eval is not None:
        _show_harness(run_harness(model, lm_eval, lm_eval_tasks, batch_size, max_samples, dtype), as_json)
        return
    if not data:
        raise ConfigError("--data is not given: name a dataset folder or files, or use --lm-eval TASKS")
    if split not in ("validation", "train"):
        raise ConfigError(f"--split {split} is unknown: choose validation or train")
    if missing := [str(p) for p in data if not p.exists()]:
        raise DataError(f"--data {', '.join(missing)} does not exist: give a dataset folder or text files")
    source = None if is_hugging_face(model) else find_source(model)
    if (finetuned := open_task(model, source, dtype)) is not None and not is_text(finetuned, data):
        evaluation = evaluate_task(finetuned, data, batch_size, max_samples)
        if predictions is not None:
            write_predictions(predictions, evaluation)
        _show({**evaluation.scores.values, **(evaluation.scores.details if as_json else {})}, as_json)
        return
    if predictions is not None:
        raise ConfigError(f"--predictions {predictions} is for fine-tuned models and labelled files: remove it")
    if len(data) > 1 and (folder := next((path for path in data if path.is_dir()), None)):
        raise DataError(
            f"--data {folder} is given with {len(data) - 1} more: give one dataset folder, or only text files"
        )
    loaded = load_model(model, dtype, source)
    if context is not None and context > loaded.context:
        raise ConfigError(f"--context {context} is longer than the model's {loaded.context} positions: shorten it")
    length = context or min(loaded.context, 1024)
    if data[0].is_dir():
        rows, size = _dataset_rows(loaded, data[0], cast("Split", split), length)
    else:
        rows, size = _text_rows(loaded, data, length)
    found = _measure(loaded, rows, size / rows.targets, batch_size, max_samples)
    _show(found, as_json)


def _show(found: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(found) if as_json else shown(found))


def _show_harness(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, default=str))
        return
    for task, metrics in found.items():
        numbers = {name.removesuffix(",none"): v for name, v in metrics.items() if isinstance(v, float)}
        print(f"{task}  " + "  ".join(f"{name} {value:,.4f}" for name, value in numbers.items()))


def _dataset_rows(loaded: Loaded, path: Path, split: "Split", length: int) -> tuple["CutRows", int]:
    """The rows of a dataset folder's split, and the bytes of text that they stand for."""
    from scaletrain.data.rows import split_rows
    from scaletrain.data.shards import open_dataset

    dataset = open_dataset(path)
    if dataset.tokenizer.fingerprint != loaded.tokenizer.fingerprint:
        raise DataError(
            f"{path} was prepared with the tokenizer {dataset.tokenizer.name}, not with the model's: give text files, "
            "or prepare the text with the model's tokenizer"
        )
    if not dataset.shards(split):
        raise DataError(f"{path} has no {split} split: choose another --split")
    return split_rows(dataset, split, length), dataset.bytes(split)


def _text_rows(loaded: Loaded, paths: list[Path], length: int) -> tuple["CutRows", int]:
    """The rows of text files, one document each, and their bytes."""
    import numpy as np

    from scaletrain.data.reader import ArrayTokens
    from scaletrain.data.rows import CutRows
    from scaletrain.data.shards import DTYPES

    texts = []
    for path in paths:
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as UTF-8 text ({error}): convert it or leave it out") from error
    names = ", ".join(map(str, paths))
    if not any(texts):
        raise DataError(f"{names}: no text to evaluate: give files that hold some")
    # An end-of-text token before each document, so that its first token is predicted too and every byte is counted.
    eos = np.array([loaded.tokenizer.eos_id], dtype=DTYPES[loaded.tokenizer.dtype])
    tokens = np.concatenate([array for ids in loaded.tokenizer.encode_batch(texts) for array in (eos, ids)])
    shortest = min(length, len(tokens) - 1)  # a short text is not padded to the whole context
    return CutRows(ArrayTokens(tokens, names), shortest), sum(len(text.encode()) for text in texts)


def _measure(
    loaded: Loaded, rows: "CutRows", bytes_per_token: float, batch_size: int, max_samples: int | None
) -> dict[str, float]:
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    from scaletrain.data.rows import IGNORED
    from scaletrain.tasks.pretrain import text_metrics

    count = min(len(rows), max_samples or len(rows))
    loss, items = 0.0, 0
    for first in range(0, count, batch_size):
        batch = rows.fetch(np.arange(first, min(first + batch_size, count)))
        labels = batch["labels"].to(loaded.device)
        with torch.inference_mode():
            logits = loaded.model(batch["input_ids"].to(loaded.device), use_cache=False).logits
        loss += float(
            cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        )
        items += int((labels != IGNORED).sum())
    return {"tokens": items, **text_metrics(loss, items, bytes_per_token)}
