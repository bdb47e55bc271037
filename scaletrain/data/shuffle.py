"""A permutation of 0..n-1 that is computed, not stored: a Feistel network with cycle walking."""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
_ROUNDS = (
    4  # three give a pseudo-random permutation (Luby and Rackoff 1988); one more for the short, weak round function
)


def mix(values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): each input bit changes half of the output bits."""
    z = values + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def round_keys(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    """The keys of the permutation of one epoch."""
    with np.errstate(over="ignore"):
        base = mix(np.array([seed % 2**64], np.uint64), np.uint64(0x9E3779B97F4A7C15))
        base = mix(base ^ np.uint64(epoch % 2**64), np.uint64(0xD1B54A32D192ED03))
        numbers: npt.NDArray[np.uint64] = np.arange(_ROUNDS, dtype=np.uint64)
        return mix(base + numbers, np.uint64(0x8CB92BA72F3D8DD7))


def permute(ids: Ids, n: int, seed: int, epoch: int) -> Ids:
    """Images of `ids` (each in 0..n-1) under the permutation of 0..n-1 that (seed, epoch) names.

    The network permutes 0..4^k-1, the smallest such range that holds n; an image outside 0..n-1 is sent through again
    until it falls inside (under four times on average), which leaves a permutation of 0..n-1 (Black and Rogaway 2002).
    """
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = round_keys(seed, epoch)
    values = ids.astype(np.uint64)
    walking = np.arange(len(values))
    with np.errstate(over="ignore"):
        while len(walking):
            now = values[walking]
            left, right = now >> half, now & mask
            for key in keys:
                left, right = right, left ^ (mix(right, key) & mask)
            values[walking] = (left << half) | right
            walking = walking[values[walking] >= n]
    return values.astype(np.int64)
