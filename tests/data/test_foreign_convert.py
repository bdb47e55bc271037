"""Other tools' token files converted: a dataset that is whole, has the same tokens and only closed documents."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaletrain.config.schema import Data
from scaletrain.data.audit.dataset import audit_dataset, open_to_audit
from scaletrain.data.foreign import whole_documents
from scaletrain.data.prepare.convert import convert
from scaletrain.data.prepare.options import PrepareOptions, Report
from scaletrain.data.prepare.units import Reading
from scaletrain.data.shards import Dataset, open_docs, open_tokens
from scaletrain.errors import DataError
from tests.data.test_foreign import (
    EOS,
    Documents,
    flat,
    make_documents,
    stream,
    write_llmc,
    write_megatron,
    write_npy,
    write_raw,
)


class Told:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done = self.total = 0

    def stage(self, name: str, total: int) -> None:
        self.total = total

    def advance(self, done: int, text_bytes: int = 0, tokens: int = 0) -> None:
        self.done += done

    def say(self, line: str) -> None:
        self.lines.append(line)

    def finish(self, report: Report) -> None:
        raise AssertionError("the report of a prepare is about text")


def run(source: Path, small: str, told: Told | None = None, dtype: str | None = None, **options: Any) -> Dataset:
    wanted = {"output": source.parent / "out", "tokenizer": small, "validation": 0.0, **options}
    return convert(source, PrepareOptions(inputs=(), **wanted), told or Told(), dtype)


def check(dataset: Dataset) -> None:
    """Whole by every hash, and with every rule of a dataset kept."""
    report = audit_dataset(open_to_audit(dataset.name, Data()), lambda done: None, workers=1)
    assert (report.faults, report.notes) == ((), ())


def documents_in(dataset: Dataset, split: Any = "train") -> Documents:
    found = []
    for shard in dataset.shards(split):
        tokens = open_tokens(dataset, shard)
        found += [part.tolist() for part in np.split(tokens, open_docs(dataset, shard)[:-1].astype(np.int64))]
    return found


def test_a_converted_dataset_is_whole_and_has_the_same_tokens(small: str, tmp_path: Path) -> None:
    documents = make_documents(300)
    told = Told()
    dataset = run(write_megatron(tmp_path / "a", documents, "int32", pieces=2), small, told, shard_tokens=1000)
    check(dataset)
    assert documents_in(dataset) == documents
    assert stream(dataset) == flat(documents)
    firsts = [int(open_docs(dataset, shard)[0]) for shard in dataset.train]
    assert len(firsts) > 3
    for shard, following in zip(dataset.train, firsts[1:], strict=False):
        assert shard.tokens <= 1000 < shard.tokens + following
    assert dataset.dtype == "uint16", "the narrowest that holds the vocabulary"
    assert (told.done, told.total) == (len(flat(documents)),) * 2
    assert told.lines == [f"train      300 documents, {len(flat(documents)):,} tokens, {len(dataset.train)} shard(s)"]
    assert not (tmp_path / "out.partial").exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(("tokens", "docs"))) == [
        "index.json",
        "prepare.json",
        "tokenizer",
    ]


@pytest.mark.parametrize("block", [5, 64, 1 << 22])
def test_blocks_of_any_size_give_the_same_dataset(
    block: int, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_documents(200)
    del documents[50][-1], documents[-1][-1]
    path = write_megatron(tmp_path / "a", documents)
    whole = run(path, small, output=tmp_path / "whole", shard_tokens=100)
    monkeypatch.setattr(whole_documents.read_documents, "__defaults__", (block,))
    dataset = run(path, small, shard_tokens=100)
    check(dataset)
    assert dataset.fingerprint == whole.fingerprint


def test_a_document_longer_than_a_shard_has_its_own(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [7] * 95
    documents = [[5, EOS], [*long, EOS], [6, 7, EOS], [8, EOS]]
    path = write_raw(tmp_path / "a.bin", documents)
    for block in (10, 1000):  # read in parts, and at once
        monkeypatch.setattr(whole_documents.read_documents, "__defaults__", (block,))
        dataset = run(path, small, output=tmp_path / f"{block}", shard_tokens=20)
        check(dataset)
        assert documents_in(dataset) == documents
        assert [shard.tokens for shard in dataset.train] == [2, 96, 5]


def test_open_documents_are_closed_and_divided_ones_told(small: str, tmp_path: Path) -> None:
    told = Told()
    dataset = run(write_megatron(tmp_path / "a", [[5, 6], [7, EOS, 8, EOS], [EOS], [9]]), small, told)
    check(dataset)
    assert documents_in(dataset) == [[5, 6, EOS], [7, EOS], [8, EOS], [EOS], [9, EOS]]
    assert told.lines[1:] == [
        "closed     2 documents that did not end with the end-of-text id",
        "divided    1 more documents than the index names: they held end-of-text ids",
    ]
    assert (told.done, told.total) == (8, 8)


def test_long_documents_are_closed_and_divided_too(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_documents.read_documents, "__defaults__", (4,))
    told = Told()
    dataset = run(write_megatron(tmp_path / "a", [[5] * 13, [*[6] * 9, EOS, *[7] * 9], [8, EOS]]), small, told)
    check(dataset)
    assert documents_in(dataset) == [[*[5] * 13, EOS], [*[6] * 9, EOS], [*[7] * 9, EOS], [8, EOS]]
    assert [line.split()[:2] for line in told.lines[1:]] == [["closed", "2"], ["divided", "1"]]
    assert (told.done, told.total) == (34, 34)


def test_the_validation_files_of_the_source_stay_that(small: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    train, validation, told = make_documents(50), make_documents(5, seed=1), Told()
    write_llmc(tmp_path / "data/x_train_000001.bin", train[:30])
    write_llmc(tmp_path / "data/x_train_000002.bin", train[30:])
    write_llmc(tmp_path / "data/x_val_000000.bin", validation)
    dataset = run(tmp_path / "data", small, told, validation=0.2)
    check(dataset)
    assert documents_in(dataset) == train
    assert documents_in(dataset, "validation") == validation
    assert told.lines[0] == "the validation split is that of the source's own files"


def test_held_out_documents_are_whole_and_chosen_by_their_content(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_documents(1000)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    dataset = run(write_npy(tmp_path / "one/a.npy", documents), small, validation=0.1)
    check(dataset)
    held = documents_in(dataset, "validation")
    assert 60 < len(held) < 140
    chosen = {tuple(document) for document in held}
    assert documents_in(dataset) == [document for document in documents if tuple(document) not in chosen]
    assert held == [document for document in documents if tuple(document) in chosen]
    mirrored = run(write_npy(tmp_path / "two/a.npy", documents[::-1], "uint32"), small, validation=0.1)
    assert documents_in(mirrored, "validation") == held[::-1]
    other = run(tmp_path / "one/a.npy", small, validation=0.1, seed=1, output=tmp_path / "other")
    assert documents_in(other, "validation") != held


def test_a_finished_conversion_is_found_and_another_is_not_overwritten(small: str, tmp_path: Path) -> None:
    path, told = write_raw(tmp_path / "a.bin", make_documents(20)), Told()
    first = run(path, small)
    assert run(path, small, told).fingerprint == first.fingerprint
    assert told.lines == [f"{tmp_path / 'out'} is complete with these files and options: nothing to do"]
    with pytest.raises(
        DataError, match=r"is a dataset made with other settings \(seed\): choose another --output, or --over"
    ):
        run(path, small, seed=5)
    write_raw(path, make_documents(30))
    with pytest.raises(DataError, match=r"other settings \(input files\)"):
        run(path, small)
    assert run(path, small, overwrite=True).documents("train") == 30


def test_a_conversion_that_cannot_be_leaves_nothing(small: str, tmp_path: Path) -> None:
    tokens = np.full(3_000_000, 7, np.uint16)
    tokens[500_000] = 1001  # between the blocks that are looked at when the file is opened
    tokens.tofile(tmp_path / "a.bin")
    with pytest.raises(
        DataError, match=r"a\.bin has the id 1001 at token 500,000, tokenizer small has the ids 0 to 999"
    ):
        run(tmp_path / "a.bin", small)
    write_raw(tmp_path / "a.bin", [[5, EOS]])
    with pytest.raises(
        DataError, match=r"--validation 0\.1 leaves the .* split empty with these 1 document\(s\): use a"
    ):
        run(tmp_path / "a.bin", small, validation=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin"]


def test_a_full_disk_is_told_and_the_same_command_begins_anew(small: str, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.bin", make_documents(10_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(
            DataError, match=r"out\.partial.* cannot be written \(File too large\): free some space or choose"
        ):
            run(path, small)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check(run(path, small))


def test_what_does_not_go_with_from_is_refused(small: str, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.bin", make_documents(20))

    def refused(message: str, source: Path = path, **options: Any) -> None:
        with pytest.raises(DataError, match=message):
            run(source, small, **options)

    refused(
        "--train-tokenizer does not go with --from, whose tokens are made: give the --tokenizer", train_tokenizer=300
    )
    refused("--train-tokenizer does not go with --from", tokenizer_sample=10**6)
    refused("--dtype int8 is not known: it is one of uint16, uint32", dtype="int8")
    refused("--from reads tokens: options that say how text is read do not go with it", reading=Reading(field="body"))
    refused("--from reads tokens", glob="*.bin")
    refused("--from reads tokens", format="text")
    refused("--drop-duplicates compares texts and does not go with --from", drop_duplicates=True)
    refused("give one of --tokenizer", tokenizer=None)
    refused(r"--from .*nope is neither a token file nor a folder of such: expected Megatron's", tmp_path / "nope")
    run(path, small)
    refused(r"--from .*out is a dataset already: use it as it is", tmp_path / "out", output=tmp_path / "again")
