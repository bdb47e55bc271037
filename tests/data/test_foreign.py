"""Other tools' token files: each format, written here as its own tool writes it, gives its tokens and documents."""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from scaletrain.config.schema import Data
from scaletrain.data.foreign.opening import is_foreign, open_foreign
from scaletrain.data.opening import open_data
from scaletrain.data.rows import IGNORED, split_rows
from scaletrain.data.shards import Dataset, Split, open_docs
from scaletrain.data.tokenizer import load_tokenizer

EOS = 3
CONTEXT = 16
Documents = list[list[int]]


def make_tokenizer(folder: Path, size: int) -> Path:
    """A tokenizer of so many words, the fourth of which ends documents."""
    words = {f"w{i}": i for i in range(size) if i != EOS} | {"<|endoftext|>": EOS}
    folder.mkdir()
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "w0")).save(str(folder / "tokenizer.json"))
    return folder


def make_documents(count: int, size: int = 1000, seed: int = 0, longest: int = 40) -> Documents:
    """Documents of different lengths, each closed."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, count)
    return [[*(rng.integers(4, size, int(length)).tolist()), EOS] for length in lengths]


def flat(documents: Documents) -> list[int]:
    return [token for document in documents for token in document]


def ends_of(documents: Documents) -> list[int]:
    return np.cumsum([len(document) for document in documents]).tolist()


def write_megatron(prefix: Path, documents: Documents, dtype: str = "uint16", pieces: int = 1) -> Path:
    """PREFIX.bin and .idx; with `pieces` a document is so many sequences, where it has as many tokens."""
    sequences, marks = [], [0]
    for document in documents:
        parts = (
            []
            if not document
            else [part.tolist() for part in np.array_split(document, min(pieces, len(document)) or 1)]
        )
        sequences += parts
        marks.append(len(sequences))
    size = np.dtype(dtype).itemsize
    lengths = [len(sequence) for sequence in sequences]
    prefix.with_name(prefix.name + ".bin").write_bytes(np.array(flat(sequences), dtype).tobytes())
    with prefix.with_name(prefix.name + ".idx").open("wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, {"uint16": 8, "int32": 4, "int64": 5}[dtype]))
        file.write(struct.pack("<QQ", len(sequences), len(marks)))
        file.write(np.array(lengths, np.int32).tobytes())
        file.write(np.array([size * sum(lengths[:i]) for i in range(len(lengths))], np.int64).tobytes())
        file.write(np.array(marks, np.int64).tobytes())
    return prefix


def write_npy(path: Path, documents: Documents, dtype: str = "uint16", version: tuple[int, int] | None = None) -> Path:
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.array(flat(documents), dtype), version)
    return path


def write_raw(path: Path, documents: Documents, dtype: str = "uint16") -> Path:
    """nanoGPT's and OLMo's: nothing but tokens."""
    np.array(flat(documents), dtype).tofile(path)
    return path


def write_llmc(path: Path, documents: Documents, dtype: str = "uint16") -> Path:
    header = np.zeros(256, np.int32)
    header[:3] = *((20240520, 1) if dtype == "uint16" else (20240801, 7)), len(flat(documents))
    path.write_bytes(header.tobytes() + np.array(flat(documents), dtype).tobytes())
    return path


def write_datatrove(path: Path, documents: Documents, dtype: str = "uint16", name: str = "gpt2") -> Path:
    tokens = np.array(flat(documents), dtype)
    path.write_bytes(tokens.tobytes())
    path.with_name(path.name + ".index").write_bytes(struct.pack(f"<{len(documents)}Q", *ends_of(documents)))
    path.with_name(path.name + ".metadata").write_text(f"{name}|{tokens.itemsize}\n{len(tokens)}\n{len(tokens)} T")
    return path


def stream(dataset: Dataset, split: Split = "train") -> list[int]:
    """The tokens of a split as training reads them: the inputs of all rows, and the last label of each shard."""
    rows = split_rows(dataset, split, CONTEXT)
    batch = rows.fetch(np.arange(len(rows)))
    lasts = set((np.cumsum(rows.shard_rows) - 1).tolist())
    found = []
    for row, (inputs, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        borne = labels != IGNORED
        found += inputs[borne].tolist() + (labels[borne][-1:].tolist() if row in lasts else [])
    return found


def documents_of(dataset: Dataset, split: Split = "train") -> list[list[int]]:
    return [open_docs(dataset, shard).tolist() for shard in dataset.shards(split)]


Writer = Callable[[Path, Documents, str], Path]
FORMATS: Sequence[tuple[str, str, str, Writer]] = [
    ("Megatron", "a", "uint16", write_megatron),
    ("Megatron", "a", "int32", write_megatron),
    ("numpy", "a.npy", "uint16", write_npy),
    ("numpy", "a.npy", "uint32", write_npy),
    ("numpy", "a.npy", "int32", write_npy),
    ("OLMo", "a.npy", "uint16", write_raw),
    ("OLMo", "a.npy", "uint32", write_raw),
    ("nanoGPT", "a.bin", "uint16", write_raw),
    ("nanoGPT", "a.bin", "uint32", write_raw),
    ("llm.c", "a.bin", "uint16", write_llmc),
    ("llm.c", "a.bin", "uint32", write_llmc),
    ("datatrove", "a.ds", "uint16", write_datatrove),
    ("datatrove", "a.ds", "uint32", write_datatrove),
]
NAMES = [f"{tool}-{dtype}" for tool, _, dtype, _ in FORMATS]


@pytest.mark.parametrize(("tool", "name", "dtype", "write"), FORMATS, ids=NAMES)
def test_tokens_and_documents_are_those_that_the_tool_wrote(
    tool: str, name: str, dtype: str, write: Writer, small: str, large: str, tmp_path: Path
) -> None:
    is_wide = dtype != "uint16"
    documents = make_documents(300, 70_000 if is_wide else 1000)
    path = write(tmp_path / name, documents, dtype)
    assert is_foreign(path)
    data = Data(path=str(path), tokenizer=large if is_wide else small, cache={"dir": str(tmp_path / "cache")})
    dataset = open_data(str(path), data)
    assert stream(dataset) == flat(documents)
    assert documents_of(dataset) == [ends_of(documents)]
    assert dataset.dtype == ("uint32" if is_wide else "uint16")
    assert dataset.documents("train") == (300 if tool in ("Megatron", "datatrove") else 0)
    assert dataset.bytes("train") == 0
    assert dataset.tokens("validation") == 0
    assert load_tokenizer(dataset.tokenizer_folder).fingerprint == dataset.tokenizer.fingerprint
    assert not list(tmp_path.glob("cache/**/*.lock")) + list(tmp_path.glob("cache/**/*.tmp"))


def open_small(path: Path, small: str | None, dtype: str | None = None) -> Dataset:
    return open_foreign(path, tokenizer=small, dtype=dtype, cache=path.parent / "cache")


def test_a_megatron_pair_is_found_by_prefix_and_by_either_file(small: str, tmp_path: Path) -> None:
    documents = make_documents(20)
    write_megatron(tmp_path / "pile.v1_text_document", documents)
    names = ("pile.v1_text_document", "pile.v1_text_document.bin", "pile.v1_text_document.idx")
    opened = [open_small(tmp_path / name, small) for name in names if is_foreign(tmp_path / name)]
    assert [stream(dataset) for dataset in opened] == [flat(documents)] * 3
    assert len({dataset.fingerprint for dataset in opened}) == 1
    assert (opened[0].train[0].file, opened[0].train[0].docs_file) == names[1:]


def test_a_megatron_document_may_be_several_sequences_or_none(small: str, tmp_path: Path) -> None:
    documents = make_documents(50)
    path = write_megatron(tmp_path / "sentences", documents, pieces=4)
    assert documents_of(open_small(path, small)) == [ends_of(documents)]
    documents[20:20] = [[], []]
    path = write_megatron(tmp_path / "empty", documents)
    dataset = open_small(path, small)
    assert documents_of(dataset) == [list(dict.fromkeys(ends_of(documents)))]
    assert stream(dataset) == flat(documents)


def test_megatron_documents_need_no_end_of_text_id(small: str, tmp_path: Path) -> None:
    documents = [[5, 6], [7, EOS, 8], [9]]
    dataset = open_small(write_megatron(tmp_path / "open", documents), small)
    assert documents_of(dataset) == [[2, 5, 6]]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_headers_of_every_version_are_read(version: tuple[int, int], small: str, tmp_path: Path) -> None:
    documents = make_documents(20)
    assert stream(open_small(write_npy(tmp_path / "a.npy", documents, version=version), small)) == flat(documents)


def test_dtype_in_the_recipe_goes_before_the_tokenizer_size(small: str, tmp_path: Path) -> None:
    documents = make_documents(100)
    path = write_raw(tmp_path / "a.npy", documents, "uint32")
    assert stream(open_small(path, small, "uint32")) == flat(documents)


def test_datatrove_files_without_metadata_or_index_are_read(small: str, tmp_path: Path) -> None:
    documents = make_documents(50)
    path = write_datatrove(tmp_path / "a.ds", documents, "uint32")
    path.with_name("a.ds.metadata").unlink()
    assert stream(open_small(path, small)) == flat(documents)
    path = write_datatrove(tmp_path / "b.ds", documents, "uint32")
    path.with_name("b.ds.index").unlink()
    path.with_name("b.ds.metadata").write_text(f"gpt2\n{len(flat(documents))}\n2.1 kT")  # as older versions write it
    dataset = open_small(path, small)
    assert (dataset.dtype, stream(dataset), documents_of(dataset)) == ("uint32", flat(documents), [ends_of(documents)])
    path.with_name("b.ds.metadata").unlink()
    assert stream(open_small(path, small, "uint32")) == flat(documents)


def test_the_last_document_may_lack_its_end(small: str, tmp_path: Path) -> None:
    documents = [[5, 6, EOS], [7, 8]]
    dataset = open_small(write_raw(tmp_path / "a.bin", documents), small)
    assert documents_of(dataset) == [[3, 5]]


def test_documents_are_searched_block_by_block_once_and_kept(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_documents(200)
    path = write_raw(tmp_path / "a.bin", documents)
    monkeypatch.setattr("scaletrain.data.foreign.documents._BLOCK", 7)
    dataset = open_small(path, small)
    assert not (tmp_path / "cache/documents").exists(), "only when documents are asked for"
    assert documents_of(dataset) == [ends_of(documents)]
    (kept,) = (tmp_path / "cache/documents").iterdir()
    assert np.load(kept).tolist() == ends_of(documents)
    before = kept.stat().st_mtime_ns
    assert documents_of(open_small(path, small)) == [ends_of(documents)]
    assert kept.stat().st_mtime_ns == before
    kept.write_bytes(kept.read_bytes()[:-3])  # what a crash may leave
    assert documents_of(dataset) == [ends_of(documents)]


def test_a_changed_file_has_its_documents_searched_anew(small: str, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.bin", [[5, EOS], [6, 7, EOS]])
    assert documents_of(open_small(path, small)) == [[2, 5]]
    path = write_raw(tmp_path / "a.bin", [[5, 6, 7, EOS], [6, 7, EOS]])
    assert documents_of(open_small(path, small)) == [[4, 7]]


def test_megatron_ends_are_read_block_by_block(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = make_documents(100)
    path = write_megatron(tmp_path / "a", documents, pieces=3)
    monkeypatch.setattr("scaletrain.data.foreign.megatron._BLOCK", 7)
    assert documents_of(open_small(path, small)) == [ends_of(documents)]


def test_the_fingerprint_is_of_tokens_documents_and_tokenizer(small: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        write_megatron(folder / "a", make_documents(30))
    before = open_small(one / "a", small).fingerprint
    assert open_small(other / "a", small).fingerprint == before
    write_megatron(other / "a", make_documents(30, seed=1))
    assert open_small(other / "a", small).fingerprint != before
    write_megatron(other / "a", make_documents(30), pieces=2)  # the same tokens
    assert open_small(other / "a", small).fingerprint != before
    config = json.loads((Path(small) / "tokenizer.json").read_text())
    config["model"]["vocab"]["w1000"] = 1000
    (tmp_path / "other.json").write_text(json.dumps(config))
    assert open_small(one / "a", str(tmp_path / "other.json")).fingerprint != before
