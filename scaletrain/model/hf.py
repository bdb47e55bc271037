"""Hugging Face in and out: weights from a folder, a folder or a model in memory from weights."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaletrain.config.architecture import Architecture
from scaletrain.errors import CheckpointError
from scaletrain.model.gpt import GPT
from scaletrain.model.hf_config import architecture_from_hf, hf_config
from scaletrain.model.hf_weights import find_name, from_hf, pieces, read_piece, to_hf
from scaletrain.model.init import Gather, whole_parameter
from scaletrain.runtime.files import replacing_folder

__all__ = ["architecture_from_hf", "from_hf", "hf_config", "load_weights", "to_hf", "to_hf_model", "write_folder"]

INDEX = "model.safetensors.index.json"


@torch.no_grad()
def load_weights(model: GPT, folder: str | Path, gather: Gather = whole_parameter) -> None:
    """Fills `model` from a Hugging Face folder's safetensors, a parameter at a time; `gather` as in `init_parameters`.

    CheckpointError when a tensor is missing or has another shape.
    """
    parameters = dict(model.named_parameters())
    with ExitStack() as files:
        read = _reader(Path(folder), files)
        for piece in pieces(model.arch):
            parameter: nn.Parameter = parameters[piece.name]
            with gather(parameter) as writes:
                if writes:
                    tensor = read_piece(piece, read)
                    if tensor.shape != parameter.shape:
                        shapes = f"{tuple(tensor.shape)} where the model has {tuple(parameter.shape)}"
                        raise CheckpointError(f"{folder}: {piece.name} is {shapes}: train with the folder's own sizes")
                    parameter.copy_(tensor)


def open_tensors(folder: Path, files: ExitStack) -> dict[str, Any]:
    """Name -> the opened safetensors file that holds it; `files` closes them. CheckpointError when one is missing."""
    from safetensors import SafetensorError, safe_open

    if (folder / INDEX).is_file():
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder / missing[0]} is missing: download the folder again, with safetensors weights")
    try:
        opened = [files.enter_context(safe_open(folder / name, framework="pt")) for name in names]
    except SafetensorError as error:
        raise CheckpointError(f"{folder}: its safetensors cannot be read ({error}): copy the folder again") from error
    return {key: file for file in opened for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)


def _reader(folder: Path, files: ExitStack) -> Callable[[str], Tensor]:
    """Hugging Face name -> tensor, read when asked for; `files` closes what it opens."""
    holder = open_tensors(folder, files)

    def read(name: str) -> Tensor:
        found = find_name(holder, name)
        tensor: Tensor = holder[found].get_tensor(found)
        return tensor

    return read


def write_folder(
    folder: str | Path,
    arch: Architecture,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    eos_id: int | None,
    bos_id: int | None = None,
    tokenizer_dir: Path | None = None,
) -> None:
    """Writes config, generation config, safetensors (files of up to 5 GB) and the tokenizer's files to `folder`.

    Whole or not at all, see replacing_folder.
    """
    with replacing_folder(Path(folder), "config.json") as partial:
        _write_files(partial, arch, state, dtype, eos_id, bos_id, tokenizer_dir)


def _write_files(
    partial: Path,
    arch: Architecture,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    eos_id: int | None,
    bos_id: int | None,
    tokenizer_dir: Path | None,
) -> None:
    from huggingface_hub import save_torch_state_dict
    from safetensors import SafetensorError

    for file in sorted(tokenizer_dir.iterdir()) if tokenizer_dir is not None else []:
        if file.is_file():
            shutil.copyfile(file, partial / file.name)
    hf_config(arch, eos_id=eos_id, bos_id=bos_id, dtype=dtype).save_pretrained(partial)
    _generation_config(eos_id, bos_id).save_pretrained(partial)
    tensors = {name: _with_own_memory(tensor.to(dtype)) for name, tensor in to_hf(arch, state).items()}
    try:
        save_torch_state_dict(tensors, partial, max_shard_size="5GB", metadata={"format": "pt"})
    except SafetensorError as error:  # its Rust code tells an OSError in words: "... (os error 28)"
        if (code := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def _with_own_memory(tensor: Tensor) -> Tensor:
    """safetensors takes no view of a larger buffer, which is what a merged ZeRO checkpoint is made of."""
    is_own = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_own else tensor.clone(memory_format=torch.contiguous_format)


def to_hf_model(
    arch: Architecture, state: Mapping[str, Tensor], dtype: torch.dtype, *, eos_id: int | None = None
) -> Any:
    """A transformers model (evaluation mode, CPU) of these weights; of the same type, it shares their memory."""
    import transformers

    config = hf_config(arch, eos_id=eos_id, dtype=dtype)
    tensors = {name: tensor.to(dtype) for name, tensor in to_hf(arch, state).items()}
    model_class = getattr(transformers, config.architectures[0])
    model, report = model_class.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
    )
    wrong = {kind: keys for kind, keys in report.items() if keys and kind != "error_msgs"}
    assert not wrong, f"transformers took the weights only in part: {wrong}"
    model.generation_config = _generation_config(eos_id, None)
    return model.eval()


def _generation_config(eos_id: int | None, bos_id: int | None) -> Any:
    from transformers import GenerationConfig

    make: Any = GenerationConfig
    return make(bos_token_id=bos_id, eos_token_id=eos_id, pad_token_id=eos_id)  # no pad token: generate would warn
