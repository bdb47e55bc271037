"""The forms a tokenizer is stored in: each read as a `tokenizers` tokenizer, or a DataError in one line."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from scaletrain.errors import DataError

# Tried in this order where nothing names the end-of-text token (a bare tokenizer.json).
KNOWN_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|end▁of▁sentence|>")
_HUB_FILES = [
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "*.model",
    "chat_template*",
    "config.json",
]


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json; empty where there is neither."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the second wins
        file = folder / name
        if file.is_file():
            try:
                config |= json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(f"{file} is no JSON object ({error}): copy the tokenizer again") from error
    return config


def read_json(file: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json."""
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{file} is no tokenizer of the tokenizers library: {str(error).splitlines()[0]}") from error


def read_gpt2(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    """GPT-2's vocabulary and merges, as vocab.json + merges.txt or OpenAI's own encoder.json + vocab.bpe."""
    try:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{vocab} and {merges} are no GPT-2 vocabulary: {str(error).splitlines()[0]}") from error
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    known = [token for token in KNOWN_EOS if backend.token_to_id(token) is not None]
    backend.add_special_tokens(known)
    return backend


def read_other(folder: Path) -> tokenizers.Tokenizer:
    """A form that only transformers knows (WordPiece's vocab.txt and the like)."""
    from transformers import AutoTokenizer  # here: seconds of imports that no common form needs

    try:
        loaded = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever transformers makes of a foreign folder
        raise DataError(f"{folder} cannot be loaded by AutoTokenizer: {str(error).splitlines()[0]}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise DataError(f"{folder} holds a tokenizer written in Python alone: convert it to a tokenizer.json first")
    return backend


def download(name: str) -> Path:
    """The tokenizer files of a hub name, in the hub's local cache."""
    from huggingface_hub import snapshot_download  # here: only hub names need it

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # network, permission and name errors of many kinds
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"tokenizer {name} is neither a file or folder here nor a name the Hugging Face hub gives ({reason})"
        ) from error
