"""Recipe files: YAML and `section.key=value` overrides in, one checked Recipe out; every problem is told at once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.data_rules import data_problems
from scaletrain.config.deepspeed_file import check_keys, load_deepspeed
from scaletrain.config.finetune_rules import finetune_problems
from scaletrain.config.finetune_schema import FinetuneRecipe, TaskKind
from scaletrain.config.problems import raise_problems, sections, shown, take_unknown_keys, value_problems
from scaletrain.config.schema import BaseRecipe, Recipe, profiled
from scaletrain.config.strict_yaml import dump_yaml, parse_yaml
from scaletrain.errors import ConfigError

AnyRecipe = Recipe | FinetuneRecipe
SECTIONS = sections(Recipe) | sections(FinetuneRecipe)  # of either kind of recipe
SOURCE_TREE = Path(__file__).parents[2]  # holds ds_configs/ in a clone; site-packages in an installed package


def load_recipe(path: Path, overrides: Sequence[str] = (), deepspeed_config: str | None = None) -> AnyRecipe:
    """The recipe of `path`, then `overrides` ("optim.lr=1e-4"), then `deepspeed_config` in place of its `deepspeed`.

    One with a `task` section is a fine-tuning recipe. Raises ConfigError with all problems: one line each, the file's
    name first.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 text: {error}"
        raise ConfigError(f"{path}: the recipe cannot be read ({reason}): give the path of a YAML file") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a recipe is sections of keys, this file holds {shown(data)}: see launch/recipes/")
    problems = [line for text in overrides for line in apply_override(data, text)]
    if deepspeed_config is not None:
        data["deepspeed"] = deepspeed_config
    recipe = _checked(data, path, problems)
    raise_problems(str(path), problems)
    assert recipe is not None  # a recipe that could not be built has left a problem
    return recipe


def recipe_class(data: dict[str, Any]) -> type[AnyRecipe]:
    """What kind of recipe these sections are."""
    return FinetuneRecipe if "task" in data else Recipe


def need_pretraining(recipe: AnyRecipe, path: Path) -> Recipe:
    """`recipe`, which must be one of pretraining."""
    if isinstance(recipe, Recipe):
        return recipe
    raise ConfigError(
        f"{path}: a fine-tuning recipe, it has a task section: run launch/finetune.py, or remove the section"
    )


def need_finetuning(recipe: AnyRecipe, path: Path) -> FinetuneRecipe:
    """`recipe`, which must be one of fine-tuning."""
    if isinstance(recipe, FinetuneRecipe):
        return recipe
    raise ConfigError(
        f"{path}: a pretraining recipe, it has no task section: run launch/pretrain.py, or set task.kind "
        f"({', '.join(get_args(TaskKind))})"
    )


def load_with_deepspeed(
    path: Path, overrides: Sequence[str] = (), deepspeed_config: str | None = None
) -> tuple[AnyRecipe, dict[str, Any]]:
    """A recipe and the DeepSpeed file that it names, each checked by itself; config/deepspeed.py settles the two."""
    recipe = load_recipe(path, overrides, deepspeed_config)
    preset = load_deepspeed(Path(recipe.deepspeed))
    check_keys(preset, recipe.deepspeed)
    return recipe, preset


def apply_override(data: dict[str, Any], text: str) -> list[str]:
    """Sets one `section.key=value` (a YAML value) in `data`; the problems of `text`, none if it was applied."""
    name, equals, written = text.partition("=")
    keys = name.strip().lstrip("-").split(".")
    if not equals or not all(keys):
        return [f"override {text!r} is not section.key=value: write it like optim.lr=1e-4"]
    try:
        value = parse_yaml(written, f"override {text!r}")
    except ConfigError as error:
        return [str(error)]
    section = data
    for depth, key in enumerate(keys[:-1], start=1):
        is_section = depth > 1 or key in SECTIONS or key not in BaseRecipe.model_fields
        if is_section and section.get(key) is None:
            section[key] = {}
        if not is_section or not isinstance(section[key], dict):
            return [f"override {text!r}: {'.'.join(keys[:depth])} is a value, not a section: it has no keys to set"]
        section = section[key]
    section[keys[-1]] = value
    return []


def _checked(data: dict[str, Any], path: Path, problems: list[str]) -> AnyRecipe | None:
    """The Recipe of `data`; what is wrong with it is added to `problems`.

    A key that is unknown or broken is told once, then mended or left out, so that the rules over several keys are still
    checked for the others.
    """
    kind = recipe_class(data)
    problems += take_unknown_keys(data, kind)
    try:
        recipe = kind.model_validate(data)
        broken: set[str] = set()
    except ValidationError as error:
        found, broken = value_problems(error, data, kind)
        problems += found
        try:
            recipe = kind.model_validate(data)
        except ValidationError:
            return None
    problems += [line for line in recipe_problems(recipe) if not any(name in line for name in broken)]
    found_file = find_deepspeed(recipe.deepspeed, path)
    if isinstance(found_file, str):
        problems.append(found_file)
        return recipe
    return recipe.model_copy(update={"deepspeed": str(found_file)})


def _live_problems(recipe: Recipe) -> Iterator[str]:
    for name in ("on_spike", "on_nonfinite"):
        if getattr(recipe.guard, name) == "roll_back" and recipe.data.source == "huggingface":
            yield f"guard.{name}=roll_back needs prepared data, a live source is read once: choose another policy"


def _guard_problems(recipe: AnyRecipe) -> Iterator[str]:
    kept = recipe.checkpoint
    if recipe.guard.on_spike == "roll_back" and kept.keep_last == 1 and not kept.keep_every_steps:
        yield (
            "guard.on_spike=roll_back with checkpoint.keep_last=1: the one checkpoint may be of the spike itself: set "
            "checkpoint.keep_last=2 or more"
        )


def recipe_problems(recipe: AnyRecipe) -> list[str]:
    """Every rule over several keys that `recipe` breaks, a line each. A warm-up may be longer than a (trial) run."""
    own = finetune_problems(recipe) if isinstance(recipe, FinetuneRecipe) else _pretraining_problems(recipe)
    return [*own, *_length_problems(recipe), *_shared_problems(recipe)]


def _length_problems(recipe: AnyRecipe) -> Iterator[str]:
    """Rules on the keys that set how far a run goes."""
    lengths: dict[str, float | None] = {
        "train.max_steps": recipe.train.max_steps,
        "train.max_tokens": recipe.train.max_tokens,
    }
    if isinstance(recipe, FinetuneRecipe):
        lengths["train.max_epochs"] = recipe.train.max_epochs
    given = {name: value for name, value in lengths.items() if value is not None}
    if not given:
        yield f"{' and '.join(lengths)} are not set: give one, it is the length of the run"
    if len(given) > 1:
        told = " and ".join(f"{name}={value}" for name, value in given.items())
        yield f"{told} {'both' if len(given) == 2 else 'all'} set the run's length: keep one and set the other to null"


def _shared_problems(recipe: AnyRecipe) -> list[str]:
    train = recipe.train
    found = list(_guard_problems(recipe))
    micro = train.micro_batch_size
    if micro is not None and train.global_batch_size % micro:
        found.append(
            f"train.global_batch_size={train.global_batch_size} is not a multiple of train.micro_batch_size={micro}: "
            "change one of them"
        )
    if (steps := profiled(train)) is not None and steps[0] > steps[1]:
        found.append(f"train.profile_steps={train.profile_steps} ends before it begins: write the lower step first")
    elif steps is not None and train.max_steps is not None and steps[0] > train.max_steps:
        found.append(
            f"train.profile_steps={train.profile_steps} begins after the last step, train.max_steps="
            f"{train.max_steps}: choose earlier ones"
        )
    if recipe.optim.decay_ratio != type(recipe.optim)().decay_ratio and recipe.optim.schedule != "wsd":
        found.append(
            f"optim.decay_ratio={recipe.optim.decay_ratio} has no effect with optim.schedule={recipe.optim.schedule}: "
            "remove it or set optim.schedule=wsd"
        )
    found += _optimizer_problems(recipe)
    if recipe.evaluate.patience is not None and recipe.checkpoint.best_metric is None:
        found.append(
            f"evaluate.patience={recipe.evaluate.patience} waits for a better checkpoint.best_metric, which is not "
            "set: set it, or remove patience"
        )
    return found


def _optimizer_problems(recipe: AnyRecipe) -> Iterator[str]:
    optim, default = recipe.optim, type(recipe.optim)()
    if optim.name != "muon":
        for name in ("muon_momentum", "muon_nesterov", "muon_ns_steps"):
            if (value := getattr(optim, name)) != getattr(default, name):
                yield (
                    f"optim.{name}={shown(value)} has no effect with optim.name={optim.name}: remove it or set "
                    "optim.name=muon"
                )


def _pretraining_problems(recipe: Recipe) -> list[str]:
    model, train = recipe.model, recipe.train
    found = [*data_problems(recipe.data), *_live_problems(recipe)]
    if train.compile == "blocks" and train.activation_checkpointing == "selective":
        found.append(
            "train.compile=blocks with train.activation_checkpointing=selective: what is kept is chosen among "
            "operations that the compiler joins: use full, every_N or none"
        )
    if (sharing := train.sequence_parallel) > 1:
        found += _sequence_problems(recipe, sharing)
    if model.init_from is not None and model.preset is not None:
        found.append(f"model.init_from={model.init_from} and model.preset={model.preset} both name a model: keep one")
    if model.init_from is None:
        try:  # the tokenizer's size is not known yet: 1 fits any vocabulary
            resolve_architecture(model, tokenizer_vocab=1, context_length=recipe.data.context_length)
        except ConfigError as error:
            found += str(error).split("; ")
    return found


def _sequence_problems(recipe: Recipe, sharing: int) -> Iterator[str]:
    name, length = f"train.sequence_parallel={sharing}", recipe.data.context_length
    if length % sharing:
        yield f"data.context_length={length} is not a multiple of {name}: change one of them"
    if recipe.data.source == "huggingface":
        yield f"{name} with data.source=huggingface is not supported: prepare the text with `scaletrain prepare`"
    if recipe.train.compile == "blocks":
        yield f"{name} with train.compile=blocks: blocks that ranks exchange in cannot be compiled; set it to none"


def find_deepspeed(name: str, recipe_path: Path) -> Path | str:
    """The JSON file that `name` means, absolute; else the problem in a line.

    A relative name is looked up from the working directory, then from the recipe's folder and those above it, then from
    the source tree, so that `ds_configs/zero1.json` works in a clone whatever the working directory.
    """
    wanted = Path(name).expanduser()
    places = [Path.cwd(), *recipe_path.absolute().parents, SOURCE_TREE]
    found = next((p for place in places if (p := place / wanted).is_file()), None)
    if found is not None:
        return found.resolve()
    where = "" if wanted.is_absolute() else f" in {Path.cwd()}, beside or above {recipe_path}, or in {SOURCE_TREE}"
    return (
        f"deepspeed={name} is not a file{where}: give the path of a DeepSpeed JSON (deepspeed=FILE or "
        "--deepspeed_config FILE); ds_configs/ in the source repository has one for each ZeRO stage"
    )


def dump_shared(recipe: AnyRecipe) -> str:
    """What must be the same on every node: the recipe without the place of its DeepSpeed file, which nodes may keep
    elsewhere."""
    return dump_recipe(recipe.model_copy(update={"deepspeed": ""}))


def dump_recipe(recipe: AnyRecipe) -> str:
    """`recipe` as YAML with every key, defaults included; `load_recipe` reads the same recipe from it."""
    return dump_yaml(recipe.model_dump(mode="json"))
