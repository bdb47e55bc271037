"""A dialogue with a model: each message is written by the chat template, and what was said so far is kept."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scaletrain.commands.model_source import Loaded
from scaletrain.commands.printer import write_one
from scaletrain.errors import ConfigError


def load_chat_tokenizer(folder: Path) -> Any:
    """The tokenizer with its chat template; ConfigError when it has none."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise ConfigError(f"{folder}: its tokenizer has no chat template: leave out --chat and --system")
    return tokenizer


def answer(
    loaded: Loaded, tokenizer: Any, message: str, system: str | None, samples: int, settings: Mapping[str, Any]
) -> None:
    """Answers `message`, `samples` times; without one, each line of standard input, in one dialogue."""
    begin = [{"role": "system", "content": system}] if system is not None else []
    if message:
        for number in range(samples):
            if samples > 1:
                print(f"--- {number + 1}")
            _answer(loaded, tokenizer, [*begin, {"role": "user", "content": message}], settings)
        return
    said = list(begin)
    for line in _lines():
        said.append({"role": "user", "content": line})
        said.append({"role": "assistant", "content": _answer(loaded, tokenizer, said, settings)})


def _answer(loaded: Loaded, tokenizer: Any, messages: list[dict[str, str]], settings: Mapping[str, Any]) -> str:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    return write_one(loaded, list(ids), settings).strip()


def _lines() -> Iterator[str]:
    """What is typed, up to an empty line or the end of the input."""
    is_typed = sys.stdin.isatty()
    while True:
        print("> " if is_typed else "", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
