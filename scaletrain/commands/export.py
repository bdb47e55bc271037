"""`scaletrain export`: a run or a checkpoint as a Hugging Face folder."""

from pathlib import Path
from typing import Annotated

import typer

from scaletrain.commands.model_source import DTYPES, is_hugging_face, read_trained
from scaletrain.errors import ConfigError


def export(
    source: Annotated[Path, typer.Argument(help="Run folder (its newest checkpoint) or checkpoint folder")],
    output: Annotated[Path, typer.Argument(help="Folder to write: config, safetensors, tokenizer")],
    dtype: Annotated[str, typer.Option(help=f"Type of the weights: {', '.join(DTYPES)}")] = "bfloat16",
    overwrite: Annotated[bool, typer.Option(help="Replace OUTPUT if it exists")] = False,
) -> None:
    """Write a Hugging Face folder that transformers, vLLM, llama.cpp's converter and `scaletrain` load."""
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype} is unknown: choose one of {', '.join(DTYPES)}")
    if is_hugging_face(source):
        raise ConfigError(f"{source} is a Hugging Face folder already: copy it")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file, an export is a folder: choose another name")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} exists: choose another folder or add --overwrite")
    import torch

    from scaletrain.data.tokenizer import load_tokenizer
    from scaletrain.model.hf import write_folder

    trained = read_trained(source)
    write_folder(
        output,
        trained.architecture,
        trained.weights,
        dtype=getattr(torch, dtype),
        eos_id=load_tokenizer(trained.tokenizer_dir).eos_id,
        tokenizer_dir=trained.tokenizer_dir,
    )
    size = sum(p.stat().st_size for p in output.iterdir())
    print(f"{output}: step {trained.step:,}, {trained.architecture.family}, {dtype}, {size / 1e6:,.1f} MB")
