"""The demo's own safety; the whole of it runs as `make demo`."""

from pathlib import Path

from tests.conftest import scaletrain


def test_a_folder_that_is_no_demo_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = scaletrain("demo", "--dir", tmp_path)
    assert done.code == 2
    assert done.err == f"error: --dir {tmp_path} holds other things than a demo: choose another folder\n"
    assert scaletrain("demo", "--dir", tmp_path / "thesis.txt").code == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
