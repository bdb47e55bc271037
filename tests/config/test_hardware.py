"""hardware.toml is complete, and devices are found in it by name."""

import pytest

from scaletrain.config.hardware import CPU, cpu, dense_bf16_peaks, hardware, hardware_names, hardware_of
from scaletrain.errors import ConfigError

WANTED = ["a100-40", "a100-80", "h100", "h200", "b200", "l40s", "mi300x", "rtx-4090", "rtx-5090"]


def test_all_that_are_promised_are_there() -> None:
    assert sorted(hardware_names()) == sorted([*WANTED, CPU])


@pytest.mark.parametrize("name", WANTED)
def test_figures_are_whole_and_plausible(name: str) -> None:
    found = hardware(name)
    assert found.name == name
    assert 20e9 < found.memory < 400e9
    assert set(found.rates) == {"bf16", "fp16", "fp32"}
    assert 1e14 < found.rates["bf16"] < 3e15, "dense: the headline figures with sparsity are twice these"
    assert found.rates["fp32"] < found.rates["bf16"]
    assert 5e11 < found.bandwidth < 1e13
    assert found.link < found.bandwidth
    assert found.network <= found.link * 2
    assert "data sheet" in found.source or "architecture" in found.source


def test_this_machine_has_a_row_too() -> None:
    found = cpu(4e11, "measured now")
    assert found.is_cpu
    assert not hardware("h100").is_cpu
    assert set(found.rates.values()) == {4e11}
    assert 1e9 <= found.link < found.bandwidth < hardware("rtx-4090").bandwidth
    assert found.network == 1.25e9  # 10 Gb/s


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="--gpu h10O is unknown: did you mean h100?"):
        hardware("h10O")
    with pytest.raises(ConfigError, match="--gpu tpu is unknown: choose one of a100-40, .*, cpu"):
        hardware("tpu")
    with pytest.raises(ConfigError, match="--gpu cpu is unknown"):
        hardware(CPU)


def test_a_device_is_found_by_the_drivers_name() -> None:
    found = hardware_of("NVIDIA H100 80GB HBM3")
    assert found is not None
    assert found.name == "h100"
    assert hardware_of("NVIDIA H100 PCIe") is None  # slower: only its bf16 rate is known
    assert hardware_of("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert hardware_of("NVIDIA RTX A1000") is None


def test_each_rate_is_the_same_for_mfu_and_for_planning() -> None:
    peaks = dense_bf16_peaks()
    assert {peaks["A100"], peaks["H100"], peaks["MI300X"]} == {312e12, 989e12, 1307e12}
