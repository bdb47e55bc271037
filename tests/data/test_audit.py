"""A dataset's audit: each kind of damage is one line. A run's order computed again: each wrong sample is found."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from scaletrain.config.schema import Cache, Data
from scaletrain.data.audit.dataset import DatasetReport, audit_dataset, open_to_audit
from scaletrain.data.audit.order import Usage, compute_digests
from scaletrain.data.audit.samples import decode_samples
from scaletrain.data.mixture import SOURCE_SHIFT, MixtureOrder, Segment
from scaletrain.data.order import Order, SampleOrder, digest
from scaletrain.data.shards import HEADER_BYTES, Dataset, Shard, TokenizerInfo, dataset_fingerprint
from scaletrain.data.shuffle import Ids
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.data.training_data import open_training_data
from scaletrain.errors import DataError
from scaletrain.runtime.files import hash_file

EOS = 0
PLAIN = Data()


@pytest.fixture
def folder(dataset: Dataset, tmp_path: Path) -> Path:
    shutil.copytree(dataset.path, tmp_path / "data")
    return tmp_path / "data"


def audit(where: Path | str, data: Data = PLAIN) -> DatasetReport:
    opened = open_to_audit(str(where), data)
    done: list[int] = []
    report = audit_dataset(opened, done.append, workers=2)
    if not report.faults:
        assert sum(done) == opened.bytes == report.bytes
    return report


def faults(where: Path | str, data: Data = PLAIN) -> list[str]:
    return [str(fault) for fault in audit(where, data).faults]


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None], *, is_signed: bool = True) -> None:
    """Changes the index; signed, its fingerprint is made anew, as by someone who writes datasets himself."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    change(index)
    if is_signed:
        train, validation = (tuple(Shard(**shard) for shard in index[split]) for split in ("train", "validation"))
        tokenizer = TokenizerInfo(**index["tokenizer"])
        index["fingerprint"] = dataset_fingerprint(index["dtype"], tokenizer, train, validation)
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def rewrite(folder: Path, name: str, change: Callable[[npt.NDArray[Any]], None], number: int = 0) -> None:
    """Changes the values of a file of the train split, and the index to agree with it."""
    values = np.load(folder / name)
    change(values)
    np.save(folder / name, values)
    key = "docs_xxh3" if name.startswith("docs") else "xxh3"
    edit_index(folder, lambda index: index["train"][number].__setitem__(key, hash_file(folder / name)))


def put(place: int, value: int) -> Callable[[npt.NDArray[Any]], None]:
    return lambda values: values.__setitem__(place, value)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_whole_dataset_has_no_fault_and_the_counts_of_its_files(dataset: Dataset) -> None:
    report = audit(dataset.path)
    arrays = [np.load(path) for path in dataset.path.rglob("tokens-*.npy")]
    assert (report.faults, report.notes) == ((), ())
    assert report.tokens == sum(map(len, arrays))
    assert report.documents == sum(int((array == EOS).sum()) for array in arrays)
    assert report.files == len(list(dataset.path.rglob("*.npy")))


def test_a_flipped_bit_is_found_by_the_hash_alone(dataset: Dataset, folder: Path) -> None:
    tokens = np.load(folder / "tokens-00001.npy")
    at = int(np.flatnonzero(tokens > 10)[50])
    flip(folder / "tokens-00001.npy", HEADER_BYTES + 2 * at)
    found = hash_file(folder / "tokens-00001.npy")
    expected = dataset.train[1].xxh3
    assert faults(folder) == [f"tokens-00001.npy: xxh3: expected {expected}, found {found}"]


def test_a_truncated_file_and_a_missing_one_are_told_with_all_else(dataset: Dataset, folder: Path) -> None:
    path = folder / "tokens-00000.npy"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    (folder / "docs-00002.npy").unlink()
    (folder / "validation" / "tokens-00000.npy").unlink()
    held = dataset.validation[0].tokens * 2 + HEADER_BYTES
    assert faults(folder) == [
        f"tokens-00000.npy: size: expected {size:,} bytes, found {size - 2:,}",
        f"docs-00002.npy: the file is missing: expected {HEADER_BYTES + 8} bytes, found no file",
        f"validation/tokens-00000.npy: the file is missing: expected {held:,} bytes, found no file",
    ]


def test_another_header_is_told(folder: Path) -> None:
    path = folder / "tokens-00000.npy"
    path.write_bytes(path.read_bytes().replace(b"<u2", b"<i2", 1))
    (fault,) = faults(folder)
    assert fault.startswith("tokens-00000.npy: the .npy header: expected \"{'descr': '<u2', 'fortran_order': False,")
    assert "found \"{'descr': '<i2'" in fault


def test_changed_document_ends_are_told_by_hash_and_by_the_tokens(folder: Path) -> None:
    ends = np.load(folder / "docs-00003.npy")
    assert len(ends) == 2
    moved = int(ends[0]) - 1
    token = int(np.load(folder / "tokens-00003.npy")[moved - 1])
    ends[0] = moved
    np.save(folder / "docs-00003.npy", ends)
    hashed, unclosed, inner = faults(folder)
    assert hashed.startswith("docs-00003.npy: xxh3: expected ")
    assert unclosed == (
        "tokens-00003.npy: 1 documents do not end with the end-of-text id, the first at token "
        f"{moved - 1:,}: expected the end-of-text id 0, found {token}"
    )
    assert inner == (
        f"tokens-00003.npy: 1 end-of-text ids stand inside of documents, the first at token {moved:,}: "
        "expected no end-of-text id, found 0"
    )


def test_document_ends_that_do_not_increase_or_do_not_reach_the_end_are_told(folder: Path) -> None:
    first, last = map(int, np.load(folder / "docs-00003.npy"))
    rewrite(folder, "docs-00003.npy", put(1, first), number=3)
    assert faults(folder) == [
        "docs-00003.npy: 1 document ends do not increase, the first that of document 1: "
        f"expected above {first:,}, found {first:,}",
        f"docs-00003.npy: the last document's end: expected the shard's {last:,} tokens, found {first:,}",
    ]


def test_an_id_beyond_the_vocabulary_is_told_with_its_place(folder: Path) -> None:
    rewrite(folder, "tokens-00000.npy", lambda tokens: tokens.__setitem__(slice(77, 80), (600, 511, 513)))
    assert faults(folder) == [
        "tokens-00000.npy: 2 token ids are outside of the vocabulary, the first at token 77: "
        "expected below the vocabulary's 512, found 600"
    ]


def test_a_missing_end_of_text_and_one_inside_of_a_document_are_told(folder: Path) -> None:
    rewrite(folder, "tokens-00000.npy", put(-1, 9))
    rewrite(folder, "tokens-00001.npy", lambda tokens: tokens.__setitem__(slice(5, 7), EOS), number=1)
    last = len(np.load(folder / "tokens-00000.npy")) - 1
    assert faults(folder) == [
        "tokens-00000.npy: 1 documents do not end with the end-of-text id, the first at token "
        f"{last:,}: expected the end-of-text id 0, found 9",
        "tokens-00001.npy: 2 end-of-text ids stand inside of documents, the first at token 5: "
        "expected no end-of-text id, found 0",
    ]


def test_totals_that_are_no_sum_are_told(dataset: Dataset, folder: Path) -> None:
    def change(index: dict[str, Any]) -> None:
        index["totals"]["train"]["tokens"] += 1
        index["train"][0]["bytes"] += 5
        del index["totals"]["validation"]["documents"]

    edit_index(folder, change)
    tokens, size = dataset.tokens("train"), dataset.bytes("train")
    assert faults(folder) == [
        f"index.json: the total tokens of train: expected {tokens}, found {tokens + 1}",
        f"index.json: the total bytes of train: expected {size + 5}, found {size}",
        f"index.json: the total documents of validation: expected {dataset.documents('validation')}, found none",
    ]


def test_a_foreign_fingerprint_is_told_and_the_rest_is_looked_at(dataset: Dataset, folder: Path) -> None:
    edit_index(folder, lambda index: index.__setitem__("fingerprint", "0" * 32), is_signed=False)
    flip(folder / "tokens-00000.npy", HEADER_BYTES)
    first, *rest = faults(folder)
    assert first == f"index.json: the fingerprint of its content: expected {'0' * 32}, found {dataset.fingerprint}"
    assert rest[0].startswith("tokens-00000.npy: xxh3")


def test_an_index_that_cannot_be_read_is_one_line(folder: Path) -> None:
    (folder / "index.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"index\.json cannot be read \(JSONDecodeError"):
        audit(folder)


def test_the_tokenizer_must_be_the_one_that_the_index_names(dataset: Dataset, folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    a, b = list(vocab)[300:302]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(content), encoding="utf-8")
    other = load_tokenizer(folder / "tokenizer").fingerprint
    assert faults(folder) == [f"tokenizer: fingerprint: expected {dataset.tokenizer.fingerprint}, found {other}"]
    path.write_text("{", encoding="utf-8")
    assert "is no tokenizer of the tokenizers library" in faults(folder)[0]
    shutil.rmtree(folder / "tokenizer")
    assert faults(folder) == ["tokenizer: the folder is missing: expected a tokenizer, found no folder"]


def test_files_that_the_index_does_not_list_are_noted(folder: Path) -> None:
    shutil.copy(folder / "tokens-00000.npy", folder / "tokens-00099.npy")
    report = audit(folder)
    assert [str(note) for note in report.notes] == ["tokens-00099.npy: the index does not list this file"]
    assert report.faults == ()


def test_a_dataset_at_a_url_is_read_through_the_cache_which_may_be_damaged_too(
    dataset: Dataset, folder: Path, tmp_path: Path
) -> None:
    url, data = f"file://{folder}", Data(cache=Cache(dir=str(tmp_path / "cache")))
    assert audit(url, data).tokens == dataset.tokens("train") + dataset.tokens("validation")
    flip(tmp_path / "cache" / "shards" / dataset.train[0].xxh3, HEADER_BYTES + 2)
    (tmp_path / "cache" / "shards" / dataset.train[1].docs_xxh3).unlink()
    (folder / "docs-00001.npy").unlink()
    edit_index(folder, lambda index: index["totals"]["train"].__setitem__("tokens", 3))
    found = faults(url, data)
    assert found[0].startswith(f"tokens-00000.npy: xxh3: expected {dataset.train[0].xxh3}")
    assert found[1].startswith(f"docs-00001.npy: {url}/docs-00001.npy does not exist")
    assert found[2:] == [f"index.json: the total tokens of train: expected {dataset.tokens('train')}, found 3"]


@dataclass(frozen=True)
class RawFiles:
    """Tokens in a raw file after eight bytes of something else, as other tools write them."""

    path: Path
    ends: npt.NDArray[np.uint64]

    def tokens(self, shard: Shard) -> tuple[Path, int]:
        return self.path, 8

    def document_ends(self, shard: Shard) -> npt.NDArray[np.uint64]:
        return self.ends

    def prefetch(self, shards: Any) -> None: ...


def test_another_tools_file_without_hashes_is_counted_and_its_open_documents_are_noted(
    dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "train.bin"
    tokens = np.array([5, EOS, 6, 7, EOS, 8, 9], dtype="<u2")
    path.write_bytes(b"12345678" + tokens.tobytes())
    files = RawFiles(path, np.array([2, 4, 7], np.uint64))
    opened = open_to_audit(str(dataset.path), Data())
    other = replace(dataset, files=files, train=(Shard("train.bin", "", 7, 3, 0, "", ""),), validation=())
    report = audit_dataset(replace(opened, dataset=other, totals=None), lambda done: None, workers=1)
    assert (report.faults, report.tokens, report.documents, report.files) == ((), 7, 3, 1)
    assert [str(note).split(":")[1] for note in report.notes] == [
        " 2 documents do not end with the end-of-text id, the first at token 3",
        " 1 end-of-text ids stand inside of documents, the first at token 4",
    ]
    path.write_bytes(b"12345678" + tokens.tobytes()[:-1])
    report = audit_dataset(replace(opened, dataset=other, totals=None), lambda done: None, workers=1)
    assert [str(fault) for fault in report.faults] == ["train.bin: size: expected 22 bytes, found 21"]


def test_a_large_shard_is_looked_at_across_blocks(dataset: Dataset, tmp_path: Path) -> None:
    count = (9 << 20) // 2 + 3  # three blocks, the last a short one
    tokens = np.full(count, 7, dtype="<u2")
    ends = np.array([1 << 20, 2 << 20, (2 << 20) + 1, count], np.uint64)
    tokens[ends.astype(np.int64) - 1] = EOS
    path = tmp_path / "train.bin"
    opened = open_to_audit(str(dataset.path), Data())
    other = replace(dataset, files=RawFiles(path, ends), train=(Shard("train.bin", "", count, 4, 0, "", ""),))
    opened = replace(opened, dataset=replace(other, validation=()), totals=None)
    path.write_bytes(b"12345678" + tokens.tobytes())
    report = audit_dataset(opened, lambda done: None, workers=1)
    assert (report.faults, report.notes, report.tokens) == ((), (), count)
    tokens[[(2 << 20) - 1, (2 << 20) + 5]] = 8, 512
    path.write_bytes(b"12345678" + tokens.tobytes())
    report = audit_dataset(opened, lambda done: None, workers=1)
    assert "the first at token 2,097,151" in str(report.notes[0])
    assert "1 token ids are outside of the vocabulary, the first at token 2,097,157" in str(report.faults[0])


def orders() -> list[SampleOrder]:
    rows = np.array([300, 0, 500, 200, 700], dtype=np.int64)
    parts = {"a": Order(rows, 1), "b": Order(rows[:3], 2, window=2)}
    segments = [Segment(0, {"a": 700_000, "b": 300_000}), Segment(40_001, {"a": 100_000, "b": 900_000})]
    return [Order(rows, 7), Order(rows, 7, window=2), Order(rows, 7, shuffle=False), MixtureOrder(parts, segments, 3)]


@pytest.mark.parametrize("order", orders(), ids=["full", "window", "stored", "mixture"])
def test_digests_and_use_are_those_of_the_samples_one_after_the_other(order: SampleOrder) -> None:
    cuts = [96, 1, 40_000, 1 << 15, 70_003, 96]
    is_mixed = isinstance(order, MixtureOrder)
    usage = Usage({"a": 1700, "b": 800} if is_mixed else {"data": 1700})
    done: list[int] = []
    found = compute_digests(order, cuts, done.append, workers=3, usage=usage, used=60_000)
    ids = order.ids(0, 70_003)
    assert found == {n: digest(np.arange(n), ids[:n]) for n in set(cuts)}
    assert sum(done) == 70_003
    uses, wrong = usage.finish()
    counted = np.bincount(ids[:60_000] >> SOURCE_SHIFT).tolist()
    assert [use.samples for use in uses] == counted
    assert [use.epochs for use in uses] == [n // use.rows for n, use in zip(counted, uses, strict=True)]
    assert wrong == []


def test_nothing_to_prove_needs_no_sample() -> None:
    assert compute_digests(orders()[0], [], lambda done: None, workers=1) == {}
    assert compute_digests(orders()[0], [0], lambda done: None, workers=1) == {0: 0}


@pytest.mark.parametrize(
    ("place", "row", "epoch", "read", "different"),
    [
        (3, 5, 1, 100, 99),  # a row twice, so another not at all
        (150, 130, 2, 100, 99),  # a row that does not exist
        (205, 0, 3, 50, 49),  # in the part of an epoch at the end
    ],
)
def test_a_row_that_is_wrong_in_an_epoch_is_told(place: int, row: int, epoch: int, read: int, different: int) -> None:
    ids = np.arange(250) % 100
    ids[place] = row
    usage = Usage({"web": 100})
    for part in np.array_split(ids, 7):
        usage.add(part)
    uses, wrong = usage.finish()
    assert uses[0].samples == 250
    assert [str(fault) for fault in wrong] == [
        f"source web: rows in epoch {epoch}: expected {read} different ones, found {different}"
    ]


def test_sources_beyond_the_bound_are_counted_and_said_to_be_unchecked() -> None:
    usage = Usage({"big": 1000, "small": 10}, most_rows=500)
    ids: Ids = np.concatenate([np.zeros(5, np.int64), np.arange(12) % 10 + (1 << SOURCE_SHIFT)])
    usage.add(ids)
    uses, wrong = usage.finish()
    assert [(use.samples, use.is_checked) for use in uses] == [(5, False), (12, True)]
    assert wrong == []


@pytest.mark.parametrize("packing", ["cut", "best_fit"])
def test_decoded_samples_are_the_tokens_of_the_batch_document_by_document(
    packing: str, dataset: Dataset, tmp_path: Path
) -> None:
    cache = Cache(dir=str(tmp_path))
    options = Data.model_validate(
        {"path": str(dataset.path), "context_length": 500, "packing": packing, "cache": cache}
    )
    data = open_training_data(options, seed=1)
    rows, tokenizer = data.train["data"], load_tokenizer(dataset.tokenizer_folder)
    numbers = list(range(len(rows)))
    samples = decode_samples(data, "train", [("data", row) for row in numbers])
    texts: dict[str, dict[int, list[int]]] = {}
    for row, sample in zip(numbers, samples, strict=True):
        inputs = rows.fetch(np.array([row]))["input_ids"][0].tolist()
        shown = sum(piece.tokens for piece in sample.pieces)
        assert shown + sample.padding == 500
        place = 0
        for piece in sample.pieces:
            tokens = inputs[place : place + piece.tokens]
            place += piece.tokens
            assert piece.text == tokenizer.decode(tokens, skip_special_tokens=False)
            assert piece.is_end == (tokens[-1] == EOS)
            assert EOS not in tokens[:-1]
            stored = np.load(dataset.path / piece.file)[piece.first_token :][: piece.tokens]
            assert stored.tolist() == tokens
            ends = [0, *np.load(dataset.path / piece.file.replace("tokens", "docs")).tolist()]
            assert piece.first_token - piece.document_token == ends[piece.document]
            texts.setdefault(piece.file, {})[piece.first_token] = tokens
    for (
        file,
        parts,
    ) in texts.items():  # all rows together are each file, once (cut rows leave the last token to a label)
        joined = [token for start in sorted(parts) for token in parts[start]]
        whole = np.load(dataset.path / file).tolist()
        assert joined in (whole, whole[:-1])
