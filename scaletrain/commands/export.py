"""`scaletrain export`: a run or a checkpoint as a Hugging Face folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaletrain.commands.model_source import DTYPES, find_source, is_hugging_face, quiet_libraries, read_trained
from scaletrain.errors import ConfigError

if TYPE_CHECKING:
    from scaletrain.engine.checkpoint import Found


def export(
    source: Annotated[Path, typer.Argument(help="Run folder (its newest checkpoint) or checkpoint folder")],
    output: Annotated[Path, typer.Argument(help="Folder to write: config, safetensors, tokenizer")],
    dtype: Annotated[str, typer.Option(help=f"Type of the weights: {', '.join(DTYPES)}")] = "bfloat16",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Of a fine-tuning run: its adapter alone, for PEFT")
    ] = False,
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

    from scaletrain.assemble.finetuned import is_finetuned
    from scaletrain.data.tokenizer import load_tokenizer
    from scaletrain.model.hf import write_folder

    quiet_libraries()
    found = find_source(source)
    if is_finetuned(found):
        _export_finetuned(found, output, dtype, adapter=adapter)
        return
    if adapter:
        raise ConfigError(f"{source} is a pretraining run, which has no adapter: leave out --adapter")
    trained = read_trained(found)
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


def _export_finetuned(found: "Found", output: Path, dtype: str, *, adapter: bool) -> None:
    import torch

    from scaletrain.assemble.finetuned import open_finetuned, write_adapter_folder, write_finetuned

    if adapter:
        write_adapter_folder(output, found)
    else:
        write_finetuned(output, open_finetuned(found), getattr(torch, dtype))
    size = sum(p.stat().st_size for p in output.iterdir())
    what = "adapter" if adapter else dtype
    print(
        f"{output}: step {found.state.step:,}, {found.manifest['recipe']['task']['kind']}, {what}, {size / 1e6:,.1f} MB"
    )
