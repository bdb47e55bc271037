"""The recipe: every key that a YAML file may hold, its type, its default and its rule. Pure; no torch."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Precision = Literal["bf16", "fp16", "fp32"]
Family = Literal["gpt2", "llama"]
OptimizerName = Literal["adamw", "adamw_8bit", "muon"]
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
    if re.fullmatch(r"none|selective|full|offload|auto|every_[1-9][0-9]*", value) is None:
        raise ValueError("should be none, selective, full, offload, auto or every_N (every_2: each second block)")
    return value


def _steps(value: str) -> str:
    if re.fullmatch(r"[1-9]\d*(-[1-9]\d*)?", value) is None:
        raise ValueError("should be a step or the first and the last of some, from 1 on, such as 10-12")
    return value


def _variable(name: str) -> str:
    if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is None:
        raise ValueError("should be a variable's name")
    if _OF_LAUNCHERS.fullmatch(name):
        raise ValueError("is the launcher's own: set it where you launch")
    if _READ_BEFORE.fullmatch(name):
        raise ValueError("is read before a recipe is: set it where you launch (deepspeed over ssh: .deepspeed_env)")
    if _SECRET.search(name):
        raise ValueError("looks like a secret, and the run folder keeps a copy of the recipe: set it where you launch")
    return name


def _written(value: Any) -> Any:
    """What YAML reads as a number, as it was written."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


_OF_LAUNCHERS = re.compile(r"(LOCAL_|GROUP_|CROSS_)?(RANK|SIZE|WORLD_SIZE)|MASTER_(ADDR|PORT)|(SLURM|OMPI|PMIX?)_\w+")
_READ_BEFORE = re.compile(r"PATH|LD_\w+|PYTHON\w+")
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|KEY)$|^AWS_ACCESS")
Variables = dict[
    Annotated[str, AfterValidator(_variable)], Annotated[str, BeforeValidator(_written), Field(pattern=r"^[^\x00]*$")]
]
Count = Annotated[int, BeforeValidator(_no_bool), BeforeValidator(_count)]
Positive = Annotated[Count, Field(ge=1)]
NonNegative = Annotated[Count, Field(ge=0)]
Real = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
Weight = Annotated[Real, Field(ge=0, le=1e6)]
Checkpointing = Annotated[str, AfterValidator(_checkpointing)]


class Section(BaseModel):
    """A part of the recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Run(Section):
    dir: Annotated[str, Field(min_length=1)]
    """Run folder: resolved recipe, metrics, events, checkpoints. Run again with the same folder to resume."""
    name: str | None = None
    """Name shown in the header; default: the folder's name."""
    env: Variables = {}
    """Environment variables of each rank on every node, whatever launches it; they win over the launcher's."""


class Source(Section):
    """One source of a mixture."""

    path: Annotated[str, Field(min_length=1)]
    """As data.path."""
    weight: Weight = 1.0
    """Share of the samples that are read, relative to the other sources' weights; 0: not yet, a stage may raise it."""
    max_epochs: Annotated[Real, Field(gt=0)] | None = None
    """How often each of its samples may be read in the run."""


class Stage(Section):
    """From a point of the run on, other weights."""

    from_tokens: Positive
    """Tokens that the run has read when these weights begin, counted as places of samples: padding too."""
    weights: dict[str, Weight]
    """By source name; a source that is not named has weight 0."""


class Cache(Section):
    """Where files of remote datasets are kept on each node."""

    dir: str | None = None
    """Default: $SCALETRAIN_CACHE, else scaletrain in $XDG_CACHE_HOME or ~/.cache."""
    max_gb: Annotated[Real, Field(gt=0)] | None = None
    """Size (10^9 bytes) that the shards in it may have together; default: no bound."""


class Live(Section):
    """How data.source=huggingface reads: text that is tokenized while training."""

    name: str | None = None
    """Configuration of the dataset, where it has several."""
    revision: str | None = None
    """Branch, tag or commit of a dataset on the hub; default: its main branch."""
    split: str = "train"
    validation_split: str | None = None
    """Split that evaluations read; default: none, no evaluation."""
    field: str = "text"
    """Field or column that holds the text."""
    shuffle_rows: NonNegative = 1000
    """Rows of each block whose order is drawn at random while the next block is read; 0, or data.shuffle=false: as they
    come. Two blocks are in memory, and a resumed run reads its block again."""
    validation_rows: Positive = 1000
    """Rows of the validation split that are tokenized at the start, at most."""


class Data(Section):
    path: Annotated[str, Field(min_length=1)] | None = None
    """Dataset: a folder of `scaletrain prepare` or its URL (s3://, gs://, hf://, https:// ...), or a token file of
    another tool (Megatron .bin + .idx, .npy, nanoGPT or llm.c .bin, datatrove .ds, or a folder of such)."""
    mixture: dict[str, Source] | None = None
    """Several named datasets with weights, instead of path."""
    stages: tuple[Stage, ...] = ()
    """Changes of the mixture's weights on the way, such as an annealing phase."""
    max_epochs: Annotated[Real, Field(gt=0)] | None = None
    """With path: how often each sample may be read in the run; default: no limit."""
    on_repeat_limit: Literal["error", "stop"] = "error"
    """When a run would read a source more often than its max_epochs: error at the start, or stop there."""
    source: Literal["tokens", "huggingface"] = "tokens"
    """tokens: prepared tokens. huggingface: text that the datasets library streams, tokenized while training."""
    live: Live = Live()
    """For source=huggingface."""
    tokenizer: str | None = None
    """Tokenizer folder, file or hub name, for data that does not carry its own (other tools' files, huggingface)."""
    dtype: Literal["uint16", "uint32"] | None = None
    """Type of the tokens in a file that does not say it (nanoGPT's .bin); default: by the tokenizer's size."""
    context_length: Annotated[Positive, Field(ge=2)] = 1024
    """Tokens a sample."""
    packing: Literal["cut", "best_fit"] = "cut"
    """cut: documents one after the other, cut at context_length. best_fit: whole documents packed into samples, only
    those longer than context_length are cut; the rest of a sample is padding."""
    document_mask: bool = False
    """Attention stays inside a document and positions begin anew in each."""
    shuffle: bool = True
    """Permute the samples of each epoch; false reads them in stored order."""
    shuffle_window_shards: Positive | None = None
    """Permute the shards, and the samples within so many of them, instead of all samples: for remote datasets larger
    than the cache."""
    prefetch_steps: Positive = 4
    """Steps whose batches are read ahead by a thread."""
    cache: Cache = Cache()
    storage_options: dict[str, Any] = {}
    """Passed to the fsspec file system of a URL, such as {endpoint_url: ...}. Keep secrets in the environment."""


class Model(Section):
    """An architecture: a preset, fields given here in its place, or both (a field given here wins)."""

    preset: str | None = None
    """Named size, such as llama-tiny or gpt2-124m: scaletrain/config/architecture.py lists them."""
    init_from: str | None = None
    """Hugging Face folder whose weights (and architecture) the training starts from, instead of random ones."""
    family: Family | None = None
    """gpt2: learned positions, LayerNorm, GELU, biases. llama: RoPE, RMSNorm, SwiGLU, no biases."""
    num_layers: Annotated[Positive, Field(le=10_000)] | None = None
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
    """Tokens of the whole run, rounded up to a full step; counted as places of samples: padding too."""
    max_hours: Annotated[Real, Field(gt=0)] | None = None
    """Wall-clock limit of one launch, counted from the program's start: saves early enough to exit with code 75 before
    it is reached, by the longest save and steps so far. Trains one step at least."""
    stop_at_step: Positive | None = None
    """Save and exit with code 75 after this step, unless it is the last; the schedule is still that of the whole run. A
    run that is there or further trains no step."""
    max_restarts: NonNegative = 3
    """`scaletrain supervise`: restarts in a row that may save no new step before it gives up; one that saved a new step
    before it died, or rolled the run back, sets the count back to none. 0: a death is final."""
    min_ranks: Positive | None = None
    """`scaletrain supervise`: go on with fewer ranks, down to so many, when GPUs are gone or when two launches in a row
    died without a new step; default: always the same number."""
    global_batch_size: Positive = 8
    """Samples an optimizer step, over all ranks and accumulation."""
    micro_batch_size: Positive | None = None
    """Samples a forward pass on one rank; default: global_batch_size / ranks, no accumulation."""
    precision: Precision | None = None
    """bf16, fp16 or fp32; default: bf16 where the device computes in it, else fp32."""
    activation_checkpointing: Checkpointing = "none"
    """none, full (each block), every_N (each N-th block), selective (all but matrix products and attention), offload
    (each block, its input in host memory: on a CPU no gain), auto (the first of none, selective and full that fits by
    plan). selective does not go with compile."""
    sequence_parallel: Positive = 1
    """Ranks that share each sample, a part of its tokens each, for contexts that one rank's memory does not hold
    (Ulysses). Divides the ranks, the context and the model's key/value heads. Keep them on one node: they exchange the
    heads of each layer."""
    compile: Literal["none", "blocks"] = "none"
    """blocks: torch.compile of each block, half a minute at the start. On a CPU it was no faster; on a GPU try it."""
    flash_attention: Literal["torch", "fa3"] = "torch"
    """fa3: FlashAttention 3 in place of torch's own kernels, on Hopper, with its package installed and a torch that can
    switch to it."""
    fp8: bool = False
    """The blocks' matrix products in FP8 (torchao), on GPUs that have it, in bf16. Set train.compile=blocks with it:
    without, the conversions cost more than is won."""
    profile_steps: Annotated[str, BeforeValidator(_written), AfterValidator(_steps)] | None = None
    """Steps of rank 0 that torch's profiler watches, such as 10-12: a trace and the dearest operations in RUN/profile.
    They take longer meanwhile."""


def profiled(train: Train) -> tuple[int, int] | None:
    """The first and the last step of train.profile_steps."""
    if train.profile_steps is None:
        return None
    first, _, last = train.profile_steps.partition("-")
    return int(first), int(last or first)


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
    name: OptimizerName = "adamw"
    """adamw_8bit: AdamW whose moments take 2 bytes a parameter, not 8 (Dettmers et al. 2022), by bitsandbytes.

    muon: the matrices of the layers by momentum that is made orthogonal (Jordan et al. 2024), all else by AdamW. Its
    updates are as large as AdamW's (Liu et al. 2025), so that lr and weight_decay carry over."""
    betas: tuple[Annotated[Real, Field(ge=0, lt=1)], Annotated[Real, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: Annotated[Real, Field(gt=0)] = 1e-8
    weight_decay: Annotated[Real, Field(ge=0)] = 0.1
    """Applied to weight matrices only: never to norms, biases or embeddings."""
    muon_momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.95
    """muon: share of the momentum that stays at each step."""
    muon_nesterov: bool = True
    """muon: the update looks one step of the momentum ahead."""
    muon_ns_steps: Annotated[Positive, Field(le=20)] = 5
    """muon: Newton-Schulz iterations that make an update orthogonal, in bfloat16 where the run trains in it, else in
    float32."""
    grad_clip: Annotated[Real, Field(ge=0)] = 1.0
    """Global gradient norm above which gradients are scaled down; 0: off."""


class Checkpoint(Section):
    every_steps: Positive | None = 1000
    """Steps between checkpoints; null: only at the end and at a stop."""
    keep_last: Positive = 2
    """Newest checkpoints that stay on disk."""
    keep_every_steps: Positive | None = None
    """Checkpoints of these steps stay for ever, such as 10000: those of steps 10,000, 20,000 ..."""
    best_metric: str | None = None
    """A value of the evaluation, such as loss: the checkpoint of the best one stays, as RUN/checkpoints/best tells."""
    best_is: Literal["lowest", "highest"] | None = None
    """Which values of best_metric are better; default: the lowest of a loss, an error or a perplexity, else the
    highest."""
    background: bool = True
    """Copy the state to host memory and write it while training goes on; false: training waits for the disk."""
    on_failure: Literal["stop", "continue"] = "stop"
    """What to do when a checkpoint cannot be written: stop, or train on and try again when the next one is due."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on from the newest good checkpoint of run.dir; never: error if there is one."""


class Guard(Section):
    """What watches the run for faults."""

    on_nonfinite: Literal["skip", "stop", "roll_back"] = "skip"
    """When loss or gradients are not finite. The update is left out in any case, and an event tells ranks and samples;
    skip: train on; stop: save and end; roll_back: see on_spike."""
    max_skips: Positive = 20
    """Updates left out in a row that end the run, saved."""
    on_spike: Literal["note", "stop", "roll_back"] = "note"
    """When the loss is far above what it was. An event tells the samples in any case; note: train on; stop: save and
    end; roll_back: go back to the last checkpoint from before it, and pass over the samples from there to its end.
    Where there is none: train on."""
    spike_window: Annotated[Positive, Field(ge=4)] = 100
    """Losses of the last so many steps that a loss is held against: their median and, from their distances to it, their
    deviation. A run watches from half of them on."""
    spike_sigmas: Annotated[Real, Field(gt=0)] = 6.0
    """Deviations above the median from which on a loss is too high."""
    spike_steps: Positive = 3
    """Steps in a row whose loss is too high that make a spike."""
    max_roll_backs: Positive = 3
    """Roll-backs of the whole run; a further one ends it, saved."""
    compare_every_steps: Positive | None = 1000
    """Steps between comparisons of the weights that ranks hold twice, by a digest: a rank that differs ends the run
    before it saves. null: never. At ZeRO stage 3 no rank holds another's weights."""
    straggler_ratio: Annotated[Real, Field(gt=1)] = 1.5
    """A rank that needs this many times the median rank's seconds for reading and forward passes is slow."""
    straggler_logs: Positive = 3
    """Logged steps in a row at which the same rank is slow that make an event and a line."""
    collective_timeout_seconds: Annotated[Real, Field(ge=1)] = 1800.0
    """Seconds that a rank waits for the others in a collective operation, in DeepSpeed's own groups too, before it
    fails. Longer than the longest evaluation or save of one rank, and than hang_seconds, so that the hang is told."""
    hang_seconds: Annotated[Real, Field(ge=2)] = 900.0
    """Seconds without progress on any rank, or without a word from one, after which the run ends and the ranks that
    keep the others waiting are named. Longer than one optimizer step, a whole evaluation and a save; the start may take
    1800 seconds in any case."""


class Evaluate(Section):
    every_steps: Positive | None = 500
    """Steps between evaluations on the validation split; null: only at the end."""
    max_samples: Positive | None = None
    """Validation samples used, spread evenly over the split; default: all."""
    batch_size: Positive | None = None
    """Samples a forward pass on one rank; default: the micro-batch."""
    patience: Positive | None = None
    """Evaluations in a row without a new best checkpoint.best_metric after which the run is done; default: none."""


class PretrainEvaluate(Evaluate):
    prompts: list[str] = []
    """Beginnings that the model goes on with after each evaluation, sampled alike each time; events.jsonl, `scaletrain
    watch` and the report show what it writes."""
    prompt_tokens: Positive = 64
    """Tokens that it adds to each."""


class Log(Section):
    every_steps: Positive = 10
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    trackers: list[Literal["wandb", "mlflow", "trackio", "comet"]] = []
    """Experiment trackers that get the metrics too, such as [wandb, mlflow]. Each needs its package and reads its own
    variables (WANDB_MODE, MLFLOW_TRACKING_URI, COMET_API_KEY). One that fails or is slow never holds up the run."""
    tracker_project: str = "scaletrain"
    """The trackers' project or experiment; the run has the name of its folder."""


class BaseRecipe(Section):
    """What pretraining and fine-tuning share."""

    run: Run
    seed: NonNegative = 1234
    """Decides the initial weights and the order of the data."""
    deepspeed: str = "ds_configs/zero1.json"
    """DeepSpeed JSON file; `--deepspeed_config FILE` on the command line wins over it."""
    train: Train = Train()
    optim: Optim = Optim()
    checkpoint: Checkpoint = Checkpoint()
    guard: Guard = Guard()
    evaluate: Evaluate = Evaluate()
    log: Log = Log()


class Recipe(BaseRecipe):
    """A pretraining recipe."""

    data: Data = Data()
    model: Model = Model()
    evaluate: PretrainEvaluate = PretrainEvaluate()
