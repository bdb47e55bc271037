"""A run folder is held by one live run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaletrain.engine.run_folder import check_shared, hold, holder
from scaletrain.errors import ConfigError


def test_a_folder_in_use_is_refused_with_the_holder_and_free_after_a_kill(tmp_path: Path) -> None:
    code = (
        f"from scaletrain.engine.run_folder import hold; from pathlib import Path; import time\n"
        f"lock = hold(Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=rf"is in use by process {holder.pid} on .*: wait for that run"):
        hold(tmp_path)
    holder.kill()
    holder.wait()
    hold(tmp_path).close()


def test_a_folder_that_is_not_rank_0s_on_another_node_is_refused(tmp_path: Path) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    with hold(first):
        check_shared(first, holder(first))
        with pytest.raises(
            ConfigError, match=rf"other on .* is not the folder that rank 0 \(process {os.getpid()} on "
        ):
            check_shared(other, holder(first), patience=0)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run.dir=.*file/run cannot be written \(Not a directory\): choose a folder"):
        hold(tmp_path / "file" / "run")


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        if os.geteuid() == 0:
            pytest.skip("needs the right to mount a tmpfs")
        tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match=r"cannot be written \((Read-only file system|Permission denied)\)"):
            hold(tmp_path / "run")
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_a_kill_left_half_written_goes_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    torn = [tmp_path / "recipe.yaml.123.tmp", tmp_path / "checkpoints" / "latest.77.tmp"]
    others = [tmp_path / "notes.tmp", tmp_path / "recipe.yaml"]
    for path in (*torn, *others):
        path.touch()
    hold(tmp_path).close()
    assert not any(path.exists() for path in torn)
    assert all(path.exists() for path in others)
