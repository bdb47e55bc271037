"""What is wrong with a recipe's keys and values, in the user's words: value, rule, remedy, a line each."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scaletrain.config.schema import BaseRecipe, Section
from scaletrain.errors import ConfigError

_IN_A_NAME = "[key]"  # pydantic's mark of a fault that is not in a value


def raise_problems(source: str, problems: list[str]) -> None:
    """Raises one ConfigError for all `problems` of the file `source`; returns if there are none."""
    if len(problems) == 1:
        raise ConfigError(f"{source}: {problems[0]}")
    if problems:
        raise ConfigError("\n".join([f"{source}: {len(problems)} problems", *(f"  {line}" for line in problems)]))


def shown(value: Any) -> str:
    """`value` as a person would write it in YAML, cut at 60 characters."""
    text = value if isinstance(value, str) and value else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that a misspelt `name` most likely means."""
    by_lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[found[0]] if found else None


def sections(model: type[BaseModel]) -> dict[str, type[Section]]:
    """The fields of `model` that are sections, with their classes."""
    kinds = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}


def take_unknown_keys(data: dict[str, Any], recipe: type[BaseRecipe]) -> list[str]:
    """A line for each key of `data` that a `recipe` has not; `data` is left with what the user must have meant.

    So that one misspelling is told once: `max_step: 100` counts as max_steps for the rules that are checked next.
    """
    found = []
    parts = sections(recipe)
    for name in [n for n in data if n not in recipe.model_fields]:
        value = data.pop(name)
        meant = closest(name, parts) if isinstance(value, dict) else None
        if meant is None:
            found.append(_misplaced(recipe, data, "", name, value))
            continue
        found.append(f"{name} is unknown: did you mean {meant}?")
        data.setdefault(meant, value)
    for section, model in parts.items():
        if data.get(section) is None:
            data.pop(section, None)  # `optim:` with nothing under it is an empty section
            continue
        if isinstance(data[section], dict):
            unknown = [n for n in data[section] if n not in model.model_fields]
            found += [_misplaced(recipe, data, section, name, data[section].pop(name)) for name in unknown]
            for path, inner, values in _sections_below(model, data[section], section):
                found += [_misspelt(path, inner, values, n) for n in list(values) if n not in inner.model_fields]
    return found


def _sections_below(
    model: type[Section], values: dict[str, Any], path: str
) -> Iterator[tuple[str, type[Section], dict[str, Any]]]:
    """The sections inside of a section, as fields, by name or in a list: where, their class, their keys."""
    for name, field in model.model_fields.items():
        inner, value = _section_in(field.annotation), values.get(name)
        if inner is None:
            continue
        parts: list[tuple[str, Any]] = []
        if isinstance(field.annotation, type):
            parts = [("", value)]
            if value is None:
                values.pop(name, None)  # empty, as above
        elif isinstance(value, dict) and _is_by_name(field.annotation):
            parts = [(f".{key}", part) for key, part in value.items()]
        elif isinstance(value, list):
            parts = [(f"[{number}]", part) for number, part in enumerate(value)]
        for where, part in parts:
            if isinstance(part, dict):
                yield f"{path}.{name}{where}", inner, part
                yield from _sections_below(inner, part, f"{path}.{name}{where}")


def _is_by_name(annotation: Any) -> bool:
    return any(get_origin(part) is dict for part in (annotation, *get_args(annotation)))


def _section_in(annotation: Any) -> type[Section] | None:
    """The class of the sections that a field of this type holds, if it holds any."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part)) is not None), None)


def _misspelt(path: str, model: type[Section], values: dict[str, Any], name: str) -> str:
    """The line on an unknown key of an inner section; its value goes to the key that it must mean, if free."""
    value, close = values.pop(name), closest(name, model.model_fields)
    if close and values.get(close) is None:
        values[close] = value
    reason = f"did you mean {path}.{close}?" if close else f"the keys of {path} are {', '.join(model.model_fields)}"
    return f"{path}.{name}{'' if isinstance(value, dict) else f'={shown(value)}'} is unknown: {reason}"


def _misplaced(recipe: type[BaseRecipe], data: dict[str, Any], section: str, name: str, value: Any) -> str:
    """The line on an unknown key (already taken out of `data`); its value is put where it was meant to be, if free."""
    parts = sections(recipe)
    here = parts[section].model_fields if section else recipe.model_fields
    homes = [s for s, model in parts.items() if name in model.model_fields]
    full = f"{section}.{name}" if section else name
    what = full if isinstance(value, dict) else f"{full}={shown(value)}"
    if name in recipe.model_fields and not isinstance(value, dict):
        meant, reason = name, f"{name} belongs to no section: write it at the top level"
    elif homes and closest(name, here) is None:
        meant = f"{homes[0]}.{name}"
        reason = f"{name} belongs to {' or '.join(f'{s}.{name}' for s in homes)}"
    elif close := closest(name, here):
        meant = f"{section}.{close}" if section else close
        reason = f"did you mean {meant}?"
    elif leaf := closest(name, (n for model in parts.values() for n in model.model_fields)):
        meant = next(f"{s}.{leaf}" for s, model in parts.items() if leaf in model.model_fields)
        reason = f"did you mean {meant}?"
    else:
        meant, reason = "", f"the keys {f'of {section}' if section else 'at the top level'} are {', '.join(here)}"
    if meant:
        home, _, key = meant.rpartition(".")
        target = data.setdefault(home, {}) if home else data
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = value
    return f"{what} is unknown: {reason}"


def value_problems(
    error: ValidationError, data: dict[str, Any], recipe: type[BaseRecipe]
) -> tuple[list[str], set[str]]:
    """A line for each fault of pydantic's `error`, and the keys at fault, which are taken out of `data`."""
    lines: list[str] = []
    broken: set[str] = set()
    for detail in error.errors():
        keys = [part for part in detail["loc"] if isinstance(part, str)]
        is_missing = detail["type"] == "missing" and keys[-1] == detail["loc"][-1]  # else: an item of a list is
        if is_missing and keys[-1] in sections(recipe):
            required = [n for n, f in sections(recipe)[keys[-1]].model_fields.items() if f.is_required()]
            missing = [f"{keys[-1]}.{n}" for n in required]
            data[keys[-1]] = dict.fromkeys(required, "missing")  # lets the rules over the other keys still be checked
        elif is_missing and len(keys) == len(detail["loc"]):
            missing = [".".join(keys)]
            _inside(data, keys[:-1])[keys[-1]] = "missing"
        else:
            missing = []
            _take(data, keys[:2])
            lines.append(
                f"{_name(detail['loc'])} is not set: add it there" if is_missing else _sentence(detail, recipe)
            )
        lines += [f"{name} is not set: add it to the recipe or the command line ({name}=...)" for name in missing]
        broken.update(missing or {".".join(keys[:2])})
    return lines, broken


def _inside(data: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    for key in keys:
        data = data[key]
    return data


def _take(data: dict[str, Any], keys: list[str]) -> None:
    section = data if len(keys) == 1 else data[keys[0]]
    section.pop(keys[-1], None)


def _name(loc: tuple[int | str, ...]) -> str:
    keys = loc[:-1] if loc[-1] == _IN_A_NAME else loc
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in keys).lstrip(".")


def _sentence(detail: ErrorDetails, recipe: type[BaseRecipe]) -> str:
    """pydantic's fault as value and rule."""
    loc, kind, value, context = detail["loc"], detail["type"], detail["input"], detail.get("ctx", {})
    if kind in ("tuple_type", "too_long", "missing"):
        loc = loc[:2]
        rule: str | None = _list_rule(loc, recipe)
    else:
        rule = _rule(kind, value, context)
    given = "" if loc[-1] == _IN_A_NAME else f"={shown(value)}"
    return f"{_name(loc)}{given} {rule or 'is not valid: ' + detail['msg']}"


def _list_rule(loc: tuple[int | str, ...], recipe: type[BaseRecipe]) -> str:
    section, key = map(str, loc)
    annotation = sections(recipe)[section].model_fields[key].annotation
    if (inner := _section_in(annotation)) is not None:
        return f"should be a list of sections, a dash before each, with the keys {', '.join(inner.model_fields)}"
    if Ellipsis in get_args(annotation):
        return "should be a list, such as [a, b]"
    return "should be a list of two numbers, such as [0.9, 0.95]"


def _rule(kind: str, value: Any, context: Mapping[str, Any]) -> str | None:
    if kind == "literal_error":
        choices = [c.strip("' ") for c in context["expected"].replace(" or ", ",").split(",")]
        close = closest(str(value), choices)
        return f"is not one of {', '.join(choices)}" + (f": did you mean {close}?" if close else "")
    bounds = {
        "greater_than": ("gt", "should be above"),
        "greater_than_equal": ("ge", "should be at least"),
        "less_than": ("lt", "should be below"),
        "less_than_equal": ("le", "should be at most"),
    }
    if kind in bounds:
        key, words = bounds[kind]
        return f"{words} {context[key]:g}"
    return {
        "value_error": str(context.get("error", "")),
        "int_type": "should be a whole number",
        "int_parsing": "should be a whole number (100_000, 1e5, 10B and 2.5M are read too)",
        "int_from_float": "should be a whole number",
        "float_type": "should be a number, written like 0.0003 or 3e-4",
        "float_parsing": "should be a number, written like 0.0003 or 3e-4",
        "finite_number": "should be a finite number",
        "bool_type": "should be true or false",
        "bool_parsing": "should be true or false",
        "string_type": "should be text: put it in quotes",
        "string_too_short": "should not be empty",
        "list_type": "should be a list, such as [a, b]",
        "model_type": "should be a section: keys on lines of their own, indented below it",
        "dict_type": "should be a section: keys on lines of their own, indented below it",
    }.get(kind)
