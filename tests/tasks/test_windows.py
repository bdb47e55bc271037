"""Windows cover a text and share what they should; for each position speaks the window that sees most around it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletrain.errors import ConfigError
from scaletrain.tasks.windows import owners, windows

LENGTHS = st.integers(1, 300)
ROOMS = st.integers(1, 40).flatmap(lambda room: st.tuples(st.just(room), st.integers(0, room - 1)))


@given(LENGTHS, ROOMS)
def test_windows_cover_the_text_and_share_the_stride(length: int, rooms: tuple[int, int]) -> None:
    room, stride = rooms
    found = windows(length, room, stride)
    assert {p for start, end in found for p in range(start, end)} == set(range(length))
    assert all(0 <= start < end <= length and end - start == min(room, length) for start, end in found)
    assert all(first[0] < second[0] and first[1] - second[0] >= stride for first, second in itertools.pairwise(found))


@given(LENGTHS, ROOMS)
def test_no_window_is_superfluous(length: int, rooms: tuple[int, int]) -> None:
    room, stride = rooms
    fewest = 1 if length <= room else 1 + -(-(length - room) // (room - stride))
    assert len(windows(length, room, stride)) == fewest


@given(LENGTHS, ROOMS)
def test_the_owner_is_the_window_in_which_a_position_is_furthest_from_a_cut(
    length: int, rooms: tuple[int, int]
) -> None:
    spans = windows(length, *rooms)

    def distance(position: int, span: tuple[int, int]) -> float:
        start, end = span
        if not start <= position < end:
            return -1
        before = float("inf") if start == 0 else position - start
        after = float("inf") if end == length else end - 1 - position
        return min(before, after)

    found = owners(spans, length)
    for position in range(length):
        distances = [distance(position, span) for span in spans]
        assert found[position] == int(np.argmax(distances))


@given(LENGTHS, ROOMS)
def test_each_window_owns_one_stretch_and_they_follow_each_other(length: int, rooms: tuple[int, int]) -> None:
    found = owners(windows(length, *rooms), length)
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0


def test_an_example() -> None:
    spans = windows(length=10, room=6, stride=2)
    assert spans == [(0, 6), (4, 10)]
    assert owners(spans, 10).tolist() == [0] * 5 + [1] * 5
    assert windows(length=9, room=6, stride=2) == [(0, 6), (3, 9)]  # the last one reaches back
    assert windows(length=6, room=6, stride=2) == [(0, 6)]
    assert windows(length=6, room=6, stride=9) == [(0, 6)]  # nothing to share


def test_an_empty_text_has_no_windows() -> None:
    assert windows(0, 5, 2) == []
    assert owners([], 0).tolist() == []


@pytest.mark.parametrize(("room", "stride"), [(5, 5), (5, 8), (0, 0), (-3, 0)])
def test_a_stride_that_fills_the_room_is_refused(room: int, stride: int) -> None:
    with pytest.raises(ConfigError) as caught:
        windows(100, room, stride)
    assert str(caught.value) == (
        f"data.stride={stride} leaves nothing new in a window with room for {max(room, 0)} tokens of the text: "
        "make data.stride smaller or data.max_length larger"
    )


def test_windows_that_miss_a_part_are_our_fault() -> None:
    with pytest.raises(AssertionError, match="do not cover"):
        owners([(0, 3)], 5)
