"""Calls into the library with tensors, where it serves them."""

from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor

from scaletrain.model.native.build import library


def serves(*inputs: Tensor) -> bool:
    """Whether the kernels take these here: dense, bfloat16, on a CPU. A graph that is being compiled has its own."""
    if torch.compiler.is_compiling():
        return False
    is_fit = all(x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.is_contiguous() for x in inputs)
    return is_fit and library() is not None


def call(function: str, *arguments: Tensor | float | None) -> None:
    """A tensor (or none) is passed by its address, an int as int64, a float as double; then the number of threads."""
    kernels = library()
    assert kernels is not None
    kernels[function](*map(_as_c, arguments), torch.get_num_threads())


def _as_c(argument: Tensor | float | None) -> c_void_p | c_int64 | c_double:
    if isinstance(argument, int):
        return c_int64(argument)
    if isinstance(argument, float):
        return c_double(argument)
    return c_void_p(None if argument is None else argument.data_ptr())
