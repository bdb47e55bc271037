"""A DeepSpeed JSON file, read strictly: no duplicate keys, and no key at any level that DeepSpeed does not know.

DeepSpeed itself ignores a misspelt top-level key: `zero_optimizaton` trains at stage 0. The keys it knows stand in
deepspeed_keys.json, written by tests/config/deepspeed_keys.py from DeepSpeed's own config classes.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from scaletrain.config.problems import closest, raise_problems, shown
from scaletrain.errors import ConfigError

Table = dict[str, Any]  # key -> None (a value, or a section of any keys) or the Table of its section


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
    """Raises one ConfigError with every key of `config`, at any level, that DeepSpeed does not know."""
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
        elif isinstance(value, dict) and table[key] is not None:
            yield from _faults(value, table[key], f"{name}.")
        elif table[key] is not None and value is not None and value != "auto":
            yield f"{name}={shown(value)} should be a section: {{{', '.join(list(table[key])[:3])}, ...}}"


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
        yield from _all_names(inner or {}, f"{prefix}{key}.")
