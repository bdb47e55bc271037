"""A JSON-lines file that another process writes: each look reads only what was appended since the last one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BLOCK = 8 << 20  # bytes read at once
_BEGINNINGS = (b'{"event"', b'{"step"')  # of the lines of a run


class Tail:
    """Polls the file's size, as that works on every file system. A last line without its end is left for later.

    A file that is shorter than what was read, or another one of the same name (a resume writes metrics.jsonl anew, up
    to the step that it goes on from), is read from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._inode = path, 0, 0
        self.unreadable = 0  # lines that are no JSON object

    def read(self, add: Callable[[dict[str, Any]], None], begin_anew: Callable[[], None]) -> None:
        """Calls `add` with each new object, after `begin_anew` when those before count no more. No file: no lines."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if self._offset and (found.st_ino != self._inode or found.st_size < self._offset):
                    self._offset = self.unreadable = 0
                    begin_anew()
                self._inode = found.st_ino
                file.seek(self._offset)
                rest = b""
                while block := file.read(_BLOCK):
                    *lines, rest = (rest + block).split(b"\n")
                    self._offset += sum(len(line) + 1 for line in lines)
                    self._take(lines, add)
        except FileNotFoundError:
            return

    def _take(self, lines: list[bytes], add: Callable[[dict[str, Any]], None]) -> None:
        for line in lines:
            if not line.strip():
                continue
            value = _parse(line)
            if value is None:
                self.unreadable += 1
            else:
                add(value)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object of a line, or the last of it where a kill tore a line and the next one was put behind that."""
    starts = {0, *(line.rfind(beginning) for beginning in _BEGINNINGS)} - {-1}
    for start in sorted(starts):
        try:
            value = json.loads(line[start:])
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    return None
