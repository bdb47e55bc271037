"""Best-fit packing: the same rows as placing one document at a time, each token once, no document cut that fits."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.data.packing import Packing, cut_documents, pack_documents, read_counts
from scaletrain.errors import DataError

LENGTHS = st.lists(st.integers(0, 40), max_size=80)
# Many documents of few lengths: rows of equal room, which the packing fills together.
MANY = st.dictionaries(st.integers(0, 30), st.integers(1, 12), max_size=6).map(
    lambda counts: [length for length, count in counts.items() for _ in range(count)]
)
CONTEXTS = st.integers(1, 24)


def ends_of(lengths: list[int]) -> np.ndarray:
    return np.cumsum(np.array(lengths, dtype=np.uint64), dtype=np.uint64)


def rows_of(packing: Packing) -> list[list[tuple[int, int]]]:
    """(start, length) of the pieces of each row."""
    pieces = list(zip(packing.starts.tolist(), packing.lengths.tolist(), strict=True))
    return [pieces[low:high] for low, high in zip(packing.rows[:-1].tolist(), packing.rows[1:].tolist(), strict=True)]


def place_one_at_a_time(lengths: list[int], context: int) -> list[int]:
    """Tokens in each row by best-fit decreasing as it is defined."""
    pieces = [context for length in lengths for _ in range(length // context)]
    pieces += [length % context for length in lengths if length % context]
    filled: list[int] = []
    for piece in sorted(pieces, reverse=True):
        fits = [row for row, tokens in enumerate(filled) if tokens + piece <= context]
        if fits:
            filled[max(fits, key=lambda row: filled[row])] += piece
        else:
            filled.append(piece)
    return filled


@given(LENGTHS | MANY, CONTEXTS)
def test_rows_are_filled_as_by_placing_one_document_at_a_time(lengths: list[int], context: int) -> None:
    packing = pack_documents(ends_of(lengths), context)
    filled = [sum(length for _, length in row) for row in rows_of(packing)]
    wanted = place_one_at_a_time(lengths, context)
    assert sorted(filled) == sorted(wanted)
    assert len(packing) == len(wanted)


def test_long_rows_are_filled_as_by_placing_one_document_at_a_time() -> None:
    lengths = np.random.default_rng(1).lognormal(4, 1.2, 600).astype(int).tolist()
    for context in (100, 256, 1000):
        filled = [sum(length for _, length in row) for row in rows_of(pack_documents(ends_of(lengths), context))]
        assert sorted(filled) == sorted(place_one_at_a_time(lengths, context))


@given(LENGTHS | MANY, CONTEXTS)
def test_each_token_is_used_once_and_no_row_is_longer_than_the_context(lengths: list[int], context: int) -> None:
    packing = pack_documents(ends_of(lengths), context)
    used = [token for row in rows_of(packing) for start, length in row for token in range(start, start + length)]
    assert sorted(used) == list(range(sum(lengths)))
    assert all(0 < sum(length for _, length in row) <= context for row in rows_of(packing))
    assert packing.rows.tolist()[0] == 0
    assert packing.rows.tolist()[-1] == len(packing.starts)


@given(LENGTHS | MANY, CONTEXTS)
def test_only_documents_longer_than_the_context_are_cut(lengths: list[int], context: int) -> None:
    packing = pack_documents(ends_of(lengths), context)
    pieces = sorted(zip(packing.starts.tolist(), packing.lengths.tolist(), strict=True))
    wanted = []
    for begin, length in zip(np.cumsum([0, *lengths]).tolist(), lengths, strict=False):
        wanted += [(begin + at, min(context, length - at)) for at in range(0, length, context)]
    assert pieces == wanted
    assert packing.cut_documents == sum(length > context for length in lengths)


@given(LENGTHS | MANY, CONTEXTS)
def test_pieces_of_a_cut_document_keep_their_order(lengths: list[int], context: int) -> None:
    packing = pack_documents(ends_of(lengths), context)
    for begin, length in zip(np.cumsum([0, *lengths]).tolist(), lengths, strict=False):
        mine = [int(start) for start in packing.starts if begin <= start < begin + length]
        assert mine == sorted(mine)
    for row in rows_of(packing):
        assert row == sorted(row), "within a row pieces stand as in the shard"
    last = [row[-1][0] for row in rows_of(packing)]
    assert last == sorted(last), "rows follow their last piece"


@given(LENGTHS | MANY, CONTEXTS)
def test_padding_is_what_the_rows_do_not_hold(lengths: list[int], context: int) -> None:
    packing = pack_documents(ends_of(lengths), context)
    places = len(rows_of(packing)) * context
    assert packing.tokens == sum(lengths)
    assert packing.padding_tokens == places - sum(lengths)
    assert packing.padding == (packing.padding_tokens / places if places else 0.0)


def test_a_whole_fit_is_found_where_next_fit_would_leave_holes() -> None:
    packing = pack_documents(ends_of([6, 5, 4, 3, 2, 10, 0]), 10)
    assert rows_of(packing) == [[(0, 6), (11, 4)], [(6, 5), (15, 3), (18, 2)], [(20, 10)]]
    assert packing.padding_tokens == 0


def test_rows_that_a_length_leaves_over_take_the_next_one() -> None:
    # Five rows with room for six; the two documents of 2 take one of them, the others stay open for those of 1.
    packing = pack_documents(ends_of([7] * 5 + [2] * 2 + [1] * 26), 13)
    assert (len(packing), packing.padding_tokens) == (5, 0)


def test_a_shard_beyond_32_bits_is_packed_at_its_places() -> None:
    big = 2**33
    packing = pack_documents(np.array([big, big + 3], dtype=np.uint64), 2**31)
    assert packing.starts.tolist() == [0, 2**31, 2**32, 3 * 2**31, big]
    assert packing.lengths.tolist() == [2**31] * 4 + [3]


@given(LENGTHS | MANY, CONTEXTS)
def test_a_saved_packing_is_the_same_when_read(lengths: list[int], context: int) -> None:
    packing = pack_documents(ends_of(lengths), context)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        packing.save(path)
        assert [file.name for file in Path(folder).iterdir()] == ["rows.npy"]
        loaded = Packing.load(path)
        counts = (packing.context, packing.cut_documents, len(packing.starts), len(packing))
        assert (loaded.context, loaded.cut_documents, len(loaded.starts), len(loaded)) == counts == read_counts(path)
        for name in ("starts", "lengths", "rows"):
            found, wanted = getattr(loaded, name), getattr(packing, name)
            assert found.dtype == wanted.dtype
            assert found.tolist() == wanted.tolist()
            assert not isinstance(found, np.memmap), "a map would hold a descriptor"
            assert not found.flags.writeable


def test_the_same_documents_give_the_same_file(tmp_path: Path) -> None:
    lengths = np.random.default_rng(2).integers(0, 300, 500).tolist()
    for name in ("a.npy", "b.npy"):
        pack_documents(ends_of(lengths), 128).save(tmp_path / name)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize("read", [Packing.load, read_counts])
def test_a_file_that_is_no_packing_is_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    with pytest.raises(DataError, match=r"rows.npy cannot be read \(No such file or directory\): delete it and pack"):
        read(path)
    for content in (b"not numpy at all", b"", b"x" * 200):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"rows.npy is no whole packing of this version: delete it and pack again"):
            read(path)
    for other in (np.arange(40, dtype=np.uint64), np.zeros(3, np.uint64), np.ones((2, 9), np.uint64), np.ones(9)):
        np.save(path, other)
        with pytest.raises(DataError, match=r"rows.npy is no whole packing of this version: delete it and pack again"):
            read(path)


def test_a_saved_packing_with_words_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    pack_documents(ends_of([3, 4, 5]), 8).save(path)
    np.save(path, np.load(path)[:-1])
    with pytest.raises(DataError, match=r"rows.npy is no whole packing of this version"):
        Packing.load(path)


def test_document_ends_that_decrease_are_refused() -> None:
    ends = np.array([4, 9, 7], dtype=np.uint64)
    for use in (pack_documents, cut_documents):
        with pytest.raises(
            DataError, match=r"document 2 ends at token 7, before the one that ends at 9: .*prepare the"
        ):
            use(ends, 8)


@given(LENGTHS | MANY, CONTEXTS)
def test_cut_documents_are_those_with_tokens_in_two_rows(lengths: list[int], context: int) -> None:
    begins = np.cumsum([0, *lengths]).tolist()
    wanted = sum(
        len({token // context for token in range(begin, begin + length)}) > 1
        for begin, length in zip(begins, lengths, strict=False)
    )
    assert cut_documents(ends_of(lengths), context) == wanted
