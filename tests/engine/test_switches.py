"""Switches for memory and speed leave what is learned as it is."""

from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.schema import Data, Model
from scaletrain.data.shards import Dataset
from scaletrain.data.training_data import open_training_data
from scaletrain.tasks.pretrain import PretrainTask
from tests.engine.training import train
from tests.ranks import run_ranks

CONTEXT, STEPS = 32, 6


def task_of(path: str, mode: str = "none") -> PretrainTask:
    data = open_training_data(Data(path=path, context_length=CONTEXT), seed=1)
    model = Model(family="llama", num_layers=3, num_heads=2, hidden_size=32)
    architecture = resolve_architecture(model, data.tokenizer.vocab_size, CONTEXT)
    return PretrainTask(architecture, data, seed=5, activation_checkpointing=mode)


def losses_by_mode(path: str) -> dict[str, list[float]]:
    return {mode: train(3, "bf16", task_of(path, mode), steps=STEPS, accumulation=2) for mode in ("full", "offload")}


def test_offloaded_inputs_change_no_loss_at_stage_3(dataset: Dataset) -> None:
    found = run_ranks(losses_by_mode, 2, str(dataset.path))[0]
    assert found["offload"] == found["full"]
    assert found["full"][-1] < found["full"][0]
