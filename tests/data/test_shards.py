"""The dataset folder: opened when whole, refused in one line when not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scaletrain.data.shards import (
    DOCS_DTYPE,
    Dataset,
    Shard,
    TokenizerInfo,
    dataset_fingerprint,
    index_text,
    local_dataset,
    npy_header,
    open_dataset,
    open_docs,
    open_tokens,
    shard_files,
)
from scaletrain.errors import DataError
from scaletrain.runtime.files import hash_file

TOKENIZER = TokenizerInfo("letters", "abc", 300, 0)


def write_dataset(folder: Path) -> Dataset:
    """Two shards of train and none of validation, made with numpy alone."""
    (folder / "tokenizer").mkdir(parents=True)
    shards = []
    for number, tokens in enumerate(([5, 6, 0, 7, 0], [8, 9, 0])):
        file, docs_file = shard_files("train", number)
        ends = np.flatnonzero(np.array(tokens) == 0) + 1
        np.save(folder / file, np.array(tokens, dtype="<u2"))
        np.save(folder / docs_file, ends.astype("<u8"))
        hashes = hash_file(folder / file), hash_file(folder / docs_file)
        shards.append(Shard(file, docs_file, len(tokens), len(ends), 2 * len(tokens), *hashes))
    train = tuple(shards)
    dataset = local_dataset(folder, "uint16", TOKENIZER, train, ())
    (folder / "index.json").write_text(index_text(dataset, [("a.txt", 16)], {}))
    return dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set")
    return tmp_path / "set"


def test_header_is_what_numpy_writes(tmp_path: Path) -> None:
    for dtype in (np.dtype("<u2"), np.dtype("<u4"), DOCS_DTYPE):
        for length in (0, 1, 12345):
            np.save(tmp_path / "x.npy", np.zeros(length, dtype=dtype))
            assert (tmp_path / "x.npy").read_bytes().startswith(npy_header(dtype, length))
    assert len(npy_header(DOCS_DTYPE, 2**64)) == 128


def test_dataset_opens_as_it_was_written(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert (dataset.tokens("train"), dataset.documents("train"), dataset.bytes("train")) == (8, 3, 16)
    assert (dataset.tokens("validation"), dataset.documents("validation")) == (0, 0)
    tokens = open_tokens(dataset, dataset.train[0])
    assert tokens.tolist() == [5, 6, 0, 7, 0]
    assert tokens.dtype == np.uint16
    assert not tokens.flags.writeable
    assert open_docs(dataset, dataset.train[1]).tolist() == [3]


def test_fingerprint_is_of_the_content_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert open_dataset(tmp_path / "copy").fingerprint == open_dataset(folder).fingerprint
    dataset = open_dataset(folder)
    other = TokenizerInfo("letters", "abd", 300, 0)
    assert dataset_fingerprint("uint16", other, dataset.train, ()) != dataset.fingerprint


def test_missing_folder_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset .*nope is not a folder: make it with scaletrain prepare"):
        open_dataset(tmp_path / "nope")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"a\.txt is a file: prepare it \(scaletrain prepare --input .*a\.txt --output"):
        open_dataset(tmp_path / "a.txt")


def test_folder_without_index_is_incomplete(folder: Path) -> None:
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match="has no index.json: it is incomplete.*run the same scaletrain prepare command"):
        open_dataset(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "scaletrain-dataset", "version": 1}', "\x00"])
def test_unreadable_index_is_named(folder: Path, text: str) -> None:
    (folder / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"index\.json cannot be read"):
        open_dataset(folder)


def test_other_version_is_refused(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "version": 99}))
    with pytest.raises(DataError, match=r"is scaletrain-dataset version 99, this program reads .* version 1: prepare"):
        open_dataset(folder)


def test_truncated_shard_is_named_with_its_sizes(folder: Path) -> None:
    path = folder / "tokens-00001.npy"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"tokens-00001\.npy is truncated: 132 bytes, the index says 134"):
        open_dataset(folder)


def test_missing_too_long_and_other_shards_are_named(folder: Path) -> None:
    docs = folder / "docs-00000.npy"
    kept = docs.read_bytes()
    docs.write_bytes(kept + b"x")
    with pytest.raises(DataError, match=r"docs-00000\.npy is too long: 145 bytes, the index says 144"):
        open_dataset(folder)
    docs.write_bytes(b"y" * len(kept))
    with pytest.raises(DataError, match=r"docs-00000\.npy is no array of 2 uint64"):
        open_dataset(folder)
    docs.unlink()
    with pytest.raises(DataError, match=r"docs-00000\.npy is missing: the index lists it with 144 bytes"):
        open_dataset(folder)


def test_changed_index_is_found(folder: Path) -> None:
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace('"eos_id": 0', '"eos_id": 1'))
    with pytest.raises(DataError, match=r"index\.json was changed: its content has the fingerprint"):
        open_dataset(folder)


def test_a_dataset_without_its_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer").rmdir()
    with pytest.raises(DataError, match="has no folder tokenizer: copy or prepare the dataset again"):
        open_dataset(folder)
