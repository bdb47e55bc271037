"""`scaletrain evaluate`: perplexity and bits per byte of a model on a dataset folder or on text files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaletrain.commands.model_source import DTYPES, Loaded, load_model
from scaletrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np


def evaluate(
    model: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder or Hugging Face folder")],
    data: Annotated[list[Path], typer.Option(help="A dataset folder, or text files (repeat the option)")],
    split: Annotated[str, typer.Option(help="Split of a dataset folder: validation or train")] = "validation",
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens a sample; default: the model's, at most 1024")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a forward pass")] = 8,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Stop after so many samples")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a line")] = False,
) -> None:
    """Measure loss, perplexity and bits per byte; each token is predicted once, within its sample's context."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype} is unknown: choose one of {', '.join(DTYPES)}")
    if split not in ("validation", "train"):
        raise ConfigError(f"--split {split} is unknown: choose validation or train")
    if missing := [str(p) for p in data if not p.exists()]:
        raise DataError(f"--data {', '.join(missing)} does not exist: give a dataset folder or text files")
    loaded = load_model(model, dtype)
    if context is not None and context > loaded.context:
        raise ConfigError(f"--context {context} is longer than the model's {loaded.context} positions: shorten it")
    length = context or min(loaded.context, 1024)
    tokens, size = _dataset_tokens(loaded, data[0], split) if data[0].is_dir() else _text_tokens(loaded, data)
    found = _measure(loaded, tokens, size, length, batch_size, max_samples)
    if as_json:
        print(json.dumps(found))
    else:
        print("  ".join(f"{name.replace('_', ' ')} {value:,.4f}" for name, value in found.items() if name != "tokens"))


def _dataset_tokens(loaded: Loaded, path: Path, split: str) -> tuple["np.ndarray", int]:
    import numpy as np

    from scaletrain.data.shards import open_dataset, open_tokens

    dataset = open_dataset(path)
    if dataset.tokenizer.fingerprint != loaded.tokenizer.fingerprint:
        raise DataError(
            f"{path} was prepared with the tokenizer {dataset.tokenizer.name}, not with the model's: give text files, "
            "or prepare the text with the model's tokenizer"
        )
    name: Any = split
    shards = [open_tokens(dataset, shard) for shard in dataset.shards(name)]
    if not shards:
        raise DataError(f"{path} has no {split} split: choose another --split")
    return (shards[0] if len(shards) == 1 else np.concatenate(shards)), dataset.bytes(name)


def _text_tokens(loaded: Loaded, paths: list[Path]) -> tuple["np.ndarray", int]:
    import numpy as np

    texts = []
    for path in paths:
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as UTF-8 text ({error}): convert it or leave it out") from error
    # An end-of-text token before each document, so that its first token is predicted too and every byte is counted.
    pieces = [np.array([loaded.tokenizer.eos_id, *ids], dtype=np.int64) for ids in loaded.tokenizer.encode_batch(texts)]
    tokens = np.concatenate(pieces)
    if len(tokens) < 2:
        raise DataError(f"{', '.join(map(str, paths))}: no text to evaluate: give files that hold some")
    return tokens, sum(len(text.encode()) for text in texts)


def _measure(
    loaded: Loaded,
    tokens: "np.ndarray",
    size: int,
    context: int,
    batch_size: int,
    max_samples: int | None,
) -> dict[str, float]:
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    from scaletrain.tasks.pretrain import text_metrics

    starts = list(range(0, len(tokens) - 1, context))[:max_samples]
    loss, items = 0.0, 0
    for first in range(0, len(starts), batch_size):
        chunk = [np.asarray(tokens[s : s + context + 1], dtype=np.int64) for s in starts[first : first + batch_size]]
        padded = torch.full((len(chunk), max(map(len, chunk))), -100)
        for row, piece in enumerate(chunk):
            padded[row, : len(piece)] = torch.from_numpy(piece)
        padded = padded.to(loaded.device)
        inputs, labels = padded[:, :-1].clamp(min=0), padded[:, 1:]
        with torch.inference_mode():
            logits = loaded.model(inputs, use_cache=False).logits
        loss += float(cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"))
        items += int((labels != -100).sum())
    return {"tokens": items, **text_metrics(loss, items, size / (len(tokens) - 1))}
