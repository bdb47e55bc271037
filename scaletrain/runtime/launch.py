"""One start of a program with all the processes that it starts: its output passed on, its end told, nothing left."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import subprocess
import termios
import threading
import tty
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from scaletrain.errors import ConfigError
from scaletrain.runtime.exit_report import EXIT_FILE, read_exits
from scaletrain.runtime.processes import end_marked, kill_group, process_begun

_LINES = 2000  # of the output that are remembered: the tracebacks of many ranks
_LINE_BYTES = 4000
_DRAIN_SECONDS = 5.0
# From torchrun's table of failures, and from deepspeed's launcher.
_SIGNAL = re.compile(r"Signal \d+ \((SIG\w+)\) received by PID \d+|exits with return code = -(\d+)")
_ERROR = re.compile(r"^error: (.+)")
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt): \S.*")


class Launch:
    """A running command. Its processes may make sessions of their own, as torchrun's ranks do: all carry the variable
    $SCALETRAIN_EXIT_FILE with this launch's own file, by which they are found."""

    def __init__(self, command: Sequence[str], exit_file: Path) -> None:
        self._exit_file = exit_file
        self._tails: dict[int, deque[str]] = {}
        self._pumps: list[threading.Thread] = []
        streams = {number: _stream_like(number) for number in (1, 2)}
        env = {**os.environ, EXIT_FILE: str(exit_file)}
        try:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=streams[1][1],
                stderr=streams[2][1],
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(
                f"{command[0]} cannot be started ({error.strerror}): give --launch a program that is on this machine"
            ) from error
        self._begun = process_begun(self._process.pid)
        for number, (mine, its) in streams.items():
            os.close(its)
            self._tails[number] = deque(maxlen=_LINES)
            pump = threading.Thread(target=_pump, args=(mine, number, self._tails[number]), daemon=True)
            pump.start()
            self._pumps.append(pump)

    def wait(self, seconds: float) -> int | None:
        """The command's exit code (negative: the signal that ended it); None while it runs after so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def clear(self, is_over: Callable[[], bool]) -> int:
        """Ends every process of it that is left, by force once their grace `is_over`, and passes on the last of the
        output. Gives how many were left."""
        left = self.kill(is_over)
        self._process.wait()
        for pump in self._pumps:
            pump.join(_DRAIN_SECONDS)
        return left

    def kill(self, is_over: Callable[[], bool] | None = None) -> int:
        """Ends every process of it and waits for none of the output; safe in a signal handler."""
        left = end_marked(EXIT_FILE, str(self._exit_file), is_over)
        kill_group(self._process.pid, self._begun)  # where there is no /proc, or none of the environment is left
        return left

    def exits(self) -> dict[int, int]:
        """The exit codes that ranks reported."""
        return read_exits(self._exit_file)

    def cause(self, code: int) -> str:
        """What ended it, in words: its last `error:` line, else a signal, an exception or the exit code."""
        lines = [*self._tails[1], *self._tails[2]]
        return cause_of_death(lines, code)


def cause_of_death(lines: Sequence[str], code: int) -> str:
    """The most telling of a dead launch's last lines, or what its exit code means (negative: a signal)."""
    if (told := told_cause(lines)) is not None:
        return told
    return f"ended by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"


def told_cause(lines: Sequence[str]) -> str | None:
    """The most telling of a dead launch's last lines: an `error:` line, else a signal, else an exception."""
    if (error := _last(lines, _ERROR)) is not None:
        return error[1]
    if (ended := _last(lines, _SIGNAL)) is not None:
        return f"a rank was ended by {ended[1] or _signal_name(int(ended[2]))}"
    exception = _last(lines, _EXCEPTION)
    return None if exception is None else exception[0]


def _last(lines: Sequence[str], pattern: re.Pattern[str]) -> re.Match[str] | None:
    matches = (pattern.search(line) for line in reversed(lines))
    return next((match for match in matches if match is not None), None)


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _stream_like(number: int) -> tuple[int, int]:
    """Ends to read and to write: a terminal of the same size where `number` is one, so that progress bars stay."""
    if not os.isatty(number):
        return os.pipe()
    mine, its = pty.openpty()
    tty.setraw(its)  # bytes pass as they are; the real terminal treats them
    with contextlib.suppress(OSError):
        fcntl.ioctl(its, termios.TIOCSWINSZ, fcntl.ioctl(number, termios.TIOCGWINSZ, b"\0" * 8))
    return mine, its


def _pump(source: int, target: int, tail: deque[str]) -> None:
    """Passes bytes on until the last writer is gone; remembers the last lines. A target that is gone is let go."""
    pending, is_open = b"", True
    while True:
        try:
            block = os.read(source, 65536)
        except OSError:  # a terminal's way to say that the other side is closed
            block = b""
        if not block:
            break
        *lines, pending = re.split(rb"[\r\n]+", pending + block)
        pending = pending[-_LINE_BYTES:]
        tail.extend(line[:_LINE_BYTES].decode(errors="replace") for line in lines if line)
        while is_open and block:
            try:
                block = block[os.write(target, block) :]
            except OSError:
                is_open = False
    tail.append(pending.decode(errors="replace"))
    os.close(source)
