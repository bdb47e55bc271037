"""Hours of a run that is killed, stopped, resized, damaged and starved of disk at random; nothing may be lost or grow.

    python tests/soak.py --minutes 120 --seed 0 --folder DIR [--ranks 1 2 4] [--precision bf16]

Prints what it does, a line a launch, then a summary as JSON; exit code 1 when a promise was broken:
- each launch goes on from the newest checkpoint that is whole, after each end every checkpoint is whole
  and `latest` names one of them, unless the soak itself has damaged it;
- a stop on request is saved at its last step; a full disk is told, and costs nothing that was saved;
- no process of a launch is left a minute after its end; at the end `scaletrain audit` proves the samples;
- memory, open files, threads and the checkpoints' size are flat (tests/samples.py).
A full disk needs the right to mount a tmpfs; without it that part is left out, and the summary says so.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.harm import filled, harm_newest, newest_whole, small_disk  # noqa: E402
from tests.launches import Launch, begins, broken_promises, events, last_step, send, wait_for  # noqa: E402
from tests.samples import Samples  # noqa: E402

RECIPE = """\
run: {{dir: {run}}}
data: {{path: {data}, context_length: 32}}
model: {{preset: llama-tiny, num_layers: 2, hidden_size: 64}}
train: {{max_steps: 1000000000, global_batch_size: 8, precision: {precision}}}
optim: {{lr: 0.001, warmup_steps: 20, schedule: constant}}
checkpoint: {{every_steps: 20, keep_last: 4}}
evaluate: {{every_steps: 200, max_samples: 8}}
log: {{every_steps: 10, tensorboard: false}}
"""
END_SECONDS = 60
ACTS = {
    "kill a rank": 20, "kill all ranks": 12, "kill the launcher": 12, "SIGTERM to the launcher": 10,
    "SIGTERM to a rank": 10, "stop file": 10, "full disk": 8,
}  # fmt: skip
GENTLE = {"kill the launcher", "SIGTERM to the launcher", "SIGTERM to a rank", "stop file"}  # saved at the last step


class Soak:
    """What is going on: the run, the draws, the counts, and what was found wrong."""

    def __init__(self, folder: Path, run: Path, options: argparse.Namespace, has_small_disk: bool) -> None:
        self.folder, self.run, self.options = folder, run, options
        self.log = folder / "launch.txt"
        self.draw, self.samples = random.Random(options.seed), Samples()
        self.counts, self.slowest = Counter[str](), Counter[str]()
        self.violations: list[str] = []
        self.harmed: set[str] = set()  # names that the soak has damaged and no launch has set aside yet
        self.number, self.steps = 0, 0
        self.ranks, self.stage = max(options.ranks), 1
        self.untried: list[tuple[int, int]] = []
        self.acts = {act: weight for act, weight in ACTS.items() if has_small_disk or act != "full disk"}

    @property
    def configuration(self) -> str:
        return f"{self.ranks} rank{'s' if self.ranks > 1 else ''}, ZeRO {self.stage}"

    def next_configuration(self) -> None:
        """Each has its turn before any has a second one."""
        if not self.untried:
            self.untried = list(product(self.options.ranks, range(4)))
            self.draw.shuffle(self.untried)
        self.ranks, self.stage = self.untried.pop()

    def accuse(self, what: str) -> None:
        self.violations.append(f"launch {self.number}: {what}")
        if self.log.exists():
            shutil.copy(self.log, self.folder / f"launch-{self.number}.txt")
        print(f"VIOLATION {self.violations[-1]}", flush=True)

    def launch(self, deadline: float) -> None:
        """One launch: from its start to its end by an act that is drawn, and all checks of it."""
        self.number += 1
        if self.draw.random() < 0.6:
            self.next_configuration()
        act = self.draw.choices(list(self.acts), list(self.acts.values()))[0]
        settings = [f"deepspeed=ds_configs/zero{self.stage}.json"]
        settings += [f"checkpoint.on_failure={self.draw.choice(['stop', 'continue'])}"]
        settings += [f"checkpoint.background={self.draw.choice(['true', 'false'])}"]
        long = self.draw.uniform(30, max(90, 60 * self.options.minutes / 24))  # shows a leak inside one process
        seconds = self.draw.choices([None, self.draw.uniform(0.3, 12), long], [10, 80, 10])[0]
        if seconds is not None:
            seconds = min(seconds, max(0.3, deadline - time.monotonic()))
        before = len(saved(self.run))
        launch = Launch(self.ranks, [str(self.folder / "recipe.yaml"), *settings], self.log)
        try:
            has_begun = self.train(launch, seconds)
            act = self.act(act, launch, has_begun)
            began = time.monotonic()
            if not launch.wait(END_SECONDS):
                self.accuse(f"{list(launch.processes())} are left {END_SECONDS} s after: {act}")
            self.slowest[act] = max(self.slowest[act], round(1000 * (time.monotonic() - began)))
        finally:
            launch.kill_all()
        self.check(act, before, has_begun)

    def train(self, launch: Launch, seconds: float | None) -> bool:
        """Until training has gone on for so many seconds (None: ends while it starts); whether it has begun."""
        expected, before = newest_whole(self.run), begins(self.run)
        if seconds is None:
            wait_for(launch.is_over, self.draw.uniform(0.5, 3.5), 0.1)
            return begins(self.run) > before
        wait_for(lambda: begins(self.run) > before or launch.agent.poll() is not None, 120, 0.1)
        if begins(self.run) == before:
            self.accuse(f"it did not start: {launch.said()[-2000:]}")
            return False
        begun = [event for event in events(self.run) if event["event"] in {"start", "resume"}][-1]
        if begun["step"] != expected:
            self.accuse(f"it began at step {begun['step']}, the newest whole checkpoint was of step {expected}")
        self.observe(launch, seconds)
        if launch.agent.poll() is not None:
            self.accuse(f"it ended without a cause: {launch.said()[-3000:]}")
        self.steps += max(0, last_step(self.run) - begun["step"])
        return True

    def observe(self, launch: Launch, seconds: float) -> None:
        """Waits, and takes a sample each half second from the third second on."""
        began, ranks = time.monotonic(), launch.ranks()
        while (passed := time.monotonic() - began) < seconds and launch.agent.poll() is None:
            time.sleep(min(0.5, seconds - passed))
            if passed >= 3:
                self.samples.take(self.configuration, self.number, ranks.values(), self.run)

    def act(self, act: str, launch: Launch, has_begun: bool) -> str:
        """Ends the launch, or asks it to end. Returns what was done: some acts need a launch that trains."""
        ranks = list(launch.ranks().values())
        if not ranks:
            act = "kill the launcher"
        elif not has_begun and act in {"stop file", "full disk"}:
            act = "kill all ranks"
        self.counts[act] += 1
        if act == "full disk":
            self.starve(launch)
        elif act == "stop file":
            (self.run / "stop").touch()
        else:
            whom = {"the launcher": [launch.agent.pid], "a rank": [self.draw.choice(ranks or [0])], "all ranks": ranks}
            kind, _, who = act.partition(" to ") if act.startswith("SIGTERM") else act.partition(" ")
            for process in whom[who]:
                send(process, signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
        return act

    def starve(self, launch: Launch) -> None:
        """A full disk for a while. The launch ends and tells why, or goes on and saves again; then it is stopped."""
        with filled(self.run.parent):
            wait_for(lambda: launch.agent.poll() is not None, self.draw.uniform(1, 6))
        if launch.agent.poll() is None:
            self.counts["lived through a full disk"] += 1
            before = len(saved(self.run))
            if not wait_for(lambda: len(saved(self.run)) > before or launch.agent.poll() is not None, 60, 0.2):
                self.accuse("the disk is free again for a minute, and nothing was saved")
        if launch.agent.poll() is not None and "No space left on device" not in launch.said():
            self.accuse(f"a full disk ended it without a word of that: {launch.said()[-3000:]}")
        send(launch.agent.pid, signal.SIGTERM)

    def check(self, act: str, before: int, has_begun: bool) -> None:
        """The promises after an end; then, now and then, harm to the newest checkpoint."""
        if len(saved(self.run)) > before:
            self.harmed = set()  # a new one was saved: what was damaged is set aside, and `latest` is new
        for broken in broken_promises(self.run, self.harmed):
            self.accuse(f"after {act}: {broken}")
        last = (events(self.run) or [{"event": "nothing", "step": 0}])[-1]
        if has_begun and last["event"] == "stop" and last["step"] != newest_whole(self.run):
            self.accuse(f"it stopped at step {last['step']}, saved is step {newest_whole(self.run)}")
        if has_begun and act in GENTLE and last["event"] != "stop":
            self.accuse(f"{act} was not obeyed: the last event is {last}")
        self.counts["stopped and saved"] += has_begun and last["event"] == "stop"
        print(
            f"{self.number:4d}  {self.configuration:15s}  {act:24s} step {last_step(self.run):,}  {last['event']}",
            flush=True,
        )
        for folder in (self.run / "checkpoints").glob("damaged-*"):  # as a person would, once looked at
            shutil.rmtree(folder)
        if self.draw.random() < 0.2 and (harm := harm_newest(self.run, self.draw)) is not None:
            kind, name = harm
            self.harmed.add(name)
            self.counts[f"damage: {kind}"] += 1


def saved(run: Path) -> list[dict[str, Any]]:
    return [event for event in events(run) if event["event"] == "checkpoint"]


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The `scaletrain` command."""
    code = "from scaletrain.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def prepare(folder: Path, run: Path, precision: str) -> None:
    texts = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("c*.py"))
    inputs = [argument for text in texts for argument in ("--input", str(text))]
    done = program("prepare", *inputs, "--output", str(folder / "data"), "--train-tokenizer", "512")
    assert done.returncode == 0, done.stderr
    (folder / "recipe.yaml").write_text(RECIPE.format(run=run, data=folder / "data", precision=precision))


def soak(folder: Path, run: Path, options: argparse.Namespace, has_small_disk: bool) -> dict[str, Any]:
    """Launch after launch until the time is over; the summary."""
    prepare(folder, run, options.precision)
    state, began = Soak(folder, run, options, has_small_disk), time.monotonic()
    deadline = began + 60 * options.minutes
    while time.monotonic() < deadline:
        state.launch(deadline)
    audit = program("audit", str(run))
    if audit.returncode:
        state.accuse(f"the audit fails: {audit.stdout[-3000:]}{audit.stderr}")
    state.violations += state.samples.growths()
    return {
        "minutes": round((time.monotonic() - began) / 60, 1),
        "seed": options.seed,
        "launches": state.number,
        "steps_trained": state.steps,
        "steps_reached": newest_whole(run),
        "counts": dict(sorted(state.counts.items())),
        "slowest_end_ms": dict(sorted(state.slowest.items())),
        "full_disk": "tried" if has_small_disk else "left out: a tmpfs could not be mounted",
        "audit": audit.stdout.strip().splitlines()[-1:] or [audit.stderr.strip()],
        "samples": state.samples.summary(),
        "violations": state.violations,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="a new one; what the run leaves stays there")
    parser.add_argument("--ranks", type=int, nargs="+", default=[n for n in (1, 2, 4) if n <= max(2, cores)])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    os.environ["DS_ACCELERATOR"] = "cpu"
    with small_disk(options.folder.absolute() / "disk") as has_small_disk:
        summary = soak(options.folder.absolute(), options.folder.absolute() / "disk" / "run", options, has_small_disk)
    text = re.sub(r"\[\s+([\d.]+),\s+([\d.]+)\s+\]", r"[\1, \2]", json.dumps(summary, indent=1))  # pairs on a line
    print(text)
    (options.folder / "summary.json").write_text(text + "\n")
    return 1 if summary["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
