"""The tokenizer: text to ids without special tokens, loaded from every common form, saved for AutoTokenizer."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
import xxhash

from scaletrain.data.shards import DTYPES, TokenizerInfo, Tokens
from scaletrain.data.tokenizer_forms import KNOWN_EOS, download, read_config, read_gpt2, read_json, read_other
from scaletrain.errors import DataError

GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_EXTRAS = ("chat_template.jinja", "tokenizer.model")
# tokenizer.json says all of this already; a class name or these keys would make AutoTokenizer rebuild parts of it.
_CONFIG_DROPS = ("auto_map", "add_prefix_space", "legacy", "sp_model_kwargs", "from_slow", "backend", "vocab_file")
_PROBE = (
    "The quick brown fox, it's 12,345.67.\n\n    def f(x):\n\t\treturn x  # über naïve 天地玄黃 Привет 🙂\r\n"
    "<s></s><|endoftext|>    aaaa ==== don't SHOUT camelCase snake_case http://a.b/c?d=e%20 \u00a0\u200b"
)


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers` tokenizer with its end-of-text token; special tokens written in a text are read as text."""

    backend: tokenizers.Tokenizer
    name: str
    eos_token: str
    config: Mapping[str, Any] = field(default_factory=dict)
    extras: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = True
        if self.backend.token_to_id(self.eos_token) is None:
            raise DataError(
                f"tokenizer {self.name} has no token {self.eos_token!r} to end a document with: "
                "name one of its tokens with --eos-token"
            )

    @cached_property
    def eos_id(self) -> int:
        found = self.backend.token_to_id(self.eos_token)
        assert found is not None
        return found

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id: what an embedding must hold, added tokens and holes included."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def dtype(self) -> str:
        """The narrowest dtype of the dataset format that holds every id."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of vocabulary, behaviour on a probe and end-of-text: the same however and by whatever version stored."""
        vocab = sorted(self.backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        probe = self.backend.encode(_PROBE, add_special_tokens=False).ids
        return xxhash.xxh3_128_hexdigest(json.dumps([vocab, probe, self.eos_id]).encode())

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo(self.name, self.fingerprint, self.vocab_size, self.eos_id)

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """The ids of each text, without any special token, in `dtype`; never the end-of-text id."""
        dtype = DTYPES[self.dtype]
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        arrays = [np.array(encoding.ids, dtype=dtype) for encoding in encodings]
        for i, ids in enumerate(arrays):
            if (ids == self.eos_id).any():
                arrays[i] = self._encode_eos_as_text(texts[i])
        return arrays

    def decode(self, ids: Sequence[int] | npt.NDArray[Any], skip_special_tokens: bool = True) -> str:
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))

    def save(self, folder: Path) -> None:
        """Writes what AutoTokenizer loads, so that it encodes and decodes as this object does."""
        folder.mkdir(parents=True, exist_ok=True)
        # Not backend.save: it reports a full disk as a bare Exception.
        (folder / "tokenizer.json").write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        config = {key: value for key, value in self.config.items() if key not in _CONFIG_DROPS}
        # The generic class takes tokenizer.json as it is; LlamaTokenizer and others of transformers 5 rebuild it.
        config |= {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_token,
            "clean_up_tokenization_spaces": False,
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        for file in self.extras:
            if (folder / file.name).exists():  # trained into this folder
                continue
            shutil.copyfile(file, folder / file.name)

    def _encode_eos_as_text(self, text: str) -> Tokens:
        """Some models hold the end-of-text token as a plain piece (T5's): cut it after its first character."""
        cuts = [match.start() + 1 for match in re.finditer(re.escape(self.eos_token), text)]
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        ids = [i for part in parts for i in self.backend.encode(part, add_special_tokens=False).ids]
        if self.eos_id in ids:
            raise DataError(
                f"tokenizer {self.name} gives its end-of-text token {self.eos_token!r} for ordinary text "
                f"(near {text[:40]!r}): name another with --eos-token"
            )
        tokens: Tokens = np.array(ids, dtype=DTYPES[self.dtype])
        return tokens


def load_tokenizer(path_or_name: str | Path, eos_token: str | None = None) -> Tokenizer:
    """A Hugging Face folder or hub name, tokenizer.json, GPT-2 vocabulary folder or SentencePiece .model."""
    path = Path(path_or_name)
    try:
        if path.is_dir():
            return _from_folder(path, path.resolve().name, eos_token)
        if path.is_file():
            return _from_file(path, eos_token)
    except OSError as error:
        raise DataError(f"tokenizer {error.filename or path} cannot be read: {error.strerror}") from error
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(path_or_name)) and path.suffix not in (".json", ".model"):
        return _from_folder(download(str(path_or_name)), str(path_or_name), eos_token)
    raise DataError(f"tokenizer {path} does not exist: give a folder, a tokenizer.json, a .model or a hub name")


def _from_folder(folder: Path, name: str, eos_token: str | None) -> Tokenizer:
    config = read_config(folder)
    extras = tuple(folder / extra for extra in _EXTRAS if (folder / extra).is_file())
    if (folder / "tokenizer.json").is_file():
        return _build(read_json(folder / "tokenizer.json"), name, config, eos_token, extras)
    pieces = [file for file in sorted(folder.glob("*.model")) if file.is_file()]
    if len(pieces) == 1:
        return _from_sentencepiece(pieces[0], name, eos_token, config)
    is_gpt2 = str(config.get("tokenizer_class", "GPT2Tokenizer")).startswith("GPT2")
    for vocab, merges in GPT2_FILES:
        if is_gpt2 and (folder / vocab).is_file() and (folder / merges).is_file():
            return _build(read_gpt2(folder / vocab, folder / merges), name, config, eos_token, extras)
    if config:
        return _build(read_other(folder), name, config, eos_token, extras)
    if (folder / "tokenizer").is_dir():
        raise DataError(f"{folder} is no tokenizer, but holds one: give {folder / 'tokenizer'}")
    raise DataError(
        f"{folder} holds no tokenizer: expected tokenizer.json, one *.model, vocab.json with merges.txt "
        "or encoder.json with vocab.bpe"
    )


def _from_file(file: Path, eos_token: str | None) -> Tokenizer:
    if file.suffix == ".model":
        return _from_sentencepiece(file, file.stem, eos_token, {})
    if file.suffix != ".json":
        raise DataError(f"tokenizer {file} is neither a .json nor a SentencePiece .model file")
    for vocab, merges in GPT2_FILES:
        if file.name == vocab and (file.parent / merges).is_file():
            return _build(read_gpt2(file, file.parent / merges), file.resolve().parent.name, {}, eos_token)
    config = read_config(file.parent) if file.name == "tokenizer.json" else {}
    name = file.resolve().parent.name if file.name == "tokenizer.json" else file.stem
    return _build(read_json(file), name, config, eos_token)


def _from_sentencepiece(file: Path, name: str, eos_token: str | None, config: Mapping[str, Any]) -> Tokenizer:
    # Costs 50 ms of imports that no other form needs.
    from scaletrain.data.sentencepiece_model import convert_sentencepiece

    backend, own_eos = convert_sentencepiece(file)
    if own_eos is not None:
        config = {"eos_token": own_eos, **config}
    extras = (file,) if file.name == "tokenizer.model" else ()
    return _build(backend, name, config, eos_token, extras)


def _build(
    backend: tokenizers.Tokenizer,
    name: str,
    config: Mapping[str, Any],
    eos_token: str | None,
    extras: tuple[Path, ...] = (),
) -> Tokenizer:
    named = config.get("eos_token")
    named = named.get("content") if isinstance(named, Mapping) else named
    known = [token for token in KNOWN_EOS if backend.token_to_id(token) is not None]
    eos = eos_token or named or (known[0] if known else None)
    if not eos:
        raise DataError(
            f"tokenizer {name} names no end-of-text token (and has none of {', '.join(KNOWN_EOS)}): "
            "name one of its tokens with --eos-token"
        )
    return Tokenizer(backend, name, eos, config, extras)
