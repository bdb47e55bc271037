"""`scaletrain generate`: a model goes on with a text, token by token."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scaletrain.commands.model_source import DTYPES, Loaded, load_model
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
) -> None:
    """Continue a prompt with a trained model; the text appears as it is made."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype} is unknown: choose one of {', '.join(DTYPES)}")
    text = sys.stdin.read() if prompt == "-" else prompt
    import torch

    loaded = load_model(model, dtype)
    if seed is not None:
        torch.manual_seed(seed)
    ids = [int(i) for i in loaded.tokenizer.encode_batch([text])[0]]
    ids = ids or [loaded.tokenizer.eos_id]  # documents begin after an end-of-text token
    if len(ids) >= loaded.context:
        raise ConfigError(f"the prompt has {len(ids):,} tokens, the model takes {loaded.context:,}: shorten it")
    room = min(max_new_tokens, loaded.context - len(ids))
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    for number in range(samples):
        if samples > 1:
            print(f"--- {number + 1}")
        _write_one(loaded, text, ids, max_new_tokens=room, repetition_penalty=repetition_penalty, **sampling)


def _write_one(loaded: Loaded, text: str, ids: list[int], **settings: Any) -> None:
    import torch

    printer = Printer(loaded.tokenizer, len(ids))
    print(text, end="", flush=True)
    inputs = torch.tensor([ids], device=loaded.device)
    eos = loaded.tokenizer.eos_id
    with torch.inference_mode():
        loaded.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            eos_token_id=eos,
            pad_token_id=eos,
            streamer=printer,
            **settings,
        )
    print()


class Printer:
    """transformers' streamer protocol: prints each new piece once its characters are whole."""

    def __init__(self, tokenizer: Any, prompt_tokens: int) -> None:
        self._tokenizer, self._prompt_left = tokenizer, prompt_tokens
        self._ids: list[int] = []
        self._shown = 0

    def put(self, value: Any) -> None:
        ids = value.reshape(-1).tolist()
        if self._prompt_left:
            self._prompt_left = 0
            return
        self._ids += [i for i in ids if i != self._tokenizer.eos_id]
        text = self._tokenizer.decode(self._ids)
        if not text.endswith("\ufffd"):  # half of a multi-byte character: wait for the rest
            print(text[self._shown :], end="", flush=True)
            self._shown = len(text)

    def end(self) -> None:
        print(self._tokenizer.decode(self._ids)[self._shown :], end="", flush=True)
