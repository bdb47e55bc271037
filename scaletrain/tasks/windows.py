"""Windows over a text that is longer than a row: where each begins and ends, and which one speaks for a position."""

from collections.abc import Sequence

import numpy as np

from scaletrain.errors import ConfigError


def windows(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of each window over `length` tokens: at most `room` tokens, at least `stride` shared with the next.

    The last one reaches back as far as it has room, so that the end of a text is read with as much before it as can be.
    Of all windows that share so much these are the fewest. Nothing for an empty text.
    """
    if length <= room:
        return [(0, length)] if length else []
    if room <= stride:
        raise ConfigError(
            f"data.stride={stride} leaves nothing new in a window with room for {max(room, 0)} tokens of the text: "
            "make data.stride smaller or data.max_length larger"
        )
    step = room - stride
    starts = [*range(0, length - room, step), length - room]
    return [(start, start + room) for start in starts]


def owners(spans: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """(length,): the index of the window in which each position is furthest from a cut, the first one of equals.

    A cut is a window's edge with more text behind it: nothing is missing before the start of the text or after its end.
    """
    found = np.zeros(length, dtype=np.int64)
    furthest = np.full(length, -1, dtype=np.int64)
    for index, (start, end) in enumerate(spans):
        place = np.arange(start, end)
        before = place - start if start else np.full(end - start, length)
        after = end - 1 - place if end < length else np.full(end - start, length)
        distance = np.minimum(before, after)
        better = distance > furthest[start:end]
        found[start:end][better] = index
        furthest[start:end][better] = distance[better]
    assert (furthest >= 0).all(), "the windows do not cover the text"
    return found
