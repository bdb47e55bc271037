"""What a model adds to a text, printed as it is made."""

from collections.abc import Mapping
from typing import Any

from scaletrain.commands.model_source import Loaded
from scaletrain.errors import ConfigError


def write_one(loaded: Loaded, ids: list[int], settings: Mapping[str, Any]) -> str:
    """Prints what the model adds to `ids`, and gives it. ConfigError when they leave no room."""
    import torch

    from scaletrain.tasks.generation import with_prompt

    if len(ids) >= loaded.context:
        raise ConfigError(f"the prompt has {len(ids):,} tokens, the model takes {loaded.context:,}: shorten it")
    room = min(int(settings["max_new_tokens"]), loaded.context - len(ids))
    printer = Printer(loaded.tokenizer)
    inputs = torch.tensor([ids], device=loaded.device)
    eos = loaded.tokenizer.eos_id
    with torch.inference_mode():
        model, given = with_prompt(loaded.model, inputs, torch.ones_like(inputs))
        model.generate(
            **given,
            eos_token_id=eos,
            pad_token_id=eos,
            streamer=printer,
            **{**settings, "max_new_tokens": room},
        )
    print()
    return printer.text


class Printer:
    """transformers' streamer protocol: prints each new piece once its characters are whole."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._is_prompt = tokenizer, True
        self._ids: list[int] = []
        self._shown = 0

    @property
    def text(self) -> str:
        return str(self._tokenizer.decode(self._ids))

    def put(self, value: Any) -> None:
        ids = value.reshape(-1).tolist()
        if self._is_prompt:  # all of it comes first
            self._is_prompt = False
            return
        self._ids += [i for i in ids if i != self._tokenizer.eos_id]
        text = self.text
        if not text.endswith("\ufffd"):  # half of a multi-byte character: wait for the rest
            print(text[self._shown :], end="", flush=True)
            self._shown = len(text)

    def end(self) -> None:
        print(self.text[self._shown :], end="", flush=True)
