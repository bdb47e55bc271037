"""`scaletrain generate`: a model goes on with a text, or answers messages, token by token."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scaletrain.commands.chat import answer, load_chat_tokenizer
from scaletrain.commands.model_source import DTYPES, load_model
from scaletrain.commands.printer import write_one
from scaletrain.errors import ConfigError


def generate(
    model: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder or Hugging Face folder")],
    prompt: Annotated[str, typer.Option(help="Text to go on with; - reads it from standard input")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the k likeliest tokens; 0: all")] = 50,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest of this total share")
    ] = 0.95,
    repetition_penalty: Annotated[
        float, typer.Option(min=0.01, help="Above 1: repeated tokens become less likely")
    ] = 1.0,
    samples: Annotated[int, typer.Option(min=1, help="Texts to write, one after another")] = 1,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32")] = None,
    chat: Annotated[
        bool | None,
        typer.Option(help="The prompt is a message, written by the chat template; default: for sft models"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message that begins the chat")] = None,
) -> None:
    """Continue a prompt with a trained model; the text appears as it is made.

    A model of task.kind=sft answers: --prompt is a message, and without one each line that is typed is.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype} is unknown: choose one of {', '.join(DTYPES)}")
    text = sys.stdin.read() if prompt == "-" else prompt
    import torch

    loaded = load_model(model, dtype)
    if chat is None:
        chat = loaded.answers
    if system is not None and not chat:
        raise ConfigError(f"--system {system!r} is for a chat: add --chat, or write it into --prompt")
    if seed is not None:
        torch.manual_seed(seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling |= {"max_new_tokens": max_new_tokens, "repetition_penalty": repetition_penalty}
    if chat:
        answer(loaded, load_chat_tokenizer(loaded.tokenizer_folder), text, system, samples, sampling)
        return
    ids = [int(i) for i in loaded.tokenizer.encode_batch([text])[0]]
    ids = ids or [loaded.tokenizer.eos_id]  # documents begin after an end-of-text token
    for number in range(samples):
        if samples > 1:
            print(f"--- {number + 1}")
        print(text, end="", flush=True)
        write_one(loaded, ids, sampling)
