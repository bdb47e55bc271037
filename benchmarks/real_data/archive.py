"""What is inside a package: wheels, npm's and source archives, Debian packages, read without unpacking them."""

import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from scaletrain.errors import DataError


def members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file whose whole name matches the regular expression `pattern`, in stored order."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if re.fullmatch(pattern, name):
                    yield name, opened.read(name)
    elif archive.suffix == ".deb":
        with tempfile.TemporaryFile() as file:
            _write_tar(archive, file)
            file.seek(0)
            yield from tar_members(file, pattern)
    else:
        with archive.open("rb") as file:
            yield from tar_members(file, pattern)


def _write_tar(package: Path, file: IO[bytes]) -> None:
    """What a Debian package installs, as a tar archive."""
    program = shutil.which("dpkg-deb")
    if program is None:
        raise DataError(f"dpkg-deb is not on PATH and reads {package.name}: install dpkg, or leave this name out")
    done = subprocess.run([program, "--fsys-tarfile", str(package)], stdout=file, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", errors="replace").strip().rpartition("\n")[2]
        raise DataError(f"{package} is damaged, dpkg-deb said {said!r}: remove it to fetch it anew")


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
