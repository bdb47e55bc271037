"""The soak's samples: what grows is told, what only varies is not."""

import os
from pathlib import Path

import pytest

from tests.samples import OVER_ALL, Samples, of_process


def taken(values: list[dict[str, float]]) -> Samples:
    """Samples of one launch; what is not given is 1."""
    samples = Samples()
    constant = dict.fromkeys((*OVER_ALL, "run_mb"), 1.0)
    samples.taken["2 ranks"][1] = [{"time": float(n), **constant, **value} for n, value in enumerate(values)]
    return samples


@pytest.mark.parametrize("name", OVER_ALL)
def test_steady_growth_is_told_and_variation_is_not(name: str) -> None:
    assert taken([{name: 100.0 + n % 5} for n in range(80)]).growths() == []
    grown = taken([{name: 100.0 + 2 * n} for n in range(80)]).growths()
    assert [line.partition(" grows")[0] for line in grown] == [f"2 ranks: {name}"] * 2


def test_too_few_samples_are_not_judged() -> None:
    assert taken([{"rss_mb": 100.0 * n} for n in range(39)]).growths() == []


def test_a_process_is_measured_until_it_has_ended(tmp_path: Path) -> None:
    before = of_process(os.getpid())
    held = [(tmp_path / f"{n}").open("w") for n in range(20)]
    after = of_process(os.getpid())
    for file in held:
        file.close()
    assert before is not None
    assert after is not None
    assert after["open_files"] == before["open_files"] + 20
    assert after["rss_mb"] > 10
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert of_process(child) is None
