"""GPUs, their links and InfiniBand, as nvidia-smi and the kernel tell of them."""

import csv
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from scaletrain.cluster.doctor.facts import Devices, Gpu, GpuProcess, Port

_SECONDS = 15.0  # without the persistence daemon a driver wakes for seconds; with a broken GPU it may hang
_FIELDS = (
    "index", "name", "uuid", "memory.total", "temperature.gpu", "power.limit", "power.default_limit",
    "ecc.errors.uncorrected.volatile.total", "clocks_throttle_reasons.active",
    "remapped_rows.pending", "remapped_rows.failure", "retired_pages.pending",
)  # fmt: skip
_RENAMED = {"clocks_throttle_reasons.active": "clocks_event_reasons.active"}  # by driver 535; later ones drop the old
_UNKNOWN = re.compile(r'Field "([^"]+)" is not a valid field')
# nvml.h, nvmlClocksThrottleReason*; idle, set clocks and the power cap at full load are no faults.
_THROTTLES = {0x08: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}
_RESETS = ("remapped_rows.pending", "remapped_rows.failure", "retired_pages.pending")
_LOST = ("reset", "lost", "err!", "unknown error")

Runner = Callable[[Sequence[str]], tuple[int, str]]


def run_nvidia_smi(arguments: Sequence[str]) -> tuple[int, str]:
    """Exit code and all that it says; 127 where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False
        )  # fmt: skip
    except FileNotFoundError:
        return 127, "nvidia-smi is not on the PATH"
    except subprocess.TimeoutExpired:
        return 124, f"nvidia-smi gave no answer in {_SECONDS:.0f} s"
    return done.returncode, f"{done.stdout}{done.stderr}".strip()


def find_devices(run: Runner = run_nvidia_smi, dev: Path = Path("/dev")) -> Devices:
    files = len(list(dev.glob("nvidia[0-9]*")))
    if not files:
        return Devices()
    code, text = _query_gpus(run)
    if code:
        return Devices(files, fault=(text.splitlines() or [f"nvidia-smi ended with exit code {code}"])[0])
    gpus = parse_gpus(text)
    code, text = run(["--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv"])
    processes = () if code else parse_processes(text)
    code, text = run(["topo", "-m"]) if len(gpus) > 1 else (1, "")
    return Devices(files, gpus, processes, {} if code else parse_links(text))


def _query_gpus(run: Runner) -> tuple[int, str]:
    """Asks again without (or with the newer name of) each field that this driver does not know."""
    fields = list(_FIELDS)
    while True:
        code, text = run([f"--query-gpu={','.join(fields)}", "--format=csv"])
        unknown = _UNKNOWN.search(text) if code else None
        if unknown is None or unknown[1] not in fields:
            return code, text
        place = fields.index(unknown[1])
        fields[place : place + 1] = [_RENAMED[unknown[1]]] if unknown[1] in _RENAMED else []


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """From the CSV with its header, whose names may carry a unit: "memory.total [MiB]"."""
    return tuple(_gpu(row) for row in _rows(text))


def _gpu(row: dict[str, str]) -> Gpu:
    memory, ecc = _number(row.get("memory.total", "")), _number(row.get("ecc.errors.uncorrected.volatile.total", ""))
    mask = row.get("clocks_throttle_reasons.active", row.get("clocks_event_reasons.active", ""))
    active = int(mask, 16) if mask.startswith("0x") else 0
    lost = [value for value in row.values() if any(word in value.lower() for word in _LOST)]
    return Gpu(
        index=int(row["index"]),
        name=row.get("name", ""),
        uuid=row.get("uuid", ""),
        memory_bytes=None if memory is None else int(memory * 2**20),
        temperature=_number(row.get("temperature.gpu", "")),
        power_limit=_number(row.get("power.limit", "")),
        power_default=_number(row.get("power.default_limit", "")),
        ecc_uncorrected=None if ecc is None else int(ecc),
        throttles=tuple(name for bit, name in _THROTTLES.items() if active & bit),
        needs_reset=tuple(name for name in _RESETS if row.get(name, "").lower() in ("yes", "1", "pending")),
        fault=lost[0].strip("[]") if lost else "",
    )


def parse_processes(text: str) -> tuple[GpuProcess, ...]:
    found = []
    for row in _rows(text):
        memory = _number(row.get("used_gpu_memory", row.get("used_memory", "")))
        if row.get("pid", "").isdecimal():
            bytes_used = None if memory is None else int(memory * 2**20)
            found.append(GpuProcess(row.get("gpu_uuid", ""), int(row["pid"]), row.get("process_name", ""), bytes_used))
    return tuple(found)


def parse_links(text: str) -> dict[str, int]:
    """Pairs of GPUs by the kind of their connection, from the matrix of `nvidia-smi topo -m`."""
    table = [line.split() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    header = next((line for line in table if line and line[0] == "GPU0" and "X" not in line[1:2]), [])
    gpus = [name for name in header if re.fullmatch(r"GPU\d+", name)]
    kinds: Counter[str] = Counter()
    for line in table:
        if line and line is not header and line[0] in gpus:
            kinds.update(line[1 + gpus.index(line[0]) + 1 : 1 + len(gpus)])  # right of the diagonal
    return dict(kinds)


def _rows(text: str) -> list[dict[str, str]]:
    table = list(csv.reader(text.splitlines(), skipinitialspace=True))
    names = [name.partition(" [")[0].strip() for name in table[0]] if table else []
    return [
        dict(zip(names, (value.strip() for value in row), strict=True)) for row in table[1:] if len(row) == len(names)
    ]


def _number(text: str) -> float | None:
    """ "40536 MiB" and "300.00 W"; None for [N/A], [Not Supported] and the like."""
    match = re.match(r"-?\d+(?:\.\d+)?", text)
    return float(match[0]) if match else None


def find_infiniband(root: Path = Path("/sys/class/infiniband")) -> tuple[Port, ...]:
    """Every port with its state (ACTIVE, DOWN, INIT...) and rate."""
    found = []
    for port in sorted(root.glob("*/ports/*")):
        try:
            state, rate = ((port / name).read_text(encoding="utf-8") for name in ("state", "rate"))
        except OSError:
            continue
        found.append(Port(f"{port.parents[1].name}:{port.name}", state.split(":")[-1].strip(), _number(rate) or 0.0))
    return tuple(found)
