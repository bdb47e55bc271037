"""llm.c's .bin files: a header of 256 int32 (magic, version, number of tokens), then uint16 or uint32."""

import struct
from pathlib import Path
from typing import NamedTuple

from scaletrain.data.foreign.token_file import Given, TokenFile, check_dtype, check_size, read_bytes
from scaletrain.data.shards import DTYPES
from scaletrain.errors import DataError

_HEADER_BYTES = 256 * 4
_EVALUATION = 20240522  # multiple-choice examples


class _Kind(NamedTuple):
    version: int
    dtype: str


_KINDS = {20240520: _Kind(1, "uint16"), 20240801: _Kind(7, "uint32")}  # as for GPT-2 and for Llama 3


def is_llmc(path: Path) -> bool:
    """Whether the file begins with one of llm.c's magic numbers."""
    head = read_bytes(path, 4)
    return len(head) == 4 and struct.unpack("<i", head)[0] in (*_KINDS, _EVALUATION)


def read_llmc(path: Path, given: Given) -> TokenFile:
    """A file that begins with llm.c's header; modded-nanogpt's are the same."""
    head = read_bytes(path, _HEADER_BYTES)
    if len(head) < _HEADER_BYTES:
        raise DataError(
            f"{path} has {len(head):,} bytes, fewer than the {_HEADER_BYTES:,} of its header: copy it again"
        )
    magic, version, tokens = struct.unpack_from("<3i", head)
    if magic == _EVALUATION:
        raise DataError(
            f"{path} holds multiple-choice examples of llm.c, no text: move it out of the folder or name another file"
        )
    kind = _KINDS[magic]
    if version != kind.version:
        raise DataError(
            f"{path} is an llm.c file {magic} of version {version}, only {kind.version} is read: write it again"
        )
    if tokens < 0:  # the field is an int32 and some writers let it overflow
        raise DataError(
            f"{path} has the number of tokens {tokens:,} in its header: write it in files below 2^31 tokens"
        )
    check_dtype(path, kind.dtype, given)
    check_size(path, _HEADER_BYTES, tokens, DTYPES[kind.dtype].itemsize)
    return TokenFile(path, kind.dtype, _HEADER_BYTES, tokens, has_type=True)
