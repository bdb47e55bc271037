"""The recipe: every key that a YAML file may hold, its type, its default and its rule. Pure; no torch."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Precision = Literal["bf16", "fp16", "fp32"]
Family = Literal["gpt2", "llama"]
_SUFFIX = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def _count(value: Any) -> Any:
    """Reads 100_000, "1e9", "10B" or "2.5M" as an integer; leaves anything else to the type check."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([KMBT])?\s*", value)
    if match is None:
        return value
    number = float(match[1].replace("_", "")) * _SUFFIX.get(match[2] or "", 1)
    return int(number) if number.is_integer() else value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def _checkpointing(value: str) -> str:
    if re.fullmatch(r"none|selective|full|every_[1-9][0-9]*", value) is None:
        raise ValueError("should be none, selective, full or every_N (such as every_2: each second block)")
    return value


Count = Annotated[int, BeforeValidator(_no_bool), BeforeValidator(_count)]
Positive = Annotated[Count, Field(ge=1)]
NonNegative = Annotated[Count, Field(ge=0)]
Real = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
Checkpointing = Annotated[str, AfterValidator(_checkpointing)]


class Section(BaseModel):
    """A part of the recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Run(Section):
    dir: Annotated[str, Field(min_length=1)]
    """Run folder: resolved recipe, metrics, events, checkpoints. Run again with the same folder to resume."""
    name: str | None = None
    """Name shown in the header; default: the folder's name."""


class Data(Section):
    path: Annotated[str, Field(min_length=1)]
    """Dataset folder, as `scaletrain prepare` wrote it."""
    context_length: Annotated[Positive, Field(ge=2)] = 1024
    """Tokens a sample."""
    shuffle: bool = True
    """Permute the samples of each epoch; false reads them in stored order."""
    prefetch_steps: Positive = 4
    """Steps whose batches are read ahead by a thread."""


class Model(Section):
    """An architecture: a preset, fields given here in its place, or both (a field given here wins)."""

    preset: str | None = None
    """Named size, such as llama-tiny or gpt2-124m: scaletrain/config/architecture.py lists them."""
    init_from: str | None = None
    """Hugging Face folder whose weights (and architecture) the training starts from, instead of random ones."""
    family: Family | None = None
    """gpt2: learned positions, LayerNorm, GELU, biases. llama: RoPE, RMSNorm, SwiGLU, no biases."""
    num_layers: Positive | None = None
    num_heads: Positive | None = None
    num_kv_heads: Positive | None = None
    """Key/value heads (grouped-query attention, llama only); default: num_heads."""
    hidden_size: Positive | None = None
    ffn_hidden_size: Positive | None = None
    """Inner width of the feed-forward block; default 4 x hidden (gpt2), 8/3 x hidden rounded up to 64 (llama)."""
    vocab_size: Positive | None = None
    """Rows of the embedding; default: the tokenizer's size rounded up to a multiple of 128."""
    max_positions: Positive | None = None
    """Longest context that the model can take; default: data.context_length."""
    tie_embeddings: bool | None = None
    qk_norm: bool | None = None
    """RMSNorm on queries and keys of each head (llama only; exported as Qwen3)."""
    norm_eps: Annotated[Real, Field(gt=0)] | None = None
    rope_theta: Annotated[Real, Field(gt=0)] | None = None


class Train(Section):
    max_steps: Positive | None = None
    """Optimizer steps of the whole run, resumed parts included. Give this or max_tokens."""
    max_tokens: Positive | None = None
    """Tokens of the whole run, rounded up to a full step."""
    max_hours: Annotated[Real, Field(gt=0)] | None = None
    """Wall-clock limit of one launch: saves and exits with code 75 when it is reached."""
    global_batch_size: Positive = 8
    """Samples an optimizer step, over all ranks and accumulation."""
    micro_batch_size: Positive | None = None
    """Samples a forward pass on one rank; default: global_batch_size / ranks, no accumulation."""
    precision: Precision | None = None
    """bf16, fp16 or fp32; default: bf16 where the device computes in it, else fp32."""
    activation_checkpointing: Checkpointing = "none"
    """none, full (each block), every_N (each N-th block), selective (all but matrix products and attention)."""


class Optim(Section):
    lr: Annotated[Real, Field(gt=0)] = 3e-4
    """Peak learning rate."""
    min_lr_ratio: Fraction = 0.1
    """Floor of the schedule as a share of lr."""
    schedule: Literal["cosine", "linear", "wsd", "constant", "inverse_sqrt"] = "cosine"
    """wsd: warmup, stable, decay."""
    warmup_steps: NonNegative | None = None
    """Linear warm-up; default: 1% of the run, at least 10 steps (or the whole run if it is shorter)."""
    decay_ratio: Annotated[Real, Field(gt=0, le=1)] = 0.2
    """wsd: share of the run spent in the final decay."""
    betas: tuple[Annotated[Real, Field(ge=0, lt=1)], Annotated[Real, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: Annotated[Real, Field(gt=0)] = 1e-8
    weight_decay: Annotated[Real, Field(ge=0)] = 0.1
    """Applied to weight matrices only: never to norms, biases or embeddings."""
    grad_clip: Annotated[Real, Field(ge=0)] = 1.0
    """Global gradient norm above which gradients are scaled down; 0: off."""


class Checkpoint(Section):
    every_steps: Positive | None = 1000
    """Steps between checkpoints; null: only at the end and at a stop."""
    keep_last: Positive = 2
    """Newest checkpoints that stay on disk."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on from the newest good checkpoint of run.dir; never: error if there is one."""


class Evaluate(Section):
    every_steps: Positive | None = 500
    """Steps between evaluations on the validation split; null: only at the end."""
    max_samples: Positive | None = None
    """Validation samples used; default: all."""
    batch_size: Positive | None = None
    """Samples a forward pass on one rank; default: the micro-batch."""


class Log(Section):
    every_steps: Positive = 10
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True


class Recipe(Section):
    run: Run
    seed: NonNegative = 1234
    """Decides the initial weights and the order of the data."""
    data: Data
    model: Model = Model()
    deepspeed: str = "ds_configs/zero1.json"
    """DeepSpeed JSON file; `--deepspeed_config FILE` on the command line wins over it."""
    train: Train = Train()
    optim: Optim = Optim()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    log: Log = Log()
