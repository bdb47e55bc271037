"""A fine-tuned model on labelled files: the numbers that its run told, again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scaletrain.commands.model_source import quiet_libraries
from scaletrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from scaletrain.assemble.finetuned import Finetuned
    from scaletrain.engine.checkpoint import Found
    from scaletrain.engine.evaluate import Evaluation


def open_task(path: Path, found: "Found | None", dtype: str | None) -> "Finetuned | None":
    """The fine-tuned model of an exported folder, or of the checkpoint `found` of a run; None when it is of another
    kind."""
    import torch

    from scaletrain.assemble.finetuned import RECORD, is_finetuned, open_finetuned, read_exported

    quiet_libraries()
    wanted = None if dtype is None else getattr(torch, dtype)
    if found is None:
        return read_exported(path, wanted) if (path / RECORD).is_file() else None
    return open_finetuned(found, wanted) if is_finetuned(found) else None


def is_text(model: "Finetuned", files: Sequence[Path]) -> bool:
    """Whether an sft model is given plain text or a dataset folder, whose perplexity is asked for."""
    return model.recipe.task.kind == "sft" and all(file.is_dir() or file.suffix in (".txt", ".md") for file in files)


def evaluate_task(model: "Finetuned", files: Sequence[Path], batch_size: int, max_samples: int | None) -> "Evaluation":
    """The scores and predictions of the model over the examples of `files`."""
    import torch

    from scaletrain.data.encoded_rows import EncodedRows
    from scaletrain.data.examples.labels import check_labels
    from scaletrain.data.examples.read import read_examples
    from scaletrain.data.order import Share
    from scaletrain.engine.evaluate import evaluate
    from scaletrain.engine.local import LocalModel

    data = model.recipe.data.model_copy(update={"max_examples": None, "format": "auto"})
    read = read_examples(tuple(map(str, files)), data, model.recipe.task, "--data")
    for line in read.check(data.on_fault):
        print(f"note    {line}")
    if model.labels:
        check_labels(model.labels, read.kept, "--data")
    encoded = model.task.kind.encode(read.kept, "validation")
    if not encoded.rows:
        raise DataError(f"--data {', '.join(map(str, files))} gives no row to evaluate: give files with examples")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    local = LocalModel(model.task, model.network.to(device), device)
    rows, share = EncodedRows(encoded.rows, model.task.kind.collate), Share(0, 1, batch_size, 1)
    return evaluate(local, model.task, rows, share, max_samples)


def write_predictions(path: Path, found: "Evaluation") -> None:
    """A line a row."""
    if path.parent != Path() and not path.parent.is_dir():
        raise ConfigError(f"--predictions {path}: {path.parent} is not a folder: make it first")
    lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in found.predictions)
    path.write_text("".join(lines), encoding="utf-8")
