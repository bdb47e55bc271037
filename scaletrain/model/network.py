"""A transformers model for a task: built without weights, which are then read from its folder a parameter at a time."""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.model.hf import open_tensors
from scaletrain.model.init import Gather, parameter_seed, whole_parameter

Head = Literal["sequence", "token", "span", "causal"]
AUTO_CLASSES: dict[Head, str] = {
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "causal": "AutoModelForCausalLM",
}
_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}  # of TensorFlow's BERT

_PREFIXES = ("model", "transformer")  # a family's question answering has one, its language model the other


class Network(nn.Module):
    """A transformers model, perhaps with adapters, and what a task adds to it.

    All that a task computes with it goes through `forward`, whose hooks gather the weights of ZeRO-3.
    """

    def __init__(self, model: nn.Module, extra: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.extra = model, extra

    def forward(self, work: Callable[["Network", Mapping[str, Tensor]], Any], batch: Mapping[str, Tensor]) -> Any:
        return work(self, batch)


def find_model(place: str, revision: str | None = None) -> Path:
    """The local folder of a model: `place` itself, or the hub's snapshot of it. ConfigError when there is none."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return folder
        raise ConfigError(f"model.path={place} holds no config.json: give a Hugging Face folder (scaletrain export)")
    if place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise ConfigError(f"model.path={place} is not a folder: give a Hugging Face folder or a hub name")
    return _download(place, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise ConfigError(
            f"model.path={name} is no folder here, and the hub does not give it ({reason}): give a Hugging Face folder"
        ) from error


def read_config(folder: Path, changes: Mapping[str, Any], dropout: float | None = None) -> Any:
    """The model's config with a task's `changes`, and all its dropout rates set where one is given."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise ConfigError(f"model.path={folder}: transformers does not know its config ({reason})") from error
    for name, value in changes.items():
        setattr(config, name, value)
    if dropout is not None:
        for name in [n for n in config.to_dict() if n.endswith(("dropout", "dropout_prob", "pdrop", "drop"))]:
            setattr(config, name, dropout)
    config.use_cache = False
    return config


def build_network(config: Any, head: Head, dtype: torch.dtype, extra: nn.Module | None = None) -> Network:
    """The model with unset weights; ConfigError when its family has no such head."""
    import transformers
    from transformers import initialization

    auto: Any = getattr(transformers, AUTO_CLASSES[head])
    try:
        with initialization.no_init_weights():
            model = _with_attention(auto, config, dtype)
    except ValueError as error:
        raise ConfigError(
            f"model.path: transformers has no {AUTO_CLASSES[head]} for model_type={config.model_type}: choose a "
            "model of another family, or another task.kind"
        ) from error
    model.tie_weights()  # left out with the initialisation
    return Network(model, extra)


def _with_attention(auto: Any, config: Any, dtype: torch.dtype) -> Any:
    """With torch's fused attention, or where a family has none (Gemma 2, GPT-Neo) with its own."""
    try:
        return auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return auto.from_config(config, dtype=dtype, attn_implementation="eager")  # the config holds the other by now


def need_bitsandbytes(bits: str) -> None:
    """ConfigError with how to get it."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"model.quantize={bits} needs bitsandbytes: pip install 'scaletrain[gpu,finetune]'")


def load_quantized(config: Any, head: Head, folder: Path, bits: str, dtype: torch.dtype, seed: int) -> Network:
    """The model with its weights in 8 or 4 bits (NF4: Dettmers et al. 2023) on this rank's device, for adapters. The
    head stays as it is: it trains whole, and begins from `seed` where the folder has none.

    ConfigError when bitsandbytes is missing.
    """
    import transformers

    need_bitsandbytes(bits)
    from peft import prepare_model_for_kbit_training

    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    wanted: Any = transformers.BitsAndBytesConfig
    auto: Any = getattr(transformers, AUTO_CLASSES[head])
    with torch.device("meta"):
        bare = build_network(config, head, dtype).model
    new = _names_not_in(folder, bare)
    heads = [name for name, _ in bare.named_children() if name != bare.base_model_prefix]
    whole = None if head == "causal" else sorted({*heads, *(name.rpartition(".")[0] for name in new)})
    model = auto.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        quantization_config=wanted(
            **(four if bits == "4bit" else {"load_in_8bit": True}),
            llm_int8_skip_modules=whole,  # in 4 bits too, whatever its name; None: a language model's output
        ),
        device_map={"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"},
        local_files_only=True,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in new:
                _begin(name, parameter, config, seed)
    prepare: Any = prepare_model_for_kbit_training
    return Network(prepare(model, use_gradient_checkpointing=False))


def _names_not_in(folder: Path, model: Any) -> list[str]:
    """Parameters of a head that the files have not."""
    with ExitStack() as files:
        held = open_tensors(folder, files)
        names = [name for name, _ in model.named_parameters() if _is_of_head(model, name)]
        return [name for name in names if _name_in(held, name, model.base_model_prefix) is None]


def longest_row(config: Any) -> int | None:
    """The longest row that the model takes, where its config says."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            # RoBERTa's positions begin behind the padding token's id.
            return value - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else value
    return None


def judges_by_last_token(config: Any) -> bool:
    """Whether the family is of decoders, which classify a row at its last token and not at its first."""
    from transformers.models.auto import modeling_auto

    is_decoder: bool = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return is_decoder and config.model_type not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


@torch.no_grad()
def begin_weights(module: nn.Module, prefix: str, seed: int, gather: Gather) -> None:
    """Sets the weights of what a task adds: uniform in +-0.1, each from a generator of its own."""
    for name, parameter in module.named_parameters():
        with gather(parameter) as writes:
            if writes:
                generator = torch.Generator().manual_seed(parameter_seed(seed, f"{prefix}.{name}"))
                drawn = torch.empty(parameter.shape, dtype=torch.float32).uniform_(-0.1, 0.1, generator=generator)
                parameter.copy_(drawn)


@torch.no_grad()
def load_network(network: Network, folder: Path, seed: int, gather: Gather = whole_parameter) -> list[str]:
    """Fills the model from a folder's safetensors; gives the names of the weights that it has not, which begin anew.

    One parameter at a time is whole in memory on each rank, and rank 0 alone reads where `gather` says so. Where names
    differ from the files' in other ways than by the base model's prefix, transformers loads the whole model on the
    ranks that write, and the parameters are copied from there.
    """
    model: Any = network.model
    parameters = dict(model.named_parameters())
    with ExitStack() as files:
        held = open_tensors(folder, files)
        names = {name: _name_in(held, name, model.base_model_prefix) for name in parameters}
        new = [name for name, found in names.items() if found is None]
        if strange := [name for name in new if not _is_of_head(model, name)]:
            read = _read_by_transformers(model, folder, strange[0])
            new = [name for name in new if _is_of_head(model, name)]
        else:
            read = {name: _reader(held, found) for name, found in names.items() if found is not None}
        for name, parameter in parameters.items():
            with gather(parameter) as writes:
                if not writes:
                    continue
                if name in new:
                    _begin(name, parameter, model.config, seed)
                    continue
                tensor = read[name]()
                if tensor.shape != parameter.shape:
                    raise CheckpointError(
                        f"{folder}: {name} is {tuple(tensor.shape)} where the config says {tuple(parameter.shape)}: "
                        "copy or export the folder again"
                    )
                parameter.copy_(tensor)
    return new


def _reader(held: Mapping[str, Any], name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        tensor: Tensor = held[name].get_tensor(name)
        return tensor

    return read


def _name_in(held: Mapping[str, Any], name: str, prefix: str) -> str | None:
    """The file's name of a parameter: as it is, or with another prefix of the base model, or none."""
    bare = name.removeprefix(f"{prefix}.")
    forms = [name, bare, *(f"{other}.{bare}" for other in dict.fromkeys([prefix, *_PREFIXES]))]
    forms += [form.replace(new, old) for new, old in _OLD_NAMES.items() for form in list(forms) if form.endswith(new)]
    return next((form for form in forms if form in held), None)


def _is_of_head(model: Any, name: str) -> bool:
    """Whether a parameter is beside the base model, or its pooler, which many files leave out."""
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name


def _read_by_transformers(model: Any, folder: Path, strange: str) -> dict[str, Callable[[], Tensor]]:
    @cache
    def load() -> dict[str, Tensor]:
        loaded, report = type(model).from_pretrained(
            folder, config=model.config, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        missing = [name for name in report["missing_keys"] if not _is_of_head(model, name)]
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} weights are missing, {strange} among them: copy or export the folder again"
            )
        return dict(loaded.named_parameters())

    def reader(name: str) -> Callable[[], Tensor]:
        return lambda: load()[name]

    return {name: reader(name) for name, _ in model.named_parameters()}


def _begin(name: str, parameter: Tensor, config: Any, seed: int) -> None:
    """As most of transformers' models begin: normal with the config's deviation; norms 1, biases 0."""
    if name.endswith("bias"):
        parameter.zero_()
    elif "norm" in name.lower() or parameter.dim() < 2:
        parameter.fill_(1.0)
    else:
        std = float(getattr(config, "initializer_range", None) or 0.02)
        generator = torch.Generator().manual_seed(parameter_seed(seed, name))
        parameter.copy_(torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator))


def layers_of(config: Any) -> int:
    """Blocks of a model."""
    return int(getattr(config, "num_hidden_layers", 0) or getattr(config, "n_layer", 0))


def depth_of(name: str, config: Any) -> int:
    """How far from the input a parameter is: 0 embeddings, 1 the first block, layers + 1 the head and the rest."""
    if match := re.search(r"\.(?:layer|layers|h|block|blocks)\.([0-9]+)\.", name):
        return int(match[1]) + 1
    return 0 if re.search(r"embed|\.wte\.|\.wpe\.", name) else layers_of(config) + 1


def freeze(model: Any, part: str) -> None:
    """Keeps a part of the weights as they are: `embeddings`, or `all_but_head`. ConfigError when nothing is left."""
    if part == "embeddings":
        for parameter in model.get_input_embeddings().parameters():
            parameter.requires_grad_(False)
    if part == "all_but_head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(f"{model.base_model_prefix}."))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"model.freeze={part} leaves nothing to train: the head shares its weights with the embedding"
        )


def folder_print(folder: Path) -> str:
    """Tells a model folder from another: its config, and names, sizes and samples of its weights.

    Not every byte: reading tens of gigabytes on each launch would cost minutes.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for place in range(0, size, max(1 << 20, size // 64)):
                file.seek(place)
                digest.update(file.read(1 << 14))
            file.seek(max(0, size - (1 << 14)), os.SEEK_SET)
            digest.update(file.read())
    return digest.hexdigest()
