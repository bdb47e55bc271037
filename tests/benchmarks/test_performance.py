"""docs/performance.md is what the results give."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import performance
from benchmarks.performance import PAGE, page, results_in, shown, tabled
from benchmarks.plots import draw, drawn_figures
from benchmarks.record import spread

ROWS: list[dict[str, Any]] = [
    {"name": "a", "context": 64, "tokens_per_second": spread([900.0, 1000.0, 1200.0]), "mfu": spread([0.5])},
    {"name": "b", "context": 64, "out_of_memory": True},
]


def result(**changes: Any) -> dict[str, Any]:
    about = {
        "device_type": "cpu",
        "device": "A Chip",
        "cores": 2,
        "threads": 2,
        "platform": "Linux",
        "versions": {"python": "3.12", "deepspeed": None},
        "git": "abc",
        "command": ["python", "benchmarks/throughput.py"],
    }
    made = {"benchmark": "throughput", "environment": about, "settings": {"rounds": 3}, "rows": ROWS}
    return made | {"formulas": ["MFU = speed x F / P"]} | changes


def test_the_page_is_what_the_results_give() -> None:
    assert performance.main(["--check"]) == 0


def test_check_tells_a_page_that_is_out_of_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, output = tmp_path / "one.json", tmp_path / "page.md"
    kept.write_text(json.dumps(result()))
    words = [str(kept), "--output", str(output)]
    assert performance.main([*words, "--check"]) == 1
    assert f"{output} is not what the results give: run benchmarks/performance.py" in capsys.readouterr().err
    assert performance.main(words) == 0
    assert performance.main([*words, "--check"]) == 1
    told = capsys.readouterr().err
    assert told == f"{tmp_path / 'page' / 'one.png'} is missing: run benchmarks/plots.py\n"
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "one.png").touch()
    assert performance.main([*words, "--check"]) == 0


def test_a_section_has_machine_versions_command_table_picture_and_formulas() -> None:
    text = page({"one": result()}, "performance")
    assert "No figure here is from a GPU yet" in text
    assert "- Machine: A Chip, 2 cores, 2 threads; Linux" in text
    assert "- Versions: python 3.12; commit abc" in text
    assert "- Command: `python benchmarks/throughput.py`" in text
    assert "- In all rows: context 64" in text
    assert "| a | 1,000 (900 to 1,200) | 50.0% (50.0% to 50.0%) |  |" in text
    assert "| b |  |  | yes |" in text
    assert "![throughput](performance/one.png)" in text
    assert "- MFU = speed x F / P" in text


def test_a_gpu_result_ends_the_remark_that_there_is_none() -> None:
    about = result()["environment"] | {"device_type": "cuda"}
    assert "from a GPU yet" not in page({"one": result(environment=about)}, "performance")
    assert "No result is kept yet." in page({}, "performance")


def test_results_of_other_forms_and_of_this_machine_are_left_out(tmp_path: Path) -> None:
    for name, text in (("kept", result()), ("older", {"rows": []}), ("local-one", result())):
        (tmp_path / f"{name}.json").write_text(json.dumps(text))
    assert results_in(tmp_path) == [tmp_path / "kept.json"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("step_seconds", 0.0123, "12.3 ms"),
        ("step_seconds", 2.5, "2.5 s"),
        ("peak_bytes", 2_340_000_000, "2.34 GB"),
        ("peak_bytes", 12_000_000, "12 MB"),
        ("share_of_forward", 0.256, "25.6%"),
        ("ratio", 1.23456, "1.235"),
        ("micro_batch", 8, "8"),
        ("parameters", 1_234_567, "1,234,567"),
        ("error", "a | b", "a \\| b"),
        ("limit", None, ""),
        ("out_of_memory", False, "no"),
    ],
)
def test_a_figure_is_shown_in_its_unit(name: str, value: Any, text: str) -> None:
    assert shown(name, value) == text


def test_a_single_row_is_all_table() -> None:
    assert tabled(ROWS[:1])[0] == ""


def test_pictures_of_bars_and_lines(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [{"name": f"{s}{x}", "series": s, "x": x, "seconds": spread([x, 2 * x])} for s in "ab" for x in (1, 2)]
    for name, made in (("bars", result()), ("lines", result(benchmark="scaling", rows=points))):
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
        picture = draw(tmp_path / f"{name}.json", tmp_path / "pictures")
        assert picture == tmp_path / "pictures" / f"{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_has_no_figures_has_no_picture(tmp_path: Path) -> None:
    assert drawn_figures(result()) == ["tokens_per_second", "mfu"]
    (tmp_path / "one.json").write_text(json.dumps(result(rows=ROWS[1:])))
    assert draw(tmp_path / "one.json", tmp_path) is None
    assert drawn_figures(result(benchmark="another")) == []


def test_the_page_is_in_the_documentation() -> None:
    assert PAGE.is_file()
