"""One name's folder: written beside its place, then renamed, so that it is whole or not there."""

import tempfile
from pathlib import Path

from benchmarks.real_data.fetch import fetch
from benchmarks.real_data.files import Counts
from benchmarks.real_data.sets import SETS
from scaletrain.errors import DataError
from scaletrain.runtime.files import write_json


def build(name: str, output: Path, cache: Path) -> tuple[Path, Counts]:
    """The folder, which replaces an earlier one, and what it holds. `source.json` in it says where it is from."""
    if output.exists() and not output.is_dir():
        raise DataError(f"the output {output} is not a folder: name a folder, or one that is not there yet")
    real = SETS[name]
    archives = [fetch(package, cache) for package in real.packages]
    folder = output / (real.folder or name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        written, earlier = Path(beside) / "written", Path(beside) / "earlier"
        written.mkdir()
        counts = real.write(archives, written)
        packages = [{"package": str(package), "sha256": package.sha256} for package in real.packages]
        write_json(
            written / "source.json",
            {"name": name, "about": real.about, "licence": real.licence, "packages": packages, **counts},
        )
        if folder.exists():
            folder.rename(earlier)
        written.rename(folder)
    return folder, counts
