"""A SentencePiece .model as a `tokenizers` tokenizer that gives the same ids, proven on probe texts when it loads."""

import re
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from scaletrain.errors import DataError

_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
# What no text can win: below any sum of real scores, so a Unigram model never matches "</s>" or "<0x0A>" in text.
_NEVER = -1e6

PROBES = (
    "The quick brown fox jumps over the lazy dog. It's 12,345.67 dollars (about 9%) - isn't it?",
    "def area(self, radius: float = 1.0) -> float:\n    if radius < 0:\n        raise ValueError(f'{radius!r}')\n"
    "\treturn 3.14159 * radius ** 2  # tab, spaces\r\n\n\n",
    "  two leading,   three inner and two trailing spaces  ",
    "Ünïcödé: naïve café, Grüße, Привет мир, こんにちは世界, 天地玄黃, مرحبا, हिन्दी",
    "ﬁne ½ Å e\u0301 🙂👩‍👩‍👧 \u200b\u00a0end",
    "aaaaaaaaaaaaaaaa bananananana ======== ......... 000000000000 abababababab",
    "",
    "\n",
)
# Control and byte pieces as text: SentencePiece reads them as letters, so must we.
_LITERALS = "a </s> b <s>c</s> <unk> <0x0A> x"


def convert_sentencepiece(path: Path) -> tuple[Tokenizer, str | None]:
    """The tokenizer and its end-of-text piece (None where the model has none). DataError if ids would differ."""
    try:
        reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
        model = proto.ModelProto()
        model.ParseFromString(path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} is no SentencePiece model: {str(error).splitlines()[0]}") from error
    _refuse_unsupported(path, model)
    tokenizer = Tokenizer(_model(path, model))
    tokenizer.normalizer = normalizers.Sequence(_normalizers(model))
    pattern = _word_pattern(model)
    if pattern is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Sequence(_decoders(model))
    kinds = {_CONTROL: True, _UNKNOWN: True, _USER_DEFINED: False}
    for piece in model.pieces:
        if piece.type in kinds:
            added = AddedToken(piece.piece, special=kinds[piece.type], normalized=False)
            tokenizer.add_special_tokens([added]) if kinds[piece.type] else tokenizer.add_tokens([added])
    tokenizer.encode_special_tokens = True
    check_equal(path, tokenizer, reference, [*PROBES, _LITERALS])
    eos = reference.eos_id()
    return tokenizer, reference.id_to_piece(eos) if eos >= 0 else None


def check_equal(path: Path, tokenizer: Tokenizer, reference: Any, texts: list[str]) -> None:
    """DataError with the first text for which the converted ids are not SentencePiece's own."""
    for text in texts:
        expected = reference.encode(text)
        found = tokenizer.encode(text, add_special_tokens=False).ids
        if found != expected:
            place = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
            raise DataError(
                f"{path} cannot be converted exactly: {text!r} gives {expected[place : place + 4]} at token {place} in "
                f"SentencePiece but {found[place : place + 4]} here; give a tokenizer.json instead"
            )


def _refuse_unsupported(path: Path, model: Any) -> None:
    kind = model.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE):
        raise DataError(f"{path} is a SentencePiece model of type {kind}: only unigram (1) and bpe (2) can be used")
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise DataError(
            f"{path} treats whitespace as a suffix, which cannot be converted: train a tokenizer without it"
        )


def _model(path: Path, model: Any) -> Any:
    spec = model.trainer_spec
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.type == _UNKNOWN), None)
    if unknown is None:
        raise DataError(f"{path} has no unknown piece: it is damaged or no SentencePiece model")
    if spec.model_type == _UNIGRAM:
        plain = (_NORMAL, _USER_DEFINED)
        vocab = [(piece.piece, piece.score if piece.type in plain else _NEVER) for piece in model.pieces]
        return models.Unigram(vocab, unk_id=unknown, byte_fallback=spec.byte_fallback)
    return models.BPE(
        {piece.piece: i for i, piece in enumerate(model.pieces)},
        _merges(model),
        unk_token=model.pieces[unknown].piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )


def _merges(model: Any) -> list[tuple[str, str]]:
    """Each way to join two pieces into a third, best score first: SentencePiece merges the best-scored result first."""
    order = {piece.piece: i for i, piece in enumerate(model.pieces) if piece.type in (_NORMAL, _USER_DEFINED)}
    merges = []
    for piece in model.pieces:
        if piece.type == _NORMAL:
            text = piece.piece
            pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
            pairs = [pair for pair in pairs if pair[0] in order and pair[1] in order]
            pairs.sort(key=lambda pair: (order[pair[0]], order[pair[1]]))
            merges += [(-piece.score, pair) for pair in pairs]
    merges.sort(key=lambda merge: merge[0])  # stable: splits of one piece stay together
    return [pair for _, pair in merges]


def _normalizers(model: Any) -> list[Any]:
    spec = model.normalizer_spec
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(left=True, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return [*steps, normalizers.Replace(" ", "▁")]


def _word_pattern(model: Any) -> str | None:
    """Where text may be cut into words that are encoded (and cached) one by one: before a run of spaces.

    Exact when no piece holds a space after another character; otherwise None, and a text is encoded as one word.
    """
    if any(re.search("[^▁]▁", piece.piece) for piece in model.pieces if piece.type in (_NORMAL, _USER_DEFINED)):
        return None
    return "▁*[^▁]+|▁+"


def _decoders(model: Any) -> list[Any]:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    return steps
