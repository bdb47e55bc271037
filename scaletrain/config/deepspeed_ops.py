"""The ops of DeepSpeed that a DeepSpeed file asks for and that are compiled when a run starts. Pure."""

from collections.abc import Mapping
from typing import Any

# Section.key of zero_optimization, and the values that need the op.
_OPS: dict[str, tuple[tuple[str, tuple[Any, ...]], ...]] = {
    "cpu_adam": (("offload_optimizer.device", ("cpu", "nvme")),),
    "async_io": (("offload_optimizer.device", ("nvme",)), ("offload_param.device", ("nvme",))),
    "quantizer": (
        ("zero_quantized_weights", (True,)),
        ("zero_quantized_nontrainable_weights", (True,)),
        ("zero_quantized_gradients", (True,)),
    ),
}


def needed_ops(preset: Mapping[str, Any]) -> tuple[str, ...]:
    """Names as DeepSpeed has them."""
    zero = preset.get("zero_optimization") or {}
    return tuple(op for op, keys in _OPS.items() if any(_at(zero, key) in values for key, values in keys))


def _at(section: Any, key: str) -> Any:
    for name in key.split("."):
        section = section.get(name) if isinstance(section, Mapping) else None
    return section
