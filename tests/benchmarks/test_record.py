"""Turns, spreads, regressions and the one form of result."""

import json
import socket
import sys
from pathlib import Path

import pytest

from benchmarks.record import against, in_turn, last_line_of, run_program, save, slower, spread


def test_spread_is_median_and_range() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "low": 1.0, "high": 10.0}


def test_every_second_round_goes_backwards() -> None:
    order: list[str] = []
    told: list[tuple[int, str, int]] = []

    def turn(name: str) -> int:
        order.append(name)
        return len(order)

    found = in_turn({name: lambda name=name: turn(name) for name in "abc"}, 3, lambda *one: told.append(one))  # type: ignore[misc]
    assert "".join(order) == "abccbaabc"
    assert found == [{"a": 1, "b": 2, "c": 3}, {"a": 6, "b": 5, "c": 4}, {"a": 7, "b": 8, "c": 9}]
    assert [list(one) for one in found] == [["a", "b", "c"]] * 3
    assert told[3] == (1, "c", 4)


@pytest.mark.parametrize(
    ("now", "is_slower"),
    [
        ((90.0, 88.0, 92.0), True),
        ((110.0, 108.0, 112.0), False),  # faster
        ((90.0, 88.0, 99.0), False),  # the ranges meet
        ((98.0, 97.9, 98.1), False),  # apart, but by less than the noise
        ((96.0, 95.9, 96.1), True),
    ],
)
def test_slower_is_told_beyond_the_noise_only(now: tuple[float, float, float], is_slower: bool, tmp_path: Path) -> None:
    def row(median: float, low: float, high: float) -> dict[str, object]:
        return {"name": "a", "speed": {"median": median, "low": low, "high": high}}

    old = tmp_path / "old.json"
    old.write_text(json.dumps({"rows": [row(100.0, 99.0, 101.0), {"name": "failed"}]}))
    rows = [row(*now), {"name": "failed", "speed": spread([1.0])}, {"name": "new", "speed": spread([1.0])}]
    found = slower(old, rows, "speed")
    median, low, high = now
    line = f"slower: a: speed {median:.4g} ({low:.4g} to {high:.4g}), was 100 (99 to 101)"
    assert found == ([line] if is_slower else [])


def test_a_cell_that_failed_now_is_not_called_slower(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"rows": [{"name": "a", "speed": spread([1.0])}]}))
    assert slower(old, [{"name": "a", "error": "it broke"}], "speed") == []


def test_a_result_names_no_path_and_no_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks/x.py", "--output", str(path), "--rounds", "3"])
    save(path, "x.py", {"rounds": 3}, [{"name": "a", "speed": spread([1.0])}], formulas=["speed = 1"])
    text = path.read_text()
    result = json.loads(text)
    assert result["environment"]["command"] == ["python", "benchmarks/x.py", "--output", "result.json", "--rounds", "3"]
    assert result["environment"]["device_type"] in ("cpu", "cuda")
    assert (result["benchmark"], result["settings"], result["formulas"]) == ("x", {"rounds": 3}, ["speed = 1"])
    assert result["rows"] == [{"name": "a", "speed": {"median": 1.0, "low": 1.0, "high": 1.0}}]
    assert str(tmp_path) not in text
    assert not {"host", "network"} & set(result["environment"])
    assert f'"{socket.gethostname()}"' not in text


def test_a_program_that_fails_ends_the_benchmark() -> None:
    assert last_line_of([sys.executable, "-c", "print('first'); print('[1, 2]')"]) == [1, 2]
    with pytest.raises(SystemExit, match="failed with 3:\nso far\n") as ended:
        run_program([sys.executable, "-c", "print('so far'); raise SystemExit(3)"])
    assert isinstance(ended.value.code, str)


def test_two_results_are_compared_by_all_their_figures(tmp_path: Path) -> None:
    for name, rate, seconds in (("old", 100.0, 1.0), ("same", 99.0, 1.02), ("worse", 90.0, 1.2)):
        rows = [
            {"name": "a", "tokens_per_second": spread([rate]), "step_seconds": spread([seconds]), "ratio": spread([5])}
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    old = tmp_path / "old.json"
    assert against(old, tmp_path / "same.json") == []
    assert against(tmp_path / "worse.json", old) == []
    told = [line.partition(" (")[0] for line in against(old, tmp_path / "worse.json")]
    assert told == ["slower: a: step_seconds 1.2", "slower: a: tokens_per_second 90"]
