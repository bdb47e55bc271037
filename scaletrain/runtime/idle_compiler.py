"""torch's compiler, loaded only once something is compiled: else a second of each start and 90 MB of each rank."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

_NAME, _SETTINGS = "torch._dynamo", "torch._dynamo.config"
_Function = TypeVar("_Function", bound=Callable[..., Any])


def stand_in_for_compiler() -> None:
    """Optimizers, custom operators and DeepSpeed's hooks load torch's compiler at their first call, only to tell it to
    leave them alone, and activation checkpointing reads a setting of it. From here on that is answered without it;
    whatever else is asked loads it, which then does not know what it was told before."""
    if _NAME not in sys.modules:
        sys.modules[_NAME] = torch._dynamo = _StandIn(_NAME)


def load_compiler() -> ModuleType:
    """The real one. Inside deepspeed.zero.Init it cannot be loaded: that replaces torch.Tensor's constructor."""
    if isinstance(sys.modules.get(_NAME), _StandIn):
        del sys.modules[_NAME]
    return importlib.import_module(_NAME)


class _StandIn(ModuleType):
    @staticmethod
    def disable(fn: _Function, *_: Any, **__: Any) -> _Function:
        return fn

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # of those who look through all modules
            raise AttributeError(f"{_NAME} is not loaded yet: no {name}")
        if sys.modules.get(_NAME) is self and name == "config":
            self.config = _load_settings()
            return self.config
        return getattr(load_compiler(), name)


def _load_settings() -> ModuleType:
    """The file alone: it imports nothing of the compiler, which takes it as it is when it is loaded."""
    spec = importlib.util.spec_from_file_location(_SETTINGS, Path(torch.__file__).parent / "_dynamo" / "config.py")
    assert spec is not None and spec.loader is not None
    sys.modules[_SETTINGS] = settings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(settings)
    return settings
