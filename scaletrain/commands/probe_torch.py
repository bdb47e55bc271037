"""What a probe does with torch: processes of their own for test ranks and for builds, which may crash or hang."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from scaletrain.cluster.doctor.agents import MARK, tell
from scaletrain.cluster.doctor.facts import Ranks


@dataclass(frozen=True)
class _Helper:
    """A process that is to print one answer; files do not fill up as pipes do."""

    process: "subprocess.Popen[bytes]"
    out: IO[bytes]
    err: IO[bytes]

    def answer(self, seconds: float) -> Any | str:
        """Its answer in a list; a line that says why there is none."""
        try:
            code = self.process.wait(max(0.1, seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return f"no answer in {seconds:.0f} s"
        said = _lines(self.out)
        answers = [line.removeprefix(MARK) for line in said if line.startswith(MARK)]
        if answers:
            return [json.loads(answers[-1])]
        return (_lines(self.err) or [f"ended with exit code {code}"])[-1]


def try_ranks(ranks: Sequence[int], seconds: float, **same: Any) -> dict[str, Any]:
    """Starts a test rank for each number, side by side, and tells what they found together. `same`: the rest of their
    World, `seats` and `rounds_seconds`."""
    end = time.monotonic() + seconds
    helpers = [
        _start("rank", {**same, "rank": rank, "local_rank": place, "local_size": len(ranks)})
        for place, rank in enumerate(ranks)
    ]
    wrong, faults, pairs, left_out = [], [], [], 0
    for rank, helper in zip(ranks, helpers, strict=True):
        told = helper.answer(end - time.monotonic())
        if isinstance(told, str):
            faults.append(told)
            continue
        wrong += [f"{what} on rank {rank}" for what in told[0]["wrong"]]
        faults += [told[0]["fault"]] if told[0]["fault"] else []
        pairs += told[0]["pairs"]
        left_out = max(left_out, told[0]["rounds_left_out"])
    found = Ranks(tuple(wrong), tuple(dict.fromkeys(faults)))
    return {"ranks": asdict(found), "pairs": pairs, "rounds_left_out": left_out}


def build_ops(ops: Sequence[str], seconds: float) -> dict[str, str]:
    """Compiles the ops; what went wrong with each, "" if nothing."""
    told = _start("build", {"names": list(ops)}).answer(seconds)
    return dict.fromkeys(ops, told) if isinstance(told, str) else told[0]


def _start(what: str, details: Mapping[str, Any]) -> _Helper:
    out, err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115  closed with the helper
    command = [sys.executable, "-m", "scaletrain.commands.probe_torch", what, json.dumps(details)]
    return _Helper(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err), out, err)


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def main(what: str, details: str) -> None:
    """`rank` or `build`, with its arguments in JSON."""
    given = json.loads(details)
    if what == "build":
        from scaletrain.engine.ops import build_ops as build

        tell(build(given["names"]))
        return
    from scaletrain.runtime.links import try_links
    from scaletrain.runtime.log import leave
    from scaletrain.runtime.world import World

    seats, seconds = given.pop("seats"), given.pop("rounds_seconds")
    tell(try_links(World(**given), seats, seconds))
    leave(0)  # a process group that lost its peers may not come down by itself


if __name__ == "__main__":
    main(*sys.argv[1:])
