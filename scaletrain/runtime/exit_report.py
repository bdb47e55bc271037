"""How each rank of a launch ended, written where its supervisor reads it: launchers hide their ranks' exit codes."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from scaletrain.errors import EXIT_STOPPED, EXIT_USER

EXIT_FILE = "SCALETRAIN_EXIT_FILE"  # variable that names the file; a supervisor sets it, every process inherits it


def report_exit(code: int) -> int:
    """Appends "RANK CODE" to the file that $SCALETRAIN_EXIT_FILE names, if it is set; gives `code` back.

    A rank that dies writes nothing, and that is what tells its death. torchrun and deepspeed end with 1 whatever their
    ranks ended with; the file also works through wrappers and srun.
    """
    if name := os.environ.get(EXIT_FILE):
        with Path(name).open("a", encoding="utf-8") as file:  # one short write: ranks do not mix
            file.write(f"{os.environ.get('RANK', '0')} {code}\n")
    return code


def report_wish(reason: str) -> None:
    """Appends "wish REASON" to the same file: a person wants the run stopped; no scheduler may start it again."""
    if name := os.environ.get(EXIT_FILE):
        with Path(name).open("a", encoding="utf-8") as file:
            file.write(f"wish {reason}\n")


def read_exits(path: Path) -> dict[int, int]:
    """Exit codes by rank; ranks that wrote none are missing."""
    if not path.is_file():
        return {}
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return {int(line[0]): int(line[1]) for line in lines if len(line) == 2 and line[0].isdecimal()}


def settle_end(code: int, exits: Mapping[int, int], *, is_finished: bool) -> int | None:
    """The exit code that a launch means; None: it died.

    `code`: the launcher's own, which tells little. `exits`: what its ranks reported. All ranks agree on an end
    or a stop, with all saved, before the first of them reports it. Ranks also stop when they see that their launcher is
    gone, and cannot start without it: after a launcher's SIGKILL only a finished run has not died.
    """
    was_killed = code == -signal.SIGKILL
    if EXIT_USER in exits.values() and not was_killed:
        return EXIT_USER
    if exits.get(0) == 0 or (exits.get(0) == EXIT_STOPPED and not was_killed):
        return exits[0]
    if exits:
        return None
    if code == 0:  # a launcher that keeps the environment from its ranks, or hides their death
        return 0 if is_finished else None
    return code if code in (EXIT_USER, EXIT_STOPPED) else None
