"""Nested mappings as dotted keys."""

from collections.abc import Mapping
from typing import Any


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` becomes `{"a.b": 1}`; lists and empty mappings stay as they are."""
    flat: dict[str, Any] = {}
    for key, one in value.items():
        if isinstance(one, Mapping) and one:
            flat |= flatten(one, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = one
    return flat
