"""What `scaletrain report` writes, and what it refuses."""

from pathlib import Path

from tests.commands.made_runs import MadeRun
from tests.conftest import scaletrain


def test_a_page_of_two_runs(tmp_path: Path) -> None:
    runs = [MadeRun(tmp_path / name).event("start", 0).logged(7).folder for name in ("a", "b")]
    done = scaletrain("report", *runs, "--output", tmp_path / "page.html")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{tmp_path / 'page.html'}: 2 runs, 0.1 MB\n"
    page = (tmp_path / "page.html").read_text()
    assert "<title>a, b</title>" in page
    assert "http://" not in page.split("uPlot=function")[0].split("<style>")[1]
    assert 'src="' not in page and "<link" not in page  # nothing that a browser would fetch


def test_folders_that_are_no_runs_or_the_same_one_are_refused(tmp_path: Path) -> None:
    run = MadeRun(tmp_path / "a").event("start", 0).folder
    (tmp_path / "none").mkdir()
    done = scaletrain("report", run, tmp_path / "none", "--output", tmp_path / "page.html")
    assert (done.code, done.err) == (
        2, f"error: {tmp_path / 'none'} is no run: give the run.dir of one that was begun or submitted\n",
    )  # fmt: skip
    done = scaletrain("report", run, f"{run}/", "--output", tmp_path / "page.html")
    assert (done.code, done.err) == (2, f"error: {run} {run} holds a run twice: give each once\n")
    assert not (tmp_path / "page.html").exists()


def test_a_place_that_cannot_be_written_is_a_line(tmp_path: Path) -> None:
    run = MadeRun(tmp_path / "a").event("start", 0).folder
    done = scaletrain("report", run, "--output", tmp_path / "missing" / "page.html")
    assert done.code == 2
    assert done.err.startswith(f"error: {tmp_path}/missing/page.html")
    assert "No such file or directory: choose another path" in done.err
