"""A base model in few bits under an adapter. Needs bitsandbytes, whose kernels for the CPU serve here."""

from pathlib import Path

import pytest
import torch

from scaletrain.model.network import load_quantized, read_config
from tests.conftest import run_program, scaletrain
from tests.finetune.conftest import Write

pytest.importorskip("bitsandbytes")


def test_a_quantized_base_trains_an_adapter_and_a_whole_head(models: Path) -> None:
    changes = {"num_labels": 3, "pad_token_id": 0}
    model = load_quantized(
        read_config(models / "bert", changes), "sequence", models / "bert", "8bit", torch.bfloat16, 7
    )
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert kinds["model.bert.encoder.layer.0.attention.self.query.weight"] == torch.int8
    assert kinds["model.classifier.weight"].is_floating_point, "the head trains whole"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_a_run_on_a_quantized_base_is_evaluated_and_exported(
    model: str, write: Write, examples: Path, tmp_path: Path
) -> None:
    recipe = write("classify", model)
    done = run_program("launch/finetune.py", recipe, "model.quantize=8bit", "adapter.kind=lora", "train.precision=bf16")
    assert done.code == 0, done.err
    assert scaletrain("export", tmp_path / "run", tmp_path / "out").code == 0
    for place in ("run", "out"):
        assert scaletrain("evaluate", tmp_path / place, "--data", examples / "classify.jsonl").code == 0
