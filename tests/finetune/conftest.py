"""Models, examples and recipes of fine-tuning."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.finetune.tiny_models import make_examples, make_models

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_examples(tmp_path_factory.mktemp("examples"))


RECIPE = """\
run: {{dir: {run}}}
task: {{kind: {kind}}}
data: {{train: {examples}/{kind}.jsonl, validation_share: 0.2, max_length: 64}}
model: {{path: {models}/{model}{template}}}
deepspeed: ds_configs/zero{stage}.json
train: {{max_steps: 12, global_batch_size: 8, precision: fp32}}
optim: {{lr: 0.005, warmup_steps: 2}}
checkpoint: {{every_steps: 4}}
evaluate: {{every_steps: 6}}
log: {{every_steps: 1, tensorboard: false}}
"""


@pytest.fixture
def write(models: Path, examples: Path, tmp_path: Path) -> Write:
    """write(kind, model, stage) -> a recipe of twelve steps."""

    def make(kind: str, model: str, stage: int = 1) -> Path:
        path = tmp_path / f"{kind}-{model}-{stage}.yaml"
        template = ", chat_template: chatml" if kind == "sft" else ""
        text = RECIPE.format(
            run=tmp_path / "run",
            kind=kind,
            examples=examples,
            models=models,
            model=model,
            template=template,
            stage=stage,
        )
        path.write_text(text, encoding="utf-8")
        return path

    return make
