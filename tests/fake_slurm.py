"""SLURM's commands as small scripts that write down how they are called and answer what a test has laid down."""

import shlex
from pathlib import Path

import pytest

_SCRIPT = """\
#!/bin/bash
cd {folder}
printf '%s\\n' "{name} $*" >>calls
cat {name}.err >&2
{more}
cat {name}.out
exit "$(cat {name}.code)"
"""


class FakeSlurm:
    """The commands stand alone on the PATH, beside the few programs that they are made of."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "calls").touch()
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        self.answers("sbatch", "4711\n", more='env | grep "^SBATCH_" | sort >environment')
        self.answers("squeue", "")
        self.answers("scancel", "")
        self.answers("scontrol", "")

    def answers(self, name: str, out: str, err: str = "", code: int = 0, more: str = "") -> None:
        """What a command says from now on, and what it does besides, in the folder of the answers."""
        for ending, text in (("out", out), ("err", err), ("code", str(code))):
            (self.folder / f"{name}.{ending}").write_text(text)
        script = self.folder / name
        script.write_text(_SCRIPT.format(folder=shlex.quote(str(self.folder)), name=name, more=more))
        script.chmod(0o755)

    def queue(self, *lines: str) -> None:
        """Lines of name|state|reason|start|nodes that squeue gives."""
        temporary = self.folder / "squeue.new"
        temporary.write_text("".join(f"{line}\n" for line in lines))
        temporary.replace(self.folder / "squeue.out")

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call of a command."""
        words = [line.split() for line in (self.folder / "calls").read_text().splitlines()]
        return [line[1:] for line in words if line[0] == name]
