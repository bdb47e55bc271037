"""What is inside a package: wheels, npm's and source archives, Debian packages, read without unpacking them."""

import re
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file whose whole name matches the regular expression `pattern`, in stored order."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if re.fullmatch(pattern, name):
                    yield name, opened.read(name)
    elif archive.suffix == ".deb":
        with tempfile.TemporaryFile() as file:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=file, check=True)
            file.seek(0)
            yield from tar_members(file, pattern)
    else:
        with archive.open("rb") as file:
            yield from tar_members(file, pattern)


def tar_members(file: IO[bytes], pattern: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=file) as opened:
        for entry in opened:
            if entry.isfile() and re.fullmatch(pattern, entry.name):
                content = opened.extractfile(entry)
                assert content is not None, f"{entry.name} is a file"
                yield entry.name, content.read()


def only_member(archive: Path, pattern: str) -> bytes:
    """The first file that matches: the rest of a large archive is not read."""
    return next(data for _, data in members(archive, pattern))
