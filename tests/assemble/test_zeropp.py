"""A launch on a CPU refuses the ZeRO++ preset before anything is written."""

from pathlib import Path

import pytest

from scaletrain.assemble.pretraining import settle_pretraining
from scaletrain.data.shards import Dataset
from scaletrain.errors import ConfigError
from tests.conftest import write_recipe


def test_the_preset_is_refused_on_one_rank_of_a_cpu(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        settle_pretraining(recipe, ["deepspeed=ds_configs/zeropp.json"], None)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("ds_configs/zeropp.json: 2 problems")
    assert "zero_hpz_partition_size=8 does not divide the ranks of a node, 1, which" in lines[0]
    assert "zero_quantized_weights=true needs a GPU" in lines[1]
    assert not (tmp_path / "run").exists()
