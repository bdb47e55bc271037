"""YAML as recipes use it: safe, duplicate keys are errors, and plain values read as YAML 1.2 reads them."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from scaletrain.errors import ConfigError

# PyYAML follows YAML 1.1: 3e-4 is a string, 010 is eight, 1:30 is ninety, no is false, 2026-01-01 is a date. People
# write YAML 1.2, where these are a number, ten and strings. (Underscores in numbers are 1.1's, and kept: 100_000.)
_PLAIN = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "tag:yaml.org,2002:merge": (r"<<", ["<"]),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader with the plain values above and no duplicate keys."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly what `_Loader` would not read back as a string."""


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag not in {
            "tag:yaml.org,2002:str",
            "tag:yaml.org,2002:merge",
        }:
            raise yaml.constructor.ConstructorError(None, None, "a key should be a name", key.start_mark)
        if key.value in seen:
            text = f"the key {key.value} is given twice (lines {seen[key.value]} and {line}): remove one"
            raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
        seen[key.value] = line
    loader.flatten_mapping(node)
    return {loader.construct_object(key): loader.construct_object(value, deep=True) for key, value in node.value}


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in _PLAIN.items():
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, source: str) -> Any:
    """The value that `text` holds. Raises ConfigError in one line: `source`, its line, the fault."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None and "\n" in text else ""
        raise ConfigError(f"{source}{line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from None


def dump_yaml(value: Any) -> str:
    """`value` as block YAML in its own key order; `parse_yaml` reads it back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
