"""What nvidia-smi of several driver versions says, in its own forms, and what the kernel says of InfiniBand."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from scaletrain.cluster.doctor.devices import (
    find_devices,
    find_infiniband,
    parse_gpus,
    parse_links,
    parse_processes,
    run_nvidia_smi,
)
from scaletrain.cluster.doctor.facts import Gpu, GpuProcess, Port

# Driver 470: an old name of the throttle reasons, no remapped rows on a V100, units in header and values.
DRIVER_470 = """\
index, name, uuid, memory.total [MiB], temperature.gpu, power.limit [W], power.default_limit [W], \
ecc.errors.uncorrected.volatile.total, clocks_throttle_reasons.active, remapped_rows.pending, \
remapped_rows.failure, retired_pages.pending
0, Tesla V100-SXM2-32GB, GPU-6f1e, 32510 MiB, 41, 300.00 W, 300.00 W, 0, 0x0000000000000001, [N/A], [N/A], No
1, Tesla V100-SXM2-32GB, GPU-0b2c, 32510 MiB, 88, 250.00 W, 300.00 W, 2, 0x0000000000000060, [N/A], [N/A], Yes
"""
# Driver 550: the new name; a GPU that lost its memory; [Not Supported] in place of a value.
DRIVER_550 = """\
index, name, uuid, memory.total [MiB], temperature.gpu, power.limit [W], power.default_limit [W], \
ecc.errors.uncorrected.volatile.total, clocks_event_reasons.active, remapped_rows.pending, remapped_rows.failure, \
retired_pages.pending
0, NVIDIA H100 80GB HBM3, GPU-aaaa, 81559 MiB, 33, 700.00 W, 700.00 W, 0, 0x0000000000000000, 0, 0, [N/A]
1, NVIDIA H100 80GB HBM3, GPU-bbbb, 81559 MiB, 34, 700.00 W, 700.00 W, 0, 0x0000000000000088, 1, 0, [N/A]
2, NVIDIA H100 80GB HBM3, GPU-cccc, [GPU requires reset], [GPU requires reset], [GPU requires reset], [N/A], [N/A], \
[Unknown Error], [N/A], [N/A], [N/A]
3, NVIDIA GeForce RTX 4090, GPU-dddd, 24564 MiB, 50, 450.00 W, 450.00 W, [Not Supported], 0x0000000000000004, [N/A], \
[N/A], [N/A]
"""
# Driver 418 knows neither remapped rows nor a default power limit that can be asked for: those fields were left out.
DRIVER_418 = """\
index, name, uuid, memory.total [MiB], temperature.gpu, power.limit [W], ecc.errors.uncorrected.volatile.total, \
clocks_throttle_reasons.active, retired_pages.pending
0, Tesla P100-PCIE-16GB, GPU-1234, 16280 MiB, 35, 250.00 W, 0, 0x0000000000000004, No
"""
PROCESSES = """\
gpu_uuid, pid, process_name, used_gpu_memory [MiB]
GPU-aaaa, 4242, /usr/bin/python3, 10240 MiB
GPU-bbbb, 17, [Not Found], [N/A]
"""
TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV4\tSYS\tSYS\tPXB\t0-23,48-71\t0\t\tN/A
GPU1\tNV4\t X \tSYS\tSYS\tPXB\t0-23,48-71\t0\t\tN/A
GPU2\tSYS\tSYS\t X \tNV4\tSYS\t24-47,72-95\t1\t\tN/A
GPU3\tSYS\tSYS\tNV4\t X \tSYS\t24-47,72-95\t1\t\tN/A
NIC0\tPXB\tPXB\tSYS\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks
"""


def test_gpus_of_driver_470() -> None:
    assert parse_gpus(DRIVER_470) == (
        Gpu(0, "Tesla V100-SXM2-32GB", "GPU-6f1e", 32510 << 20, 41.0, 300.0, 300.0, 0),
        Gpu(1, "Tesla V100-SXM2-32GB", "GPU-0b2c", 32510 << 20, 88.0, 250.0, 300.0, 2,
            ("heat", "heat (hardware)"), ("retired_pages.pending",)),
    )  # fmt: skip


def test_gpus_of_driver_550() -> None:
    name = "NVIDIA H100 80GB HBM3"
    assert parse_gpus(DRIVER_550) == (
        Gpu(0, name, "GPU-aaaa", 81559 << 20, 33.0, 700.0, 700.0, 0),
        Gpu(1, name, "GPU-bbbb", 81559 << 20, 34.0, 700.0, 700.0, 0,
            ("hardware slowdown", "power brake"), ("remapped_rows.pending",)),
        Gpu(2, name, "GPU-cccc", fault="GPU requires reset"),
        Gpu(3, "NVIDIA GeForce RTX 4090", "GPU-dddd", 24564 << 20, 50.0, 450.0, 450.0, None),
    )  # fmt: skip


def test_gpus_of_driver_418() -> None:
    assert parse_gpus(DRIVER_418) == (Gpu(0, "Tesla P100-PCIE-16GB", "GPU-1234", 16280 << 20, 35.0, 250.0, None, 0),)


def test_processes() -> None:
    assert parse_processes(PROCESSES) == (
        GpuProcess("GPU-aaaa", 4242, "/usr/bin/python3", 10240 << 20),
        GpuProcess("GPU-bbbb", 17, "[Not Found]", None),
    )


def test_links() -> None:
    assert parse_links(TOPOLOGY) == {"NV4": 2, "SYS": 4}
    assert parse_links("GPU0\t X \tCPU Affinity\n") == {}


@pytest.mark.parametrize(
    ("unknown", "asked_last"),
    [
        ({"clocks_throttle_reasons.active"}, "clocks_event_reasons.active"),
        ({"clocks_throttle_reasons.active", "clocks_event_reasons.active"}, "remapped_rows"),
        ({"remapped_rows.pending", "remapped_rows.failure"}, "clocks_throttle_reasons.active"),
    ],
)
def test_fields_that_a_driver_does_not_know_are_asked_by_their_other_name_or_left_out(
    unknown: set[str], asked_last: str, tmp_path: Path
) -> None:
    queries = []

    def run(arguments: Sequence[str]) -> tuple[int, str]:
        if not arguments[0].startswith("--query-gpu="):
            return 0, ""
        fields = arguments[0].removeprefix("--query-gpu=").split(",")
        queries.append(fields)
        if (bad := next((field for field in fields if field in unknown), None)) is not None:
            return 2, f'Field "{bad}" is not a valid field to query.'
        return 0, f"{', '.join(fields)}\n{', '.join('0' for _ in fields)}\n"

    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    found = find_devices(run, tmp_path)
    assert (found.files, len(found.gpus), found.fault) == (1, 1, "")
    assert not unknown & set(queries[-1])
    assert any(field.startswith(asked_last) for field in queries[-1])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (18, "Failed to initialize NVML: Driver/library version mismatch"),
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that ..."),
        (15, "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot the system to recover"),
        (124, "nvidia-smi gave no answer in 15 s"),
    ],
)
def test_what_nvidia_smi_says_instead_of_an_answer_is_kept(code: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    assert find_devices(lambda _: (code, f"{said}\nmore"), tmp_path).fault == said


def test_a_machine_without_gpus_is_not_asked(tmp_path: Path) -> None:
    assert find_devices(lambda _: pytest.fail("asked"), tmp_path).gpus == ()


def test_no_nvidia_smi_is_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_nvidia_smi(["-L"]) == (127, "nvidia-smi is not on the PATH")


def test_infiniband(tmp_path: Path) -> None:
    for name, state, rate in (("mlx5_0", "4: ACTIVE", "400 Gb/sec (4X NDR)"), ("mlx5_1", "1: DOWN", "10 Gb/sec (4X)")):
        port = tmp_path / name / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "rate").write_text(f"{rate}\n")
    assert find_infiniband(tmp_path) == (Port("mlx5_0:1", "ACTIVE", 400.0), Port("mlx5_1:1", "DOWN", 10.0))
    assert find_infiniband(tmp_path / "none") == ()
