"""What this node has: versions, disks, limits, leftovers, the way to the others. No torch: a probe answers at once."""

import importlib.util
import os
import platform
import re
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from scaletrain.cluster.doctor.facts import Disk, Interface, Leftover
from scaletrain.runtime import leftovers, network
from scaletrain.runtime.op_folder import op_folder

_PACKAGES = ("torch", "deepspeed", "transformers", "scaletrain")
_SOURCES = Path(__file__).parents[2]
_TOOLS = ("ninja", "c++", "nvcc")


def ask_all(questions: Mapping[str, Callable[[], Any]], seconds: float) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The answers, asked at once, and the names of those that took too long: one dead mount silences no other.

    What a question raises is raised.
    """
    answers: dict[str, Any] = {}
    errors: list[Exception] = []

    def answer(name: str) -> None:
        try:
            answers[name] = questions[name]()
        except Exception as error:  # noqa: BLE001  raised in the caller's thread
            errors.append(error)

    deadline = time.monotonic() + seconds
    threads = [threading.Thread(target=answer, args=(name,), daemon=True) for name in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    found = dict(answers)
    return found, tuple(name for name in questions if name not in found)


def versions() -> dict[str, str]:
    """What has to be equal on all nodes, as far as it is here; `code` is a digest of this package's files."""
    found = {"python": platform.python_version()}
    names = {name: name for name in _PACKAGES} | {f"nvidia-nccl-cu{n}": "nccl" for n in (12, 13)}
    for package, name in names.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if (cuda := _cuda_of_torch()) is not None:
        found["cuda"] = cuda
    driver = _read("/proc/driver/nvidia/version")
    if (match := re.search(r"\d+\.\d+(?:\.\d+)?", driver)) is not None:
        found["driver"] = match[0]
    return found | {"code": _digest_of_sources()}


def _cuda_of_torch() -> str | None:
    """torch/version.py says it; an import would take seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    match = re.search(r"^cuda[^=]*= *'([^']+)'", _read(Path(spec.origin).with_name("version.py")), re.MULTILINE)
    return match[1] if match else None


def _digest_of_sources() -> str:
    digest = xxhash.xxh3_64()
    for path in sorted(_SOURCES.rglob("*.py")):
        digest.update(str(path.relative_to(_SOURCES)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def disks(places: Mapping[str, Path]) -> tuple[Disk, ...]:
    """The disk of each place; of one that does not exist yet, that of the nearest folder above it."""
    mounts = [line.split() for line in _read("/proc/mounts").splitlines()]
    kinds = {fields[1].replace("\\040", " "): fields[2] for fields in mounts if len(fields) > 2}
    return tuple(_disk(name, path.expanduser().absolute(), kinds) for name, path in places.items())


def _disk(name: str, path: Path, kinds: Mapping[str, str]) -> Disk:
    there = next(place for place in (path, *path.parents) if place.exists())
    space = os.statvfs(there)
    real = there.resolve()
    mount = next((str(place) for place in (real, *real.parents) if str(place) in kinds), "")
    kind = kinds.get(mount, "")
    return Disk(name, str(path), kind, space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize)


def scratch_places() -> dict[str, Path]:
    """What a run writes to apart from its own folder, and where its code lies."""
    return {"temporary folder": Path(tempfile.gettempdir()), "/dev/shm": leftovers.SHARED_MEMORY, "code": _SOURCES}


def limits() -> dict[str, int | None]:
    """Of a process that is started as the ranks are. A run raises its own limit of open files to the hard one."""
    found = {
        "open files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "locked memory": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[0],
    }
    return {name: None if value == resource.RLIM_INFINITY else value for name, value in found.items()}


def find_leftovers() -> tuple[Leftover, ...]:
    """Build locks and shared memory of dead processes."""
    dead = leftovers.dead_segments(leftovers.SHARED_MEMORY)
    locks = leftovers.stale_locks(op_folder(os.environ))
    return (
        *(Leftover("memory", str(segment.path), segment.bytes) for segment in dead),
        *(Leftover("lock", str(path), age) for path, age in locks),
    )


def tools() -> tuple[str, ...]:
    """Which of those that compile DeepSpeed's ops are here."""
    found = [name for name in _TOOLS if shutil.which(name)]
    if "ninja" not in found and importlib.util.find_spec("ninja") is not None:
        found.append("ninja")
    return tuple(found)


def interface_towards(master: str) -> Interface | None:
    """The one that a run here would use with its rank 0 on `master`; None where it leaves that to gloo and NCCL."""
    name = network.interface_towards(master)
    if name is None:
        return None
    speed = _read(f"/sys/class/net/{name}/speed").strip()  # Mb/s; -1 where there is none
    return Interface(name, int(speed) / 1000 if speed.isdecimal() else 0.0)


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
