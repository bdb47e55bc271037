"""A launch: its output passes unchanged, what ended it is told, and none of its processes stays."""

import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest

from scaletrain.runtime.exit_report import EXIT_FILE, read_exits, report_exit, report_wish
from scaletrain.runtime.grace import Grace
from scaletrain.runtime.launch import Launch, cause_of_death
from scaletrain.runtime.processes import after, kill_group, marked, process_begun
from tests.conftest import run_program

RUN = """
import sys
from pathlib import Path
from scaletrain.runtime.launch import Launch
from scaletrain.runtime.processes import after
launch = Launch(sys.argv[2:], Path(sys.argv[1]))
while (code := launch.wait(1)) is None: pass
launch.clear(after(10))
print(f"code {code}, cause {launch.cause(code)}, exits {launch.exits()}")
"""


def test_output_passes_byte_for_byte_in_its_own_stream(tmp_path: Path) -> None:
    shell = r"printf 'a\n\nb\r\xc3\xa4'; printf 'oops\nerror: the last word\n' >&2; exit 4"
    command = [sys.executable, "-c", RUN, tmp_path / "exits", "bash", "-c", shell]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.stdout == "a\n\nb\rä".encode() + b"code 4, cause the last word, exits {}\n"
    assert done.stderr == b"oops\nerror: the last word\n"


def test_much_output_is_passed_on_whole(tmp_path: Path) -> None:
    done = run_program("-c", RUN, tmp_path / "exits", "seq", "300000")
    assert done.out.splitlines()[:-1] == [str(number) for number in range(1, 300001)]


def test_the_program_sees_a_terminal_of_the_same_size_where_there_is_one(tmp_path: Path) -> None:
    see = "import os; print(os.isatty(1), os.get_terminal_size(1).columns)"
    mine, its = pty.openpty()
    ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 123, 0, 0))
    command = [sys.executable, "-c", RUN, tmp_path / "exits", sys.executable, "-c", see]
    subprocess.run(command, stdout=its, stderr=its, stdin=its, check=True)
    assert os.read(mine, 10_000).startswith(b"True 123\r\n")


@pytest.mark.parametrize("ignores", ["", "trap '' TERM; "])
def test_no_process_is_left_in_any_session(ignores: str, tmp_path: Path) -> None:
    exits = tmp_path / "exits"
    launch = Launch(["bash", "-c", f"{ignores}setsid sleep 1000 & exec sleep 1000"], exits)
    deadline = time.monotonic() + 20
    while len(marked(EXIT_FILE, str(exits))) < 2:
        assert time.monotonic() < deadline
    assert launch.wait(0.01) is None
    assert launch.clear(after(0.3)) == 2
    assert marked(EXIT_FILE, str(exits)) == []


# A launcher that dies, and what it leaves behind: that is told to end, and saves first.
ORPHAN = """
import os, signal, sys, time
def save(number, frame):
    SAVE
    os._exit(0)
signal.signal(signal.SIGTERM, save)
if os.fork():
    time.sleep(0.2)
    os._exit(1)
os.setsid()
signal.pause()
"""
SAVES_LATE = ORPHAN.replace("SAVE", 'time.sleep(0.2); open(sys.argv[1] + "/saved", "w")')


def test_a_process_that_outlives_its_launcher_may_save_before_it_ends(tmp_path: Path) -> None:
    launch = Launch([sys.executable, "-c", SAVES_LATE, str(tmp_path)], tmp_path / "exits")
    while launch.wait(1) is None:
        pass
    assert launch.clear(after(10)) == 1
    assert (tmp_path / "saved").exists()


SAVE_LONG = """folder = sys.argv[1] + "/.unfinished-step-00000004"
    os.mkdir(folder)
    for part in range(15):
        open(f"{folder}/{part}", "w")
        time.sleep(0.1)
    os.rename(folder, sys.argv[1] + "/step-00000004")"""
WRITES_LONG = ORPHAN.replace("SAVE", SAVE_LONG)


def test_a_save_is_not_cut_off_however_long_it_takes(tmp_path: Path) -> None:
    launch = Launch([sys.executable, "-c", WRITES_LONG, str(tmp_path)], tmp_path / "exits")
    while launch.wait(1) is None:
        pass
    assert launch.clear(Grace(tmp_path, 0.5, 10, lambda line: None).is_over) == 1
    assert (tmp_path / "step-00000004").exists()


def test_a_group_is_killed_unless_its_number_is_a_strangers_by_now() -> None:
    leader = subprocess.Popen(
        ["bash", "-c", "sleep 1000 & echo $!; wait"], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    member = int(leader.stdout.readline())
    begun = process_begun(leader.pid)
    kill_group(leader.pid, "1")
    time.sleep(0.2)
    assert process_begun(leader.pid) == begun
    assert process_begun(member) != ""
    leader.kill()
    leader.wait()
    kill_group(leader.pid, begun)
    deadline = time.monotonic() + 5
    while process_begun(member):
        assert time.monotonic() < deadline, "the number is still the group's"
    kill_group(leader.pid, begun)


@pytest.mark.parametrize(
    ("lines", "code", "cause"),
    [
        ([], 3, "ended with exit code 3"),
        ([], -signal.SIGKILL, "ended by SIGKILL"),
        ([], -40, "ended by signal 40"),
        (["error: one", "error: two", "RuntimeError: later"], 1, "two"),
        (["ValueError: first", "torch.cuda.OutOfMemoryError: CUDA out of memory"], 1,
         "torch.cuda.OutOfMemoryError: CUDA out of memory"),
        (["RuntimeError: Connection closed by peer", "  traceback : Signal 9 (SIGKILL) received by PID 12"], 1,
         "a rank was ended by SIGKILL"),
        (["[2026-01-01 00:00:00] [ERROR] [launch.py:1:x] ['python'] exits with return code = -11"], 1,
         "a rank was ended by SIGSEGV"),
        (["torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "], 1, "ended with exit code 1"),
    ],
)  # fmt: skip
def test_the_most_telling_line_is_the_cause(lines: list[str], code: int, cause: str) -> None:
    assert cause_of_death(lines, code) == cause


def test_ranks_report_how_they_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "exits"
    assert read_exits(file) == {}
    for rank, code in (("1", 75), ("0", 2)):
        monkeypatch.setenv(EXIT_FILE, str(file))
        monkeypatch.setenv("RANK", rank)
        assert report_exit(code) == code
    report_wish("wanted")
    assert file.read_text().endswith("\nwish wanted\n")
    with file.open("a", encoding="utf-8") as torn:
        torn.write("2")
    assert read_exits(file) == {1: 75, 0: 2}
    monkeypatch.delenv(EXIT_FILE)
    assert report_exit(3) == 3
    assert read_exits(file) == {1: 75, 0: 2}
