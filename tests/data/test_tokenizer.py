"""Tokenizers: lossless, equal to AutoTokenizer and to SentencePiece, special tokens in text read as text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.data.prepare.train_tokenizer import train_byte_bpe, train_sentencepiece
from scaletrain.data.sentencepiece_model import check_equal
from scaletrain.data.tokenizer import Tokenizer, load_tokenizer
from scaletrain.errors import DataError

HARD = "  two spaces\n\n\tTab é 天地玄黃 🙂\r\n</s> <s> <unk> <0x0A> <|endoftext|>   end  "


@pytest.fixture(scope="module")
def corpus(texts: list[Path]) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in texts]


@pytest.fixture(scope="module")
def trained(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("trained")
    return {
        "byte-bpe": train_byte_bpe(corpus, 1000),
        "unigram": train_sentencepiece(corpus, 1000, "unigram", folder / "unigram"),
        "bpe": train_sentencepiece(corpus, 1000, "bpe", folder / "bpe"),
    }


KINDS = pytest.mark.parametrize("kind", ["byte-bpe", "unigram", "bpe"])


@KINDS
def test_decode_gives_the_text_back(trained: dict[str, Tokenizer], corpus: list[str], kind: str) -> None:
    tokenizer = trained[kind]
    assert tokenizer.vocab_size == 1000
    assert tokenizer.dtype == "uint16"
    for text, ids in zip([*corpus, HARD], tokenizer.encode_batch([*corpus, HARD]), strict=True):
        assert tokenizer.decode(ids) == text
        assert ids.dtype == np.uint16


@KINDS
def test_autotokenizer_loads_the_same(
    trained: dict[str, Tokenizer], corpus: list[str], kind: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = trained[kind]
    tokenizer.save(tmp_path)
    for model_type in (None, "gpt2", "llama"):  # beside an exported model's config.json too
        if model_type:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert (auto.eos_token, auto.eos_token_id, len(auto)) == (tokenizer.eos_token, tokenizer.eos_id, 1000)
        for text, ids in zip(corpus, tokenizer.encode_batch(corpus), strict=True):
            assert auto.encode(text, add_special_tokens=False) == ids.tolist()
            assert auto.decode(ids.tolist()) == text


@KINDS
def test_saved_and_loaded_is_the_same_tokenizer(trained: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    trained[kind].save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(path).fingerprint == trained[kind].fingerprint
    assert len({tokenizer.fingerprint for tokenizer in trained.values()}) == 3


@KINDS
def test_special_tokens_in_text_are_text(trained: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = trained[kind]
    text = f"a {tokenizer.eos_token} b"
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == text


def test_end_of_text_as_plain_piece_is_cut_apart() -> None:
    pieces = [("<unk>", 0.0), ("</s>", -1.0), *((letter, -5.0) for letter in "a </sb>")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0, False))
    tokenizer = Tokenizer(backend, "t5-like", "</s>")
    assert tokenizer.backend.encode("a</s>").ids[-1] == tokenizer.eos_id
    (ids,) = tokenizer.encode_batch(["a</s>b"])
    assert tokenizer.eos_id not in ids
    assert len(ids) == 6


def test_end_of_text_for_ordinary_text_is_refused() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([("x", 0.0), ("a", -1.0)], 0, False))
    with pytest.raises(DataError, match="gives its end-of-text token 'x' for ordinary text .*--eos-token"):
        Tokenizer(backend, "odd", "x").encode_batch(["az"])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_byte_bpe_is_lossless_for_any_text(byte_bpe: Tokenizer, text: str) -> None:
    (ids,) = byte_bpe.encode_batch([text])
    assert byte_bpe.decode(ids) == text


@pytest.fixture(scope="module")
def byte_bpe(trained: dict[str, Tokenizer]) -> Tokenizer:
    return trained["byte-bpe"]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_ids_are_sentencepieces_own(
    trained: dict[str, Tokenizer], corpus: list[str], kind: str, tmp_path: Path
) -> None:
    trained[kind].save(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text, ids in zip([*corpus, HARD], trained[kind].encode_batch([*corpus, HARD]), strict=True):
        assert reference.encode(text) == ids.tolist()
    assert (trained[kind].eos_id, trained[kind].eos_token) == (reference.eos_id(), "</s>")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_defaults_convert_exactly(corpus: list[str], kind: str, prefix: bool, tmp_path: Path) -> None:
    """Normalised to NFKC, spaces merged, with a space put before, and a piece of the user's own."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in corpus for line in text.splitlines()),
        model_prefix=str(tmp_path / "own"),
        vocab_size=600,
        model_type=kind,
        add_dummy_prefix=prefix,
        byte_fallback=prefix,
        minloglevel=2,
    )
    tokenizer = load_tokenizer(tmp_path / "own.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "own.model"))
    for text, ids in zip(corpus, tokenizer.encode_batch(corpus), strict=True):
        assert reference.encode(text) == ids.tolist()


def test_unequal_conversion_is_refused(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    trained["unigram"].save(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    with pytest.raises(DataError, match=r"cannot be converted exactly: 'abc def' gives \[.* but \[.* here; give a tok"):
        check_equal(tmp_path, trained["bpe"].backend, reference, ["abc def"])


def test_gpt2_vocabulary_is_read_in_both_spellings(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    model = json.loads(trained["byte-bpe"].backend.to_str())["model"]
    merges = "\n".join(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    found = []
    for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        folder = tmp_path / names[0]
        folder.mkdir()
        (folder / names[0]).write_text(json.dumps(model["vocab"]))
        (folder / names[1]).write_text(f"#version: 0.2\n{merges}\n")
        found += [load_tokenizer(folder), load_tokenizer(folder / names[0])]
    assert len({tokenizer.fingerprint for tokenizer in found}) == 1
    assert found[0].eos_token == "<|endoftext|>"
    assert found[0].decode(found[0].encode_batch([HARD])[0]) == HARD


def test_missing_end_of_text_names_the_option(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="names no end-of-text token .*--eos-token"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="has no token '<end>' to end a document with: .*--eos-token"):
        load_tokenizer(tmp_path, "<end>")
    assert load_tokenizer(tmp_path, "b").eos_id == 1


def test_a_folder_that_holds_one_is_told_its_place(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path} is no tokenizer, but holds one: give {tmp_path / 'tokenizer'}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "is no tokenizer of the tokenizers library"),
        ("own.model", "junk", "is no SentencePiece model"),
        ("own.bin", "junk", "is neither a .json nor a SentencePiece .model file"),
        ("tokenizer_config.json", "{", "is no JSON object"),
        ("readme.md", "", "holds no tokenizer: expected tokenizer.json"),
    ],
)
def test_files_that_are_no_tokenizer_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    is_folder = name in ("tokenizer_config.json", "readme.md")
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path if is_folder else tmp_path / name)


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist: give a folder, a tokenizer\.json, a \.model or a hub name"):
        load_tokenizer(tmp_path / "nope")


def test_unreachable_hub_name_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="tokenizer no/such is neither a file or folder here nor a name the Hugging"):
        load_tokenizer("no/such")


def test_too_little_text_for_the_vocabulary_says_how_much_fits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--train-tokenizer 5000 needs more text: .* ask for at most \d+"):
        train_byte_bpe(["some words, some more words"], 5000)
    with pytest.raises(DataError, match="--train-tokenizer 100 is below 257"):
        train_byte_bpe(["some words"], 100)
    with pytest.raises(DataError, match="--train-tokenizer 5000 does not suit this much text, SentencePiece says: .*"):
        train_sentencepiece(["some words, some more words"] * 9, 5000, "unigram", tmp_path)


def test_large_vocabularies_take_four_bytes() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(65537)}, "0"))
    assert Tokenizer(backend, "large", "1").dtype == "uint32"
