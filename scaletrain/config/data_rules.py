"""Rules over several keys of the recipe's data section, a line each; its sources, and their weights by
stage."""

from collections.abc import Iterator

from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.config.schema import Data, Live, Recipe

ONLY = "data"  # the name of the source that data.path gives


def data_problems(data: Data) -> list[str]:
    """Every rule over several keys that the section breaks."""
    return [*_place_problems(data), *_mixture_problems(data), *_order_problems(data), *_live_problems(data)]


def unreached_stages(data: Data, run_tokens: int) -> list[str]:
    """A line for each stage that a run of `run_tokens` does not come to; no fault, since a trial run is shorter."""
    return [
        f"the stage from {stage.from_tokens:,} tokens never begins: the run ends at {run_tokens:,} tokens"
        for stage in data.stages
        if stage.from_tokens >= run_tokens
    ]


def weights_by_stage(data: Data) -> list[tuple[int, dict[str, float]]]:
    """Of a mixture: from which token of the run on, which weights; the first from 0 on."""
    assert data.mixture is not None
    first = {name: source.weight for name, source in data.mixture.items()}
    return [(0, first), *((s.from_tokens, {n: s.weights.get(n, 0.0) for n in first}) for s in data.stages)]


def source_places(data: Data) -> dict[str, str]:
    """Where each prepared source of a run lies, by its name; none of live text, which is read as it comes."""
    if data.source != "tokens":
        return {}
    if data.mixture is not None:
        return {name: source.path for name, source in data.mixture.items()}
    return {ONLY: data.path} if data.path is not None else {}


def input_places(recipe: Recipe | FinetuneRecipe) -> dict[str, str]:
    """What a run reads by a path or URL, by name: datasets, or the files and the model of a fine-tuning."""
    if isinstance(recipe, Recipe):
        return source_places(recipe.data)
    data, found = recipe.data, {"model.path": recipe.model.path}
    for name, value in (("data.train", data.train), ("data.validation", data.validation)):
        places = [value] if isinstance(value, str) else list(value or ())
        found |= {f"{name} {place}": place for place in places}
    return found


def _place_problems(data: Data) -> Iterator[str]:
    if data.path is None and data.mixture is None:
        yield "data.path is not set: add it to the recipe, or name several sources in data.mixture"
    if data.path is not None and data.mixture is not None:
        yield f"data.path={data.path} and data.mixture both say what to read: keep one and set the other to null"


def _mixture_problems(data: Data) -> Iterator[str]:
    if data.mixture is None:
        if data.stages:
            yield "data.stages change the weights of data.mixture, which is not set: name the sources there"
    else:
        if not data.mixture:
            yield "data.mixture names no source: give it at least one, like web: {path: DIR, weight: 0.8}"
        if data.max_epochs is not None:
            yield f"data.max_epochs={data.max_epochs:g} is for data.path: give it to each source of data.mixture"
        for where, weights in [("data.mixture", {n: s.weight for n, s in data.mixture.items()})] + [
            (f"the stage from {stage.from_tokens:,} tokens", dict(stage.weights)) for stage in data.stages
        ]:
            if unknown := [name for name in weights if name not in data.mixture]:
                yield f"{where} gives a weight to {unknown[0]}, which data.mixture does not name: add it there"
            if data.mixture and not any(weights.values()):
                yield f"{where} gives no source a weight above 0: raise one"
        starts = [stage.from_tokens for stage in data.stages]
        if starts != sorted(set(starts)):
            yield (
                f"data.stages begin at {', '.join(f'{s:,}' for s in starts)} tokens: give each a later from_tokens "
                "than the one before"
            )
    limited = data.max_epochs or any(source.max_epochs for source in (data.mixture or {}).values())
    if data.on_repeat_limit == "stop" and not limited:
        yield "data.on_repeat_limit=stop has no effect without max_epochs: set one"


def _order_problems(data: Data) -> Iterator[str]:
    if data.shuffle_window_shards is not None and not data.shuffle:
        yield (
            f"data.shuffle_window_shards={data.shuffle_window_shards} has no effect with data.shuffle=false: "
            "remove one of them"
        )


def _live_problems(data: Data) -> Iterator[str]:
    if data.source != "huggingface":
        if data.live != Live():
            yield "data.live is read with data.source=huggingface only: set it, or remove data.live"
        return
    no_effect = {
        "data.mixture": data.mixture is not None,
        "data.max_epochs": data.max_epochs is not None,
        "data.shuffle_window_shards": data.shuffle_window_shards is not None,
        "data.packing=best_fit": data.packing == "best_fit",
        "data.dtype": data.dtype is not None,
    }
    for name in [name for name, is_set in no_effect.items() if is_set]:
        yield f"{name} does not go with data.source=huggingface: prepare the text (scaletrain prepare), or remove it"
    if data.tokenizer is None:
        yield "data.tokenizer is not set: data.source=huggingface needs a tokenizer folder, file or hub name"
