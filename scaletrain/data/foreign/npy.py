"""Numpy's .npy files: one dimension of uint16, uint32 or int32, with a header of any version."""

from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from scaletrain.data.foreign.token_file import Given, TokenFile, check_dtype, check_size, open_bytes, reading
from scaletrain.errors import DataError

MAGIC = b"\x93NUMPY"
_READ = {"<u2": "uint16", "<u4": "uint32", "<i4": "uint32"}


def read_npy(path: Path, given: Given) -> TokenFile:
    """A file that begins with numpy's header."""
    with open_bytes(path) as file, reading(path):
        try:
            version = npy_format.read_magic(file)
            # Version 3 differs from 2 in the encoding of field names, which an array of numbers does not have.
            reader = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            shape, _, dtype = reader(file)
        except ValueError as error:
            raise DataError(f"{path} has a damaged .npy header ({error}): copy it again") from error
        offset = file.tell()
    if len(shape) != 1:
        raise DataError(f"{path} has the shape {shape}: only one dimension is read, write it with array.reshape(-1)")
    if dtype.str not in _READ:
        raise DataError(
            f"{path} holds {np.dtype(dtype).name} ({dtype.str}): only uint16, uint32 and int32 (little-endian) are "
            "read; write it with array.astype(np.uint32)"
        )
    found = _READ[dtype.str]
    check_dtype(path, found, given)
    check_size(path, offset, shape[0], dtype.itemsize)
    return TokenFile(path, found, offset, shape[0], has_type=True, is_signed=dtype.str == "<i4")
