"""Training a tokenizer: byte-level BPE, or SentencePiece unigram or BPE with byte fallback, all lossless."""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from scaletrain.data.tokenizer import Tokenizer, load_tokenizer
from scaletrain.errors import DataError

Kind = Literal["byte-bpe", "unigram", "bpe"]
END_OF_TEXT = "<|endoftext|>"
_BYTES = 256
# GPT-4's cut into words: newlines and runs of spaces join, digits go in threes (left to right), so that code costs
# fewer tokens than with GPT-2's at the same speed.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SENTENCE = 4000  # characters; SentencePiece drops longer sentences than its max_sentence_length (here in bytes)


def train_byte_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of exactly `vocab_size` tokens, <|endoftext|> is 0; DataError if the text is too little."""
    if vocab_size < _BYTES + 1:
        raise DataError(f"--train-tokenizer {vocab_size} is below {_BYTES + 1}: the bytes and {END_OF_TEXT} alone")
    backend = Backend(models.BPE())
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    found = backend.get_vocab_size()
    if found < vocab_size:
        raise DataError(
            f"--train-tokenizer {vocab_size} needs more text: this much gives only {found} tokens; "
            f"add text or ask for at most {found}"
        )
    return Tokenizer(backend, f"byte-bpe-{vocab_size}", END_OF_TEXT)


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, kind: Literal["unigram", "bpe"], folder: Path
) -> Tokenizer:
    """SentencePiece of exactly `vocab_size` pieces; its .model is kept as `folder`/tokenizer.model.

    Nothing is normalised and every byte has a piece, so decode(encode(text)) is the text, newlines and tabs included.
    """
    import sentencepiece  # here: only this kind needs it

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=kind,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            character_coverage=0.9999,
            max_sentence_length=_SENTENCE * 4,
            num_threads=4,  # fixed: the sums of the unigram training depend on it
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"--train-tokenizer {vocab_size} does not suit this much text, SentencePiece says: {reason}"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tokenizer.model"
    file.write_bytes(model.getvalue())
    loaded = load_tokenizer(file)
    return Tokenizer(loaded.backend, f"{kind}-{vocab_size}", loaded.eos_token, loaded.config, loaded.extras)


def _unigram(texts: Iterable[str], vocab_size: int, folder: Path) -> Tokenizer:
    return train_sentencepiece(texts, vocab_size, "unigram", folder)


def _bpe(texts: Iterable[str], vocab_size: int, folder: Path) -> Tokenizer:
    return train_sentencepiece(texts, vocab_size, "bpe", folder)


def _byte_bpe(texts: Iterable[str], vocab_size: int, folder: Path) -> Tokenizer:
    del folder  # keeps no file of its own
    return train_byte_bpe(texts, vocab_size)


TRAINERS: dict[Kind, Callable[[Iterable[str], int, Path], Tokenizer]] = {
    "byte-bpe": _byte_bpe,
    "unigram": _unigram,
    "bpe": _bpe,
}
# Bytes of text a training reads at most. SentencePiece's unigram keeps some 20 bytes of memory for each.
SAMPLE_BYTES: dict[Kind, int] = {"byte-bpe": 512_000_000, "unigram": 64_000_000, "bpe": 128_000_000}


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        start = 0
        while start < len(text):
            end = min(start + _SENTENCE, len(text))
            if end < len(text):
                end = (text.rfind("\n", start, end) + 1) or end
            yield text[start:end]
            start = end
