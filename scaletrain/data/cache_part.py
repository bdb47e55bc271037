"""A file on its way into the cache."""

import errno
import os
import time
from collections.abc import Callable

import xxhash

from scaletrain.errors import DataError

PART = ".part"  # the end of its name
FULL = (errno.ENOSPC, errno.EDQUOT)


class Part:
    """The first `written` of `size` bytes are on the disk and hashed.

    `relieve(missing, full_since)` makes room on a full disk, waits a moment for it, or raises; `fault` puts any other
    error of the disk in words.
    """

    def __init__(
        self, handle: int, size: int, relieve: Callable[[int, float], None], fault: Callable[[OSError], DataError]
    ) -> None:
        self._handle, self._size, self._relieve, self._fault = handle, size, relieve, fault
        self.restart()

    def restart(self) -> None:
        self.written = 0
        self._digest = xxhash.xxh3_128()

    @property
    def xxh3(self) -> str:
        return str(self._digest.hexdigest())

    def write(self, block: bytes) -> None:
        """Appends; on a full disk, files of the cache go until it fits. DataError when that is not enough."""
        self._digest.update(block)
        rest, full_since = memoryview(block), None
        while rest:
            try:
                count = os.pwrite(self._handle, rest, self.written)
            except OSError as error:
                if error.errno not in FULL:
                    raise self._fault(error) from error
                full_since = full_since or time.monotonic()
                self._relieve(self._size - self.written, full_since)
                continue
            self.written += count
            rest, full_since = rest[count:], None
