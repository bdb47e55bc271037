"""Which ops a DeepSpeed file asks for, by DeepSpeed's names."""

import importlib
from typing import Any

import pytest

from scaletrain.config.deepspeed_file import load_deepspeed
from scaletrain.config.deepspeed_ops import needed_ops
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("zero", "ops"),
    [
        ({}, ()),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, ()),
        ({"offload_optimizer": {"device": "none"}}, ()),
        ({"offload_optimizer": {"device": "cpu"}}, ("cpu_adam",)),
        ({"offload_optimizer": {"device": "nvme"}}, ("cpu_adam", "async_io")),
        ({"offload_param": {"device": "nvme"}}, ("async_io",)),
        ({"zero_quantized_gradients": True, "zero_quantized_weights": False}, ("quantizer",)),
    ],
)
def test_ops_by_what_is_offloaded_or_quantized(zero: dict[str, Any], ops: tuple[str, ...]) -> None:
    assert needed_ops({"zero_optimization": zero}) == ops


def test_ops_of_the_shipped_files() -> None:
    found = {path.stem: needed_ops(load_deepspeed(path)) for path in sorted((ROOT / "ds_configs").glob("*.json"))}
    offloads = dict.fromkeys(("zero1-offload", "zero2-offload", "zero3-offload"), ("cpu_adam",))
    assert {name: ops for name, ops in found.items() if ops} == {**offloads, "zeropp": ("quantizer",)}


@pytest.mark.parametrize(("op", "builder"), [("cpu_adam", "cpu.cpu_adam.CPUAdamBuilder"),
                                             ("async_io", "async_io.AsyncIOBuilder"),
                                             ("quantizer", "quantizer.QuantizerBuilder")])  # fmt: skip
def test_names_are_deepspeeds(op: str, builder: str) -> None:
    module, _, name = builder.rpartition(".")
    found = getattr(importlib.import_module(f"deepspeed.ops.op_builder.{module}"), name)
    assert op == found.NAME
