"""The largest micro-batch that a machine's memory holds: doubled until it does not fit, then halved in between."""

from collections.abc import Callable, Mapping

MOST = 4096


def largest(peak_of: Callable[[int], int | None], limit: int | None = None) -> int:
    """The largest batch that fits, to a sixteenth; 0 if none does, MOST if all do.

    `peak_of` runs a batch and gives the most bytes that it held, or None when it died of memory. With a `limit` no
    batch is run that should go beyond it, by the line through the two largest that were run.
    """
    peaks: dict[int, int] = {}

    def fits(batch: int) -> bool:
        if limit is not None and predicted(peaks, batch) > limit:
            return False
        peak = peak_of(batch)
        if peak is None or (limit is not None and peak > limit):
            return False
        peaks[batch] = peak
        return True

    good, bad = 0, 1
    while fits(bad):
        good, bad = bad, 2 * bad
        if good == MOST:
            return good
    while bad - good > max(1, good // 16):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def predicted(peaks: Mapping[int, int], batch: int) -> float:
    """Bytes that a batch should take: what each sample added between the two largest that are known. 0: not known."""
    if len(peaks) < 2:
        return 0.0
    (small, less), (large, more) = sorted(peaks.items())[-2:]
    return more + max(0.0, (more - less) / (large - small)) * (batch - large)
