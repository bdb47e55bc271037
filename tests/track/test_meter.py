"""Rates and the matrix peak."""

import io
import re

import pytest
import torch

from scaletrain.config.hardware import dense_bf16_peak, dense_bf16_peaks
from scaletrain.track.meter import Meter, peak_memory_bytes
from scaletrain.track.peak import measure_matrix_rate, peak_of
from scaletrain.track.progress import RunProgress


def test_rates_are_means_since_the_last_reading() -> None:
    meter = Meter(flops_per_token=6e6, peak_flops=1e11)
    meter.add(1000, 9.0, 9.0)
    meter.read()
    meter.add(1000, 0.4, 0.1, lambda: {"forward_seconds": 0.05, "backward_seconds": 0.2})
    meter.add(1000, 0.6, 0.3, lambda: {"forward_seconds": 0.15, "optimizer_seconds": 0.04})
    assert meter.read() == pytest.approx(
        {
            "step_seconds": 0.5,
            "data_wait_seconds": 0.2,
            "forward_seconds": 0.1,
            "backward_seconds": 0.1,
            "optimizer_seconds": 0.02,
            "tokens_per_second": 2000.0,
            "mfu": 2000 * 6e6 / 1e11,
        }
    )


def test_without_a_peak_no_mfu_is_told() -> None:
    meter = Meter(1.0, None)
    meter.add(1000, 1.0, 0.0)
    assert meter.read()["mfu"] is None


def test_the_cpu_peak_is_measured_and_says_how() -> None:
    peak = peak_of(torch.device("cpu"), torch.float32)
    assert peak.flops is not None
    assert peak.flops > 1e8
    assert peak.source == "measured 2048 x 2048 float32 product"
    assert measure_matrix_rate(torch.device("cpu"), torch.float32, seconds=0.0) > 1e8


def test_gpu_peaks_are_dense_ones() -> None:
    # The sparse figures that data sheets put first are twice these.
    assert dense_bf16_peaks()["H100"] == 989e12
    assert dense_bf16_peaks()["A100"] == 312e12
    names = list(dense_bf16_peaks())
    for position, name in enumerate(names):
        hides = any(re.search(rf"\b{earlier}\b", name) for earlier in names[:position])
        assert not hides, f"{name} is hidden by an earlier key"


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA L400", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_device_is_known_by_whole_words_of_its_name(device: str, key: str | None) -> None:
    assert dense_bf16_peak(device) == (None if key is None else dense_bf16_peaks()[key])


def test_memory_in_use_is_told_in_bytes() -> None:
    assert 50e6 < peak_memory_bytes(torch.device("cpu")) < 1e12


def test_plain_lines_where_there_is_no_terminal_and_nothing_on_other_ranks() -> None:
    values = {"loss": 2.5, "tokens_per_second": 1234.0, "mfu": 0.5, "lr": 1e-3, "grad_norm": 1.0}
    stream = io.StringIO()
    shown = RunProgress(stream)
    shown.start(0, total_steps=10)
    shown.metrics(5, values)
    shown.say("one line")
    shown.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("step 5/10  loss 2.5000  1,234 tok/s  mfu 50.0%  lr 1.00e-03")
    assert lines[1] == "one line"
    RunProgress(None).metrics(5, values)
