"""A run, a checkpoint or a Hugging Face folder -> a transformers model and its tokenizer."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaletrain.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from scaletrain.config.architecture import Architecture
    from scaletrain.data.tokenizer import Tokenizer
    from scaletrain.engine.checkpoint import Found

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Trained:
    """Weights that our engine wrote: names as in model/gpt.py, float32, on the CPU."""

    architecture: "Architecture"
    weights: dict[str, "torch.Tensor"]
    tokenizer_dir: Path
    step: int


@dataclass(frozen=True)
class Loaded:
    """A model that can be run, on `device`, in evaluation mode; `answers`: whether it was fine-tuned to."""

    model: Any
    tokenizer: "Tokenizer"
    tokenizer_folder: Path
    answers: bool
    device: "torch.device"
    context: int


def find_source(path: Path) -> "Found":
    """A run's newest checkpoint, a checkpoint folder or RUN/checkpoints/best, verified; CheckpointError when there is
    none."""
    from scaletrain.engine.checkpoint import BEST
    from scaletrain.engine.weights import find_checkpoint

    if not path.is_dir() and path.name != BEST:
        raise CheckpointError(f"{path} is not a folder: give a run, a checkpoint or a Hugging Face folder")
    found = find_checkpoint(path, _tell_passed_over)
    if not found.tokenizer_folder.is_dir():
        raise CheckpointError(f"{found.tokenizer_folder} is missing: keep a checkpoint inside its run folder")
    return found


def read_trained(found: "Found") -> Trained:
    """The weights of a pretraining run's checkpoint."""
    from scaletrain.config.architecture import Architecture
    from scaletrain.engine.weights import read_weights

    weights = read_weights(found)
    return Trained(Architecture(**found.manifest["model"]), weights, found.tokenizer_folder, found.state.step)


def _tell_passed_over(name: str, why: str) -> None:
    print(f"{name} is damaged and passed over: {why}", file=sys.stderr)


def is_hugging_face(path: Path) -> bool:
    """Whether `path` is a folder that transformers loads: it has a config.json that names a model type."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return isinstance(config, dict) and "model_type" in config
    except (OSError, ValueError):
        return False


def quiet_libraries() -> None:
    """No progress bars and advice of transformers, no search for accelerators by DeepSpeed, which PEFT imports."""
    import os
    import warnings

    import torch
    from transformers.utils import logging as transformers_logging

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_model(path: Path, dtype: str | None, found: "Found | None" = None) -> Loaded:
    """Loads `path` for inference, on the GPU if there is one; `dtype` None: bfloat16 on a GPU, float32 on a CPU.

    `found`: its checkpoint, where find_source has given it already.
    """
    import torch

    from scaletrain.assemble.finetuned import is_finetuned, merged_model, open_finetuned, was_taught_to_answer
    from scaletrain.data.tokenizer import load_tokenizer
    from scaletrain.model.adapters import virtual_tokens
    from scaletrain.model.hf import to_hf_model

    quiet_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = getattr(torch, dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    model: Any
    taken = 0  # positions of a tuned prompt
    if is_hugging_face(path):
        folder, answers = path, was_taught_to_answer(path)
        tokenizer = load_tokenizer(folder)
        model = _load_hugging_face(path, wanted)
    else:
        found = found or find_source(path)
        folder, answers = found.tokenizer_folder, is_finetuned(found)
        if answers:
            finetuned = open_finetuned(found, wanted)
            if (kind := finetuned.recipe.task.kind) != "sft":
                raise CheckpointError(
                    f"{path} was fine-tuned for task.kind={kind}, it writes no text: give an sft model"
                )
            tokenizer = load_tokenizer(folder)
            adapted = finetuned.network.model
            model = adapted if (taken := virtual_tokens(adapted)) else merged_model(adapted)
            model.config.use_cache = True
        else:
            trained = read_trained(found)
            tokenizer = load_tokenizer(folder)
            model = to_hf_model(trained.architecture, trained.weights, dtype=wanted, eos_id=tokenizer.eos_id)
    context = int(model.config.max_position_embeddings) - taken
    return Loaded(model.to(device).eval(), tokenizer, folder, answers, device, context)


def _load_hugging_face(path: Path, dtype: "torch.dtype") -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # no, unknown, unfit or damaged weights
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise CheckpointError(
            f"{path}: transformers cannot load it as a causal language model ({reason}): give a folder with such a "
            "model's config and weights"
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{path}: {len(missing)} weights are missing, {missing[0]} the first: copy or export the folder again"
        )
    return model
