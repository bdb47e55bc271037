"""Where ZeRO++ is refused."""

from typing import Any

import pytest

from scaletrain.config.schema import Precision
from scaletrain.config.zeropp import check_zeropp
from scaletrain.errors import ConfigError


def check(zero: dict[str, Any], precision: Precision = "bf16", *, on_gpu: bool = True, **more: Any) -> None:
    check_zeropp("my.json", {"zero_optimization": {"stage": 3, **zero}, **more}, precision, 4, on_gpu=on_gpu)


def test_what_can_run_is_let_through() -> None:
    for size in (0, 1, 2, 4):
        check({"zero_hpz_partition_size": size}, on_gpu=False)
    check({"zero_quantized_weights": True, "zero_quantized_gradients": False, "stage": 3})
    check({"zero_quantized_gradients": True}, "fp16")
    check({"zero_quantized_gradients": True}, communication_data_type="FP16")
    check({"stage": 1}, on_gpu=False)


@pytest.mark.parametrize(
    ("zero", "on_gpu", "line"),
    [
        (
            {"zero_hpz_partition_size": 3},
            True,
            "my.json: zero_optimization.zero_hpz_partition_size=3 does not divide the ranks of a node, 4, which keep a "
            "copy of the weights among them: set it to 4, or to a divisor of it",
        ),
        (
            {"zero_hpz_partition_size": 8},
            True,
            "zero_hpz_partition_size=8 does not divide the ranks of a node, 4, which",
        ),
        ({"zero_hpz_partition_size": 2, "stage": 2}, True, "has no effect at stage 2, which splits no weights: set"),
        ({"zero_quantized_weights": True, "stage": 1}, True, "zero_quantized_weights=true has no effect at stage 1"),
        (
            {"zero_quantized_weights": True},
            False,
            "my.json: zero_optimization.zero_quantized_weights=true needs a GPU, DeepSpeed's quantizer has no other "
            "kernels: remove it here, or use ds_configs/zero3.json",
        ),
        ({"zero_quantized_nontrainable_weights": True}, False, "zero_quantized_nontrainable_weights=true needs a GPU"),
        (
            {"zero_quantized_gradients": True},
            True,
            "my.json: zero_optimization.zero_quantized_gradients=true with gradients sent as bf16: DeepSpeed's kernel "
            'reads their bits as fp16, whatever they are: set "communication_data_type": "fp16"',
        ),
        ({"zero_quantized_gradients": True, "zero_hpz_partition_size": 3}, False, "my.json: 3 problems\n"),
    ],
)
def test_what_cannot_run_is_refused(zero: dict[str, Any], on_gpu: bool, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(zero, on_gpu=on_gpu)
    assert line in str(caught.value)
