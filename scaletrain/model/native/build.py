"""Compiles the .cpp files beside it with the machine's g++ on first use (two seconds); the library stays in the cache.

No torch here: planning asks is_supported().
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import xxhash

from scaletrain.runtime import processor
from scaletrain.runtime.files import cache_root

SOURCES = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".cpp", ".h"))
INSTRUCTIONS = ("fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", *(f"-m{name.replace('_', '')}" for name in INSTRUCTIONS)]


@cache
def is_supported() -> bool:
    """Whether this machine has the instructions, and the library or a compiler: $CXX, or g++. CXX=false: do without."""
    is_built = any(_folder().glob(f"{_made()}-*.so"))
    return _is_wanted() and (is_built or shutil.which(_compiler()[0]) is not None)


def lacks_compiler() -> bool:
    """Whether a compiler is all that is missing here."""
    return _is_wanted() and not is_supported()


def _is_wanted() -> bool:
    return Path(_compiler()[0]).name != "false" and processor.flags().issuperset(INSTRUCTIONS)


def serves_heads(head_dim: int) -> bool:
    """Whether the attention kernel takes heads of this size, where it can be built."""
    return head_dim % 32 == 0 and is_supported()


@cache
def library() -> ctypes.CDLL | None:
    """None where it cannot be built, told once with the compiler's reason, or where torch has another OpenMP than g++:
    two would fight for the cores."""
    if not is_supported():
        return None
    try:
        return None if (openmp := _openmp()) is None else _opened(openmp)
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), f"exit code {error.returncode}")
    except OSError as error:
        reason = str(error)
    warnings.warn(
        f"{shlex.join(_compiler())} does not build the CPU kernels ({reason.strip()}): attention takes twice the time; "
        "name a g++ in $CXX, or set CXX=false to do without",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _openmp() -> Path | None:
    """GNU's, where torch runs on it. Other packages bring more copies into the process: what torch's own library finds
    under a name that each OpenMP has tells which one is torch's."""
    import torch

    place = ctypes.cast(ctypes.CDLL(torch._C.__file__).omp_get_max_threads, ctypes.c_void_p).value or 0
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= place < last:
            path = Path(line.split(maxsplit=5)[-1])
            return path if path.name.startswith("libgomp") else None
    return None


def _opened(openmp: Path) -> ctypes.CDLL:
    path = _folder() / f"{_made()}-{openmp.name.partition('.')[0]}.so"
    if path.is_file():
        return ctypes.CDLL(str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent)
    except OSError:  # no place to keep it
        folder = tempfile.TemporaryDirectory()
    with folder:
        built = Path(folder.name) / path.name
        names = [str(source) for source in SOURCES if source.suffix == ".cpp"]
        command = [*_compiler(), *FLAGS, *names, str(openmp), "-o", str(built)]  # before the compiler's own OpenMP
        subprocess.run(command, capture_output=True, text=True, check=True)
        opened = ctypes.CDLL(str(built))  # it stays open when the file goes
        if built.parent.parent == path.parent:
            built.replace(path)  # other ranks may do the same
        return opened


def _folder() -> Path:
    return cache_root() / "kernels"


def _made() -> str:
    """What tells a library of these sources from others."""
    sources = b"\0".join(path.read_bytes() for path in SOURCES)
    return xxhash.xxh3_64_hexdigest(sources + " ".join(FLAGS).encode())


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]
