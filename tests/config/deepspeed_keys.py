"""Writes the table of keys that DeepSpeed's JSON may hold, read from the installed DeepSpeed itself.

    python tests/config/deepspeed_keys.py        (writes scaletrain/config/deepspeed_keys.json)

DeepSpeed's typed sections (pydantic) give their fields; the others are found by handing its own readers a dict that
writes down which keys they ask for. A key maps to its section's table or to what its value is: "bool", "int", "float",
"str", "section" (of any keys), a list of words, or null where DeepSpeed declares no type.
"""

import json
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

TABLE = Path(__file__).parents[2] / "scaletrain" / "config" / "deepspeed_keys.json"


class Probe(dict[str, Any]):
    """A dict that remembers every key it is asked for; `asked` holds them."""

    def __init__(self, **sections: Any) -> None:
        super().__init__(**sections)
        self.asked: set[str] = set(sections)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __bool__(self) -> bool:
        return True  # some readers return early for an empty section

    def keys(self) -> Any:
        return self  # `key in section.keys()` is then noticed too

    def __copy__(self) -> "Probe":
        return self

    def table(self) -> dict[str, Any]:
        values = {key: dict.get(self, key) for key in sorted(self.asked)}
        other = {key: "section" if isinstance(value, dict) else None for key, value in values.items()}
        return other | {key: value.table() for key, value in values.items() if isinstance(value, Probe)}


def typed(model: type[BaseModel]) -> dict[str, Any]:
    """The fields and aliases of one of DeepSpeed's typed sections, sections inside it included."""
    out: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        for key in {name, field.alias or name}:
            out[key] = kind_of(field.annotation)
    return dict(sorted(out.items()))


def kind_of(annotation: Any) -> Any:
    """What the table says of one field: of `X | None` what it says of X, of any other union nothing."""
    parts = [part for part in get_args(annotation) or (annotation,) if part is not type(None)]
    kind = parts[0] if len(parts) == 1 and get_origin(annotation) in (None, Union, UnionType) else None
    if not isinstance(kind, type):
        return None
    if issubclass(kind, BaseModel):
        return typed(kind)
    if issubclass(kind, Enum):
        words = [word.value for word in kind]
        return words if all(isinstance(word, str) for word in words) else None
    return {bool: "bool", int: "int", float: "float", str: "str", Path: "str"}.get(kind)


def asked_for() -> dict[str, Any]:
    """The keys that DeepSpeed's hand-written readers ask for, top level and sections."""
    from deepspeed.runtime import config as ds

    batching = Probe(metrics_path="x", enabled=True, max_tokens=1)
    probe = Probe(
        train_batch_size=1,
        activation_checkpointing=Probe(),
        flops_profiler=Probe(),
        autotuning=Probe(model_info=Probe()),
        aio=Probe(),
        checkpoint=Probe(writer=Probe(), parallel_write=Probe()),
        data_types=Probe(),
        torch_autocast=Probe(dtype="bf16", lower_precision_safe_modules=[]),
        optimizer=Probe(type="adamw", params={}),
        scheduler=Probe(type="x", params={}),
        data_efficiency=Probe(
            data_sampling=Probe(curriculum_learning={}, dynamic_batching=batching),
            data_routing=Probe(random_ltd={}),
        ),
        expert_parallel=Probe(),
    )
    ds.DeepSpeedConfig(probe)
    return probe.table()


def build() -> dict[str, Any]:
    """The table: DeepSpeed's version, its keys, and the keys that it has removed with its own word on each."""
    import deepspeed
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.inference.config import WeightQuantConfig
    from deepspeed.monitor.config import DeepSpeedMonitorConfig
    from deepspeed.runtime import config as ds
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    keys = {
        **asked_for(),
        "zero_optimization": typed(DeepSpeedZeroConfig),
        "bf16": typed(DeepSpeedBF16Config),
        "bfloat16": typed(DeepSpeedBF16Config),
        "fp16": typed(DeepSpeedFP16Config),
        "hybrid_engine": typed(ds.HybridEngineConfig),
        "comms_logger": typed(CommsLoggerConfig),
        "weight_quantization": typed(WeightQuantConfig),
        "compile": typed(CompileConfig),
        "tensor_parallel": typed(TPTrainingConfig),
        "timers": {"throughput": typed(DeepSpeedThroughputTimerConfig)},
        "pipeline": dict.fromkeys(sorted([*ds.get_pipeline_config({}), "use_reentrant"])),  # the last: pipe/engine.py
        "sequence_parallel_size": None,  # these two are read by deepspeed.initialize for its device mesh
        "data_parallel_size": None,
        **{k: v for k, v in typed(DeepSpeedMonitorConfig).items() if isinstance(v, dict)},
    }
    gone = {**ds._REMOVED_TOP_LEVEL_CONFIG_KEYS}
    gone.update({f"zero_optimization.{k}": v for k, v in ds._REMOVED_ZERO_CONFIG_KEYS.items()})
    return {
        "deepspeed": deepspeed.__version__.split("+")[0],
        "keys": {k: v for k, v in sorted(keys.items()) if k not in gone},
        "removed": {k: v.split(". ")[0].rstrip(".") for k, v in sorted(gone.items())},
    }


if __name__ == "__main__":
    TABLE.write_text(json.dumps(build(), indent=1) + "\n")
