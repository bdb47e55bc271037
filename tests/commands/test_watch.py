"""What `scaletrain watch` does with a run."""

import fcntl
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.commands.made_runs import MadeRun
from tests.conftest import ROOT, scaletrain


def test_one_frame_where_there_is_no_terminal(tmp_path: Path) -> None:
    run = MadeRun(tmp_path / "run").event("start", 0, last_step=2000).logged(1000)
    for arguments in ((), ("--once",)):
        done = scaletrain("watch", run.folder, *arguments)
        assert (done.code, done.err) == (0, "")
        assert "not running (it ended without a word, such as by a kill)" in done.out
        assert "1,000 of 2,000 (50.0%)" in done.out
    with (run.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "running" in scaletrain("watch", run.folder).out
    (run.folder / "logs").mkdir()
    (run.folder / "logs" / "rank-00000.log").write_text("x\nerror: data/web is gone: prepare it\n")
    assert "not running (data/web is gone: prepare it)" in scaletrain("watch", run.folder).out
    run.event("stop", 1000, reason="SIGTERM")
    assert "stopped (SIGTERM)" in scaletrain("watch", run.folder).out


def test_a_folder_that_is_no_run_is_a_line(tmp_path: Path) -> None:
    done = scaletrain("watch", tmp_path)
    assert (done.code, done.err) == (
        2, f"error: {tmp_path} is no run: give the run.dir of one that was begun or submitted\n",
    )  # fmt: skip


def test_a_terminal_follows_the_run_to_its_end(tmp_path: Path) -> None:
    run = MadeRun(tmp_path / "run").event("start", 0, last_step=2000).logged(1000)
    mine, its = pty.openpty()
    program = "from scaletrain.cli import main; main()"
    command = [sys.executable, "-c", program, "watch", str(run.folder), "--every", "0.2"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=its, stdin=subprocess.DEVNULL)
    os.close(its)
    seen: list[bytes] = []

    def drain() -> None:
        while True:
            try:
                seen.append(os.read(mine, 65536))
            except OSError:  # its end is closed
                return

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    deadline = time.monotonic() + 60
    while b"1,000 of 2,000" not in b"".join(seen) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.logged(1500)
    while b"1,500 of 2,000" not in b"".join(seen) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    run.event("end", 2000)
    assert process.wait(30) == 0
    reader.join(10)
    os.close(mine)
    assert b"end at step 2,000" in b"".join(seen)
