"""One thing that an audit found wrong, told in one line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`where`: the file, or the line of a file. With `expected` comes what was found in its place."""

    where: str
    what: str
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}"
        return line if self.expected is None else f"{line}: expected {self.expected}, found {self.found}"
