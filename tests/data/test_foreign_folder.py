"""Folders of other tools' token files: which files they mean, in which order, for which split; what is none."""

from pathlib import Path

import pytest

from scaletrain.config.schema import Data
from scaletrain.data.foreign.opening import is_foreign, open_foreign
from scaletrain.data.opening import open_data
from scaletrain.data.shards import Dataset
from scaletrain.errors import DataError
from tests.data.test_foreign import (
    documents_of,
    ends_of,
    flat,
    make_documents,
    stream,
    write_datatrove,
    write_llmc,
    write_megatron,
    write_npy,
    write_raw,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def open_small(path: Path, small: str) -> Dataset:
    return open_foreign(path, tokenizer=small, dtype=None, cache=path.parent / "cache")


def names_of(dataset: Dataset) -> tuple[list[str], list[str]]:
    return [shard.file for shard in dataset.train], [shard.file for shard in dataset.validation]


def test_files_of_a_folder_are_its_shards_in_the_order_of_their_names(folder: Path, small: str) -> None:
    first, second = make_documents(30), make_documents(20, seed=1)
    write_datatrove(folder / "b.ds", second)
    write_datatrove(folder / "a.ds", first)
    (folder / ".hidden.ds").write_bytes(b"x")
    (folder / "notes.txt").write_text("no tokens")
    dataset = open_small(folder, small)
    assert names_of(dataset) == (["a.ds", "b.ds"], [])
    assert stream(dataset) == flat([*first, *second])
    assert documents_of(dataset) == [ends_of(first), ends_of(second)]


def test_nanogpt_folders_have_both_splits(folder: Path, small: str) -> None:
    train, validation = make_documents(30), make_documents(9, seed=1)
    write_raw(folder / "train.bin", train)
    write_raw(folder / "val.bin", validation)
    (folder / "meta.pkl").write_bytes(b"x")
    (folder / "prepare.py").write_text("")
    dataset = open_small(folder, small)
    assert stream(dataset, "train") == flat(train)
    assert stream(dataset, "validation") == flat(validation)
    assert documents_of(dataset, "validation") == [ends_of(validation)]


@pytest.mark.parametrize(
    ("name", "is_validation"),
    [
        ("val.bin", True),
        ("val_000.bin", True),
        ("valid-1.bin", True),
        ("validation.bin", True),
        ("fineweb_val_000001.bin", True),
        ("Tiny_Val.bin", True),
        ("fineweb_train_000001.bin", False),
        ("valley.bin", False),
        ("interval.bin", False),
    ],
)
def test_a_word_of_the_name_tells_validation_files(name: str, is_validation: bool, folder: Path, small: str) -> None:
    write_llmc(folder / "a.bin", make_documents(5))
    write_llmc(folder / name, make_documents(5))
    train, validation = names_of(open_small(folder, small))
    assert (name in validation, name in train) == (is_validation, not is_validation)


def test_folders_named_by_a_split_hold_its_files(folder: Path, small: str) -> None:
    for name in ("train", "validation", "test", "other"):
        (folder / name).mkdir()
        write_npy(folder / name / "a.npy", make_documents(5))
    assert names_of(open_small(folder, small)) == (["train/a.npy"], ["validation/a.npy"])
    write_megatron(folder / "pile", make_documents(5))
    with pytest.raises(
        DataError, match=r"several formats: pile\.bin \(Megatron\), a\.npy \(numpy\); keep one in a folder"
    ):
        open_small(folder, small)


def test_megatron_indexes_of_a_folder_are_named_relative_to_it(folder: Path, small: str) -> None:
    (folder / "validation").mkdir()
    write_megatron(folder / "a_text_document", make_documents(5))
    write_megatron(folder / "validation" / "b_text_document", make_documents(5))
    dataset = open_small(folder, small)
    assert [shard.docs_file for shard in dataset.train] == ["a_text_document.idx"]
    assert [shard.docs_file for shard in dataset.validation] == ["validation/b_text_document.idx"]


def test_the_same_files_elsewhere_are_the_same_dataset(tmp_path: Path, small: str) -> None:
    fingerprints = []
    for name, extra in (("one", False), ("two", False), ("three", True)):
        (tmp_path / name).mkdir()
        write_raw(tmp_path / name / "train.bin", make_documents(30))
        write_raw(tmp_path / name / ("val.bin" if extra else "more.bin"), make_documents(3))
        fingerprints.append(open_small(tmp_path / name, small).fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0] != fingerprints[2]


def test_what_does_not_belong_together_is_told(folder: Path, small: str) -> None:
    def refused(message: str) -> None:
        assert is_foreign(folder)
        with pytest.raises(DataError, match=message):
            open_small(folder, small)

    write_npy(folder / "val.npy", make_documents(5))
    refused(r"data holds only validation files, such as .*val\.npy: add training files")
    write_npy(folder / "a.npy", make_documents(5), "uint32")
    refused(r"data holds tokens of two types: a\.npy \(uint32\), val\.npy \(uint16\); keep one in a folder")
    write_raw(folder / "a.npy", make_documents(5))
    refused(
        r"data holds files of several formats: a\.npy \(headerless \.npy\), val\.npy \(numpy\); keep one in a folder"
    )
    write_npy(folder / "a.npy", make_documents(5))
    write_npy(folder / "my_test.npy", make_documents(5))
    refused(
        r"my_test\.npy is a test file by its name, neither for training nor for validation: move it out of .*data, or"
    )


def test_a_folder_with_an_index_alone_names_the_missing_tokens(folder: Path, small: str) -> None:
    write_megatron(folder / "a", make_documents(5))
    (folder / "a.bin").unlink()
    with pytest.raises(DataError, match=r"a\.bin is missing, its index .*a\.idx is there: copy both files"):
        open_small(folder, small)


def test_other_paths_are_not_taken_for_token_files(folder: Path, tmp_path: Path) -> None:
    assert not is_foreign(tmp_path / "nope")
    assert not is_foreign(folder)
    (folder / "text.txt").write_text("text")
    (folder / "models.bin").mkdir()
    assert not is_foreign(folder)
    assert not is_foreign(folder / "text.txt")
    with pytest.raises(DataError, match="has no index.json: it is incomplete"):
        open_data(str(folder), Data())


def test_an_unfinished_prepare_is_not_taken_for_numpy_files(folder: Path) -> None:
    write_npy(folder / "tokens-00000.npy", make_documents(5))
    write_npy(folder / "docs-00000.npy", make_documents(5))
    assert not is_foreign(folder)
    (folder / "docs-00000.npy").unlink()
    assert is_foreign(folder)
    (folder / "prepare.json").write_text("{}")
    assert not is_foreign(folder)
