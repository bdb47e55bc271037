"""How each rank of a launch ended, written where its supervisor reads it: launchers hide their ranks' exit codes."""

import os
from pathlib import Path

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


def read_exits(path: Path) -> dict[int, int]:
    """Exit codes by rank; ranks that wrote none are missing."""
    if not path.is_file():
        return {}
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return {int(line[0]): int(line[1]) for line in lines if len(line) == 2}
