"""What a fine-tuning is planned to hold: the dry pass against a real one, the verdict, and a run that is refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from scaletrain.assemble import expectation
from scaletrain.assemble.finetuning import Finetuning
from scaletrain.assemble.settle import Settled
from scaletrain.commands.plan import plan
from scaletrain.data.encoded_rows import padded_length
from scaletrain.errors import EXIT_USER, ConfigError, NotPlannableError
from scaletrain.model.dry_pass import dry_pass, kept_by_pass
from scaletrain.model.init import whole_parameter
from scaletrain.model.network import Network
from tests.conftest import scaletrain
from tests.finetune.conftest import Write
from tests.finetune.training import opened

CASES = [
    ("classify", "bert", ()),
    ("classify", "bert", ("adapter.kind=lora",)),
    ("tag", "bert", ("task.crf=true", "adapter.kind=ia3")),
    ("sft", "llama", ()),
    ("sft", "llama", ("model.freeze=embeddings",)),
    ("sft", "gpt2", ("adapter.kind=dora",)),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "model", "overrides"), CASES, ids=["all", "lora", "crf", "sft", "frozen", "dora"])
def test_a_dry_pass_keeps_what_a_real_one_does_or_little_more(
    kind: str, model: str, overrides: tuple[str, ...], precision: str, write: Write
) -> None:
    job, _ = opened(write(kind, model), [*overrides, f"train.precision={precision}"])
    dry = job.dry_pass(4)
    longest = max(len(row["input_ids"]) for row in job.data.training.rows)
    task = job.task(job.data)
    network = task.build_model()
    task.initialise(network, whole_parameter)
    assert isinstance(network, Network)
    real = kept_by_pass(network.to(job.dtype).train(), 4, padded_length(longest))
    assert dry._replace(activations=0) == real._replace(activations=0)
    # torch's shapes of fused attention say (B, H, T, D) where a CPU's kernel writes (B, T, H, D): a copy of its result
    # more, a few percent of a model of real size, and more of one that is 32 wide.
    assert real.activations <= dry.activations <= 1.16 * real.activations


def test_blocks_that_are_computed_again_keep_less(write: Write) -> None:
    plain, again = (
        opened(write("sft", "wide"), [f"train.activation_checkpointing={mode}"])[0].dry_pass(4)
        for mode in ("none", "full")
    )
    assert plain.parameters == again.parameters
    assert again.activations < 0.8 * plain.activations


class Looks(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": input_ids.float() if input_ids.sum().item() else attention_mask.float()}


def test_a_model_that_looks_at_values_is_not_planned() -> None:
    before = torch.get_default_dtype()
    with pytest.raises(NotPlannableError, match=r"its model does not run without values \(DataDependent\w+: "):
        dry_pass(lambda: Network(Looks()), torch.bfloat16, 2, 8)
    assert torch.get_default_dtype() is before


def test_where_nothing_is_planned_the_reason_is_told(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotPlannableError("no such tensors here")

    path = write("classify", "bert")
    monkeypatch.setattr(Finetuning, "dry_pass", refuse)
    done = scaletrain("plan", path, "--gpu", "l40s")
    assert done.code == 0, done.err
    assert "not planned: activations" in done.out
    assert "no such tensors here" in done.out
    job, launch = opened(path)
    with pytest.raises(NotPlannableError):
        expectation.begin(Settled(launch, job), force=False)


def test_a_plan_tells_whether_it_fits(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    plan(write("classify", "bert"), ["adapter.kind=lora"], gpu="l40s")
    told = capsys.readouterr().out
    assert "memory  a rank, at most at the loss: weights" in told
    assert "fits    " in told
    big = ["train.micro_batch_size=8000000", "train.global_batch_size=8000000"]
    done = scaletrain("plan", str(write("classify", "bert")), *big, "--gpu", "l40s")
    assert done.code == EXIT_USER
    assert "too big by " in done.out
    assert "lower train.micro_batch_size" in done.out


def test_a_hopeless_run_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    job, launch = opened(write("classify", "bert"))
    settled = Settled(launch, job)
    expected = expectation.begin(settled, force=False)
    assert set(expected.parts) >= {"weights", "optimizer", "activations"}
    monkeypatch.setattr(expectation, "available_memory", lambda: 10_000_000)
    with pytest.raises(ConfigError, match="GB by plan, and has 0.01 GB: `scaletrain plan` says what fits, --force"):
        expectation.begin(settled, force=False)
    assert expectation.begin(settled, force=True) == expected


def test_host_memory_is_judged_beside_a_gpu(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    job, launch = opened(write("classify", "bert"), ["deepspeed=ds_configs/zero2-offload.json"])
    gpu = Settled(replace(launch, device=torch.device("cuda")), job)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    needed = expectation.begin(gpu, force=False).host_bytes
    assert needed == 12 * job.parameters[0]
    monkeypatch.setattr(expectation, "available_memory", lambda: int(needed / 1.11))
    with pytest.raises(ConfigError, match=r"needs \d.* GB of host memory at the loss by plan, and has \d.* GB: "):
        expectation.begin(gpu, force=False)
    assert expectation.begin(gpu, force=True).host_bytes == needed
