"""A DeepSpeed JSON file, read strictly: no duplicate keys, and no key at any level that DeepSpeed does not know.

DeepSpeed itself ignores a misspelt top-level key: `zero_optimizaton` trains at stage 0. The keys it knows stand in
deepspeed_keys.json, written by tests/config/deepspeed_keys.py from DeepSpeed's own config classes.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

from scaletrain.config.problems import closest, raise_problems, shown
from scaletrain.errors import ConfigError


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and isfinite(value))


# Key -> the Table of its section, or what its value is: a name of _KINDS, a list of the words it may be, or None (any
# value: DeepSpeed declares no type for it).
Table = dict[str, Any]

# An int may stand where a float is due, and 5e8 where an int is, as DeepSpeed itself takes them.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": ("a whole number", lambda value: _is_number(value) and value == value // 1),
    "float": ("a number", _is_number),
    "str": ("a text", lambda value: isinstance(value, str)),
    "section": ("a section {...}", lambda value: isinstance(value, dict)),
}


def load_deepspeed(path: Path | str) -> dict[str, Any]:
    """The JSON object in `path`. Raises ConfigError if it cannot be read, is no JSON object or repeats a key."""
    repeated: list[str] = []

    def section(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated.extend(key for key in dict.fromkeys(keys) if keys.count(key) > 1)
        return dict(pairs)

    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=section)
    except OSError as error:
        raise ConfigError(f"{path}: the DeepSpeed config cannot be read ({error.strerror}): give a JSON file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the DeepSpeed config is not UTF-8 text ({error}): give a JSON file") from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno}): it takes no comments, no last comma"
        ) from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: a DeepSpeed config is a JSON object {{...}}, this file holds {shown(config)}")
    raise_problems(str(path), [f"the key {key} is given twice in one section: remove one" for key in repeated])
    return config


def check_keys(config: dict[str, Any], source: str) -> None:
    """Raises one ConfigError with every key of `config`, at any level, that DeepSpeed does not know, and every value
    of another type than DeepSpeed's. null and "auto" leave any key to the trainer."""
    raise_problems(source, list(_faults(config, key_table()["keys"], "")))


@cache
def key_table() -> dict[str, Any]:
    """`deepspeed` (the version it was read from), `keys` (a Table), `removed` (dotted key -> DeepSpeed's own word)."""
    table: dict[str, Any] = json.loads(Path(__file__).with_name("deepspeed_keys.json").read_text(encoding="utf-8"))
    return table


def _faults(config: dict[str, Any], table: Table, prefix: str) -> Iterator[str]:
    for key, value in config.items():
        name = prefix + key
        if name in key_table()["removed"]:
            yield f"{name} is gone from DeepSpeed: {key_table()['removed'][name]}; remove it"
        elif key not in table:
            yield f"{name} is unknown to DeepSpeed {key_table()['deepspeed']}: {_remedy(key, table, prefix)}"
        elif isinstance(value, dict) and isinstance(table[key], dict):
            yield from _faults(value, table[key], f"{name}.")
        elif value is not None and value != "auto" and (wanted := _unmet(value, table[key])):
            yield f"{name}={shown(value)} should be {wanted}"


def _unmet(value: Any, kind: Table | list[str] | str | None) -> str:
    """What `value` should be in place of what it is; empty if it is that."""
    if isinstance(kind, dict):
        return f"a section: {{{', '.join(list(kind)[:3])}, ...}}"
    if isinstance(kind, list):
        return "" if value in kind else f"one of {', '.join(kind)}"
    name, is_met = _KINDS[kind] if kind else ("", lambda _: True)
    return "" if is_met(value) else f"{name}: mend it, or remove it"


def _remedy(key: str, table: Table, prefix: str) -> str:
    homes = [name for name in _all_names(key_table()["keys"], "") if name.rpartition(".")[2] == key]
    close = closest(key, table)
    if close is not None:
        return f"did you mean {prefix}{close}?"
    if homes:
        return f"{key} belongs to {' or '.join(homes[:3])}"
    every = {name.rpartition(".")[2]: name for name in _all_names(key_table()["keys"], "")}
    close = closest(key, every)
    return f"did you mean {every[close]}?" if close is not None else "remove it"


def _all_names(table: Table, prefix: str) -> Iterator[str]:
    for key, inner in table.items():
        yield prefix + key
        yield from _all_names(inner if isinstance(inner, dict) else {}, f"{prefix}{key}.")
