"""Other tools' token files that are damaged, of another kind or of another tokenizer: each refused in one line."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaletrain.errors import DataError
from tests.data.test_foreign import (
    EOS,
    documents_of,
    make_documents,
    open_small,
    write_datatrove,
    write_llmc,
    write_megatron,
    write_npy,
    write_raw,
)


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def test_faults_of_a_megatron_pair_are_told(small: str, tmp_path: Path) -> None:
    documents = [[5, 6, EOS], [7, EOS], [8, 9, EOS]]  # 8 tokens, 3 sequences: marks from byte 34 + 12 * 3 on
    prefix, idx, tokens = tmp_path / "a", tmp_path / "a.idx", tmp_path / "a.bin"

    def refused(change: Callable[[bytes], bytes], message: str, file: Path = idx) -> None:
        write_megatron(prefix, documents)
        damage(file, change)
        with pytest.raises(DataError, match=message):
            documents_of(open_small(prefix, small))

    refused(
        lambda data: b"TNTIDX\x00\x00" + data[8:],
        r"a\.idx is an index of the old form TNTIDX, which is not read: .*mmap",
    )
    refused(lambda data: b"junk", r"a\.idx is no index of Megatron \(it does not begin with MMIDIDX\): copy it again")
    refused(
        lambda data: data[:9] + b"\x02" + data[10:], r"is an index of version 2, only 1 is read: write the files again"
    )
    refused(
        lambda data: data[:17] + b"\x03" + data[18:], r"are of type int16: only uint16 and int32 are read; write the"
    )
    refused(lambda data: data[:17] + b"\x09" + data[18:], r"are of type number 9: only uint16")
    refused(
        lambda data: data[:-1],
        r"a\.idx has 101 bytes, by its header it has 102 \(3 sequences, 4 document marks\): it is",
    )
    refused(
        lambda data: data[:-8] + struct.pack("<q", 2), r"documents over the sequences \[0, 2\], expected \[0, 3\]: it"
    )
    refused(
        lambda data: data[:46] + struct.pack("<q", 2) + data[54:],
        r"from byte 2 to 10 with 3 tokens in the last: its \.bin",
    )
    refused(
        lambda data: data[:54] + struct.pack("<q", 7) + data[62:], r"has a sequence inside of a token: it is damaged"
    )
    refused(
        lambda data: data[:78] + struct.pack("<q", 3) + data[86:], r"has document marks that go back: it is damaged"
    )
    refused(
        lambda data: data[:54] + struct.pack("<q", 12) + data[62:], r"a document that ends at token 5, before it begins"
    )
    refused(
        lambda data: data[:-2],
        r"a\.bin has 14 bytes, by its header it has 16 \(0 \+ 8 tokens x 2\): it is damaged",
        tokens,
    )
    tokens.unlink()
    with pytest.raises(DataError, match=r"a\.bin is missing, its index .*a\.idx is there: copy both files"):
        open_small(prefix, small)


def test_faults_of_npy_files_are_told(small: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"

    def refused(message: str, dtype: str | None = None) -> None:
        with pytest.raises(DataError, match=message):
            open_small(path, small, dtype)

    np.save(path, np.zeros((3, 4), np.uint16))
    refused(r"a\.npy has the shape \(3, 4\): only one dimension is read, write it with array\.reshape\(-1\)")
    np.save(path, np.zeros(3, np.int64))
    refused(
        r"a\.npy holds int64 \(<i8\): only uint16, uint32 and int32 \(little-endian\) are read; write it with array"
    )
    np.save(path, np.zeros(3, ">u2"))
    refused(r"a\.npy holds uint16 \(>u2\): only")
    np.save(path, np.full(30, 7, np.uint16))
    refused(r"data\.dtype=uint32, and .*a\.npy itself says uint16: leave data\.dtype out", "uint32")
    damage(path, lambda data: data[:-4])
    refused(r"a\.npy has 184 bytes, by its header it has 188 \(128 \+ 30 tokens x 2\): it is damaged, copy it again")
    damage(path, lambda data: data[:20])
    refused(r"a\.npy has a damaged \.npy header \(.*\): copy it again")


def test_faults_of_files_without_header_are_told(small: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x05\x00" * 10 + b"\x05")
    with pytest.raises(
        DataError, match=r"a\.bin has 21 bytes, no multiple of the 2 of a uint16: it is cut short, no file"
    ):
        open_small(path, small)
    write_raw(path, make_documents(100), "uint32")
    with pytest.raises(
        DataError, match=r"no id above 0 at any second token: its tokens are of 4 bytes.*data\.dtype=uint32"
    ):
        open_small(path, small)


def test_faults_of_llmc_files_are_told(small: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"

    def refused(change: Callable[[bytes], bytes], message: str) -> None:
        write_llmc(path, [[5, 6, EOS]])
        damage(path, change)
        with pytest.raises(DataError, match=message):
            open_small(path, small)

    refused(lambda data: data[:1000], r"a\.bin has 1,000 bytes, fewer than the 1,024 of its header: copy it again")
    refused(
        lambda data: data[:-2], r"a\.bin has 1,028 bytes, by its header it has 1,030 \(1,024 \+ 3 tokens x 2\): it is"
    )
    refused(
        lambda data: data[:4] + b"\x02" + data[5:], r"an llm\.c file 20240520 of version 2, only 1 is read: write it"
    )
    refused(
        lambda data: struct.pack("<i", 20240522) + data[4:], r"multiple-choice examples of llm\.c, no text: move it"
    )
    refused(
        lambda data: data[:8] + struct.pack("<i", -5) + data[12:], r"number of tokens -5 in its header: write it in"
    )


def test_faults_of_datatrove_files_are_told(small: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ds"
    documents = [[5, 6, EOS], [7, EOS]]

    def refused(name: str, content: bytes, message: str, given: str | None = small) -> None:
        write_datatrove(path, documents)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            documents_of(open_small(path, given))

    refused(
        "a.ds",
        b"1234567",
        r"a\.ds has 7 bytes, and by its files 5 tokens in .*\.index and 5 tokens in .*\.metadata, of 2",
    )
    refused("a.ds.metadata", b"gpt2|2\n6\n6 T", r"5 tokens in .*\.index and 6 tokens in .*one of them is damaged")
    refused("a.ds.index", b"123", r"a\.ds\.index has 3 bytes, no multiple of the 8 of a document end: it is damaged")
    refused("a.ds.index", struct.pack("<3Q", 4, 3, 5), r"a\.ds\.index has a document that ends at token 3, before it")
    refused(
        "a.ds.metadata",
        b"my/own|2\n5\n5 T",
        r"\(datatrove\) does not carry its tokenizer \(its metadata say my/own\)",
        None,
    )
    refused("a.ds.loss", b"\x01" * 5, r"a\.ds\.loss takes the loss from some tokens, which is not read: move it away")


def test_an_index_that_ends_before_the_tokens_is_told(small: str, tmp_path: Path) -> None:
    path = write_datatrove(tmp_path / "a.ds", [[5, 6, EOS], [7, EOS]])
    dataset = open_small(path, small)
    path.with_name("a.ds.index").write_bytes(struct.pack("<Q", 3))
    with pytest.raises(
        DataError, match=r"has the end of its last document at token 3, .*a\.ds has 5 tokens: copy both"
    ):
        documents_of(dataset)


def test_ids_that_the_tokenizer_lacks_are_told_with_their_place(small: str, large: str, tmp_path: Path) -> None:
    tokens = np.full(3_000_000, 7, np.uint16)
    for place in (0, 2_999_999):
        wrong = tokens.copy()
        wrong[place] = 1000
        wrong.tofile(tmp_path / "a.bin")
        with pytest.raises(
            DataError,
            match=rf"the id 1000 at token {place:,}, tokenizer small has the ids 0 to 999: set data\.tokenizer to the "
            r"one that made the file, or data\.dtype, if its tokens are not uint16",
        ):
            open_small(tmp_path / "a.bin", small)
    path = write_npy(tmp_path / "a.npy", [[5, -1, EOS]], "int32")
    with pytest.raises(
        DataError, match=r"the id -1 at token 1, tokenizer .*: set data\.tokenizer to the one that made the file$"
    ):
        open_small(path, small)
    write_raw(tmp_path / "b.bin", [[5, 6, 7, EOS]] * 50, "uint16")
    with pytest.raises(DataError, match=r"tokenizer large has the ids 0 to 69999: .* if its tokens are not uint32"):
        open_small(tmp_path / "b.bin", large)


def test_a_missing_tokenizer_is_told(small: str, tmp_path: Path) -> None:
    path = write_npy(tmp_path / "a.npy", [[5, EOS]])
    with pytest.raises(
        DataError, match=r"data\.tokenizer is not set: .*a\.npy \(numpy\) does not carry its tokenizer; set it"
    ):
        open_small(path, None)


def test_a_file_that_vanishes_or_shrinks_is_told(small: str, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.bin", make_documents(50))
    dataset = open_small(path, small)
    damage(path, lambda data: data[:-2])
    with pytest.raises(DataError, match=r"a\.bin became shorter while it was read: copy it again"):
        documents_of(dataset)
    path.unlink()
    with pytest.raises(
        DataError, match=r"a\.bin cannot be read \(No such file or directory\): copy it again, or make it"
    ):
        documents_of(dataset)


def test_a_cache_that_cannot_be_written_is_told(small: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(
        DataError, match=r"the cache .*cache cannot be written \(Not a directory\): free some space, or set"
    ):
        open_small(write_raw(tmp_path / "a.bin", [[5, EOS]]), small)
