"""ZeRO++ (Wang et al. 2023): where a DeepSpeed file that asks for it would fail, or train on wrong numbers. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from scaletrain.config.problems import raise_problems, shown
from scaletrain.config.schema import Precision

_COPIES = "zero_hpz_partition_size"
_QUANTIZED = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")


def check_zeropp(
    source: str, config: Mapping[str, Any], precision: Precision, node_ranks: int, *, on_gpu: bool
) -> None:
    """ConfigError with what does not go on nodes of `node_ranks` ranks; `config`: as DeepSpeed gets it."""
    raise_problems(source, list(_problems(config, precision, node_ranks, on_gpu)))


def _problems(config: Mapping[str, Any], precision: Precision, node_ranks: int, on_gpu: bool) -> Iterator[str]:
    zero = config["zero_optimization"]
    copies = zero.get(_COPIES, 1)
    quantized = [key for key in _QUANTIZED if zero.get(key)]
    asked = ([f"{_COPIES}={shown(copies)}"] if copies > 1 else []) + [f"{key}=true" for key in quantized]
    if asked and zero["stage"] != 3:
        yield (
            f"zero_optimization.{asked[0]} has no effect at stage {zero['stage']}, which splits no weights: set "
            "zero_optimization.stage to 3, or remove it"
        )
        return
    if copies > 1 and node_ranks % copies:
        yield (
            f"zero_optimization.{_COPIES}={shown(copies)} does not divide the ranks of a node, {node_ranks}, which "
            f"keep a copy of the weights among them: set it to {node_ranks}, or to a divisor of it"
        )
    if quantized and not on_gpu:
        yield (
            f"zero_optimization.{quantized[0]}=true needs a GPU, DeepSpeed's quantizer has no other kernels: remove it "
            "here, or use ds_configs/zero3.json"
        )
    sent = str(config.get("communication_data_type") or precision).lower()
    if zero.get("zero_quantized_gradients") and sent != "fp16":
        yield (
            f"zero_optimization.zero_quantized_gradients=true with gradients sent as {sent}: DeepSpeed's kernel reads "
            'their bits as fp16, whatever they are: set "communication_data_type": "fp16"'
        )
