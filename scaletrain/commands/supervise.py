"""`scaletrain supervise`: a run on one node that is started again by itself when it dies."""

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import typer

from scaletrain.cluster.restarts import Restart, Restarts
from scaletrain.commands.launcher import RANKS, find_script, launcher_words, script_of, with_ranks
from scaletrain.commands.supervised_folder import (
    bytes_of_events,
    holder,
    is_finished,
    last_metrics,
    newest_step,
    went_back,
)
from scaletrain.config.deepspeed import batch_plan, settle
from scaletrain.config.fewer_ranks import Fit, fewer_ranks
from scaletrain.config.load import SOURCE_TREE, load_with_deepspeed
from scaletrain.config.schema import BaseRecipe
from scaletrain.errors import EXIT_STOPPED
from scaletrain.runtime.exit_report import settle_end
from scaletrain.runtime.gpus import begin_count, end_count
from scaletrain.runtime.grace import Grace
from scaletrain.runtime.launch import Launch
from scaletrain.runtime.passed_signals import PassedSignals
from scaletrain.runtime.run_files import EVENTS
from scaletrain.track.sinks import Events

_POLL_SECONDS = 0.2
_EXIT_GAVE_UP = 1
_GRACE_SECONDS = 10.0  # for what a dead launch left, and two steps, after which its ranks notice and save
_HELD_SECONDS = 600.0  # that a restart waits for a process which does not end
_LONGEST_WAIT_SECONDS = 60.0
_CLOCK_TICK_SECONDS = 0.05  # Linux dates files by the last tick: up to 10 ms before time.time()


def supervise(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe of the run")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value")] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Default: one a GPU; 1 without, or if LAUNCH has no {ranks}")
    ] = None,
    launch: Annotated[
        str | None, typer.Option(help="Command that starts the ranks, such as 'deepspeed --num_gpus {ranks}'")
    ] = None,
    deepspeed_config: Annotated[
        str | None,
        typer.Option("--deepspeed_config", metavar="FILE", help="DeepSpeed JSON that wins over the recipe's"),
    ] = None,
) -> None:
    """Train, and start again by itself after a death; the run goes on from its newest checkpoint.

    train.max_restarts launches in a row that save no new step are the end (exit code 1); a restart after which a new
    step was saved sets the count back. A fault of the input (2) and a stop on request (75) are not retried. With
    train.min_ranks it may go on with fewer ranks. The first SIGTERM, SIGINT, SIGUSR1 or SIGHUP stops the run, saved; a
    second, three seconds later, kills it.
    """
    loaded, preset = load_with_deepspeed(recipe, overrides or [], deepspeed_config)
    settled = settle(loaded, preset)
    gpus_at_start = cache(partial(end_count, begin_count()))  # counted beside the first launch, read when it is needed
    if ranks is None:
        ranks = 1 if launch is not None and RANKS not in launch else max(1, gpus_at_start())
    batch_plan(settled, ranks)  # a fault is told before anything starts
    script = [str(find_script((SOURCE_TREE, Path.cwd()), script_of(settled))), str(recipe), *(overrides or [])]
    if deepspeed_config is not None:
        script += ["--deepspeed_config", deepspeed_config]
    policy = Restarts(settled.train.max_restarts, ranks, partial(_fewer, settled, preset, ranks))
    with tempfile.TemporaryDirectory(prefix="scaletrain-supervise-") as own:
        supervisor = Supervisor(
            folder=Path(settled.run.dir),
            hang_seconds=settled.guard.hang_seconds,
            command=[*launcher_words(launch, ranks, settled.train.min_ranks), *script],
            policy=policy,
            own=Path(own),
            gpus_at_start=gpus_at_start,
        )
        sys.exit(supervisor.run())


def _fewer(recipe: BaseRecipe, preset: dict[str, Any], began_with: int, at_most: int) -> Fit | None:
    return fewer_ranks(recipe, preset, began_with=began_with, at_most=at_most)


@dataclass
class Supervisor:
    """Starts a command over and over until it is done, stopped, at fault, or without hope."""

    folder: Path
    hang_seconds: float  # that no save takes
    command: Sequence[str]  # with {ranks}
    policy: Restarts
    own: Path  # a folder for the exit codes of each launch
    gpus_at_start: Callable[[], int]
    _launch: Launch | None = None
    _micro_batch: int | None = None  # given to launches on fewer ranks
    _launches: int = 0
    _began: float = 0.0

    def run(self) -> int:
        """The supervisor's exit code."""
        signals = PassedSignals(self.folder / "stop", self._kill)
        signals.listen()
        while True:
            before, told = newest_step(self.folder), bytes_of_events(self.folder)
            code, cause = self._run_once(signals)
            after = newest_step(self.folder)
            if code is not None:
                if code == EXIT_STOPPED:  # below what a launcher says of it, as if it were a failure
                    _say(f"stopped on request; {_goes_on(after)}, by the same command")
                return code
            if signals.name is not None:
                _say_error(f"the run was asked to stop ({signals.name}) and died: {cause}; {_goes_on(after)}")
                return _EXIT_GAVE_UP
            # A roll-back passes over samples: it is progress, and guard.max_roll_backs bounds it.
            progressed = after > before or went_back(self.folder, told)
            nxt = self.policy.after_death(progressed=progressed, gpus=self._gpus_left())
            if isinstance(nxt, str):
                _say_error(f"gave up {self._where()}: {nxt}; the last one: {cause}; {_goes_on(after)}")
                return _EXIT_GAVE_UP
            self._tell(nxt, cause, after)
            who = self._wait(nxt.wait_seconds, signals)
            if signals.name is not None or self._stop_file_came():
                signals.take_back()
                _say(f"stopped before restart {nxt.number}; {_goes_on(after)}")
                return EXIT_STOPPED
            if who is not None:
                _say_error(
                    f"gave up {self._where()}: {who} holds {self.folder} for {_HELD_SECONDS:g} s: end it, or restart "
                    f"its node if it cannot be killed; the last launch: {cause}; {_goes_on(after)}"
                )
                return _EXIT_GAVE_UP
            self._record(nxt, cause, after)

    def _run_once(self, signals: PassedSignals) -> tuple[int | None, str]:
        """One launch from start to end. The code to end with, None after a death; and what ended it."""
        self._launches += 1
        self._began = time.time()
        words = with_ranks(self.command, self.policy.ranks)
        if self._micro_batch is not None:
            words.append(f"train.micro_batch_size={self._micro_batch}")
        self._launch = launch = Launch(words, self.own / f"launch-{self._launches}")
        while (code := launch.wait(_POLL_SECONDS)) is None:
            signals.pass_on()
        exits = launch.exits()  # read before the rest is ended: ranks that we end report a stop, which nobody asked for
        if left := launch.clear(self._grace().is_over):
            _say(f"ended   what the launch had left, processes: {left}")
        signals.take_back()
        return settle_end(code, exits, is_finished=is_finished(self.folder)), launch.cause(code)

    def _grace(self) -> Grace:
        logged = last_metrics(self.folder, self._began) or {}
        seconds = _GRACE_SECONDS + 2 * float(logged.get("step_seconds", 0))
        return Grace(self.folder / "checkpoints", seconds, max(seconds, self.hang_seconds), _say)

    def _wait(self, seconds: float, signals: PassedSignals) -> str | None:
        """Before a restart: so many seconds, and longer and longer while a process holds the run's folder. It was
        killed, but the kernel may keep it (a dead disk or GPU; much memory to free). Gives who did not let go."""
        end, told = time.monotonic() + seconds + _HELD_SECONDS, False
        while not signals.wait(seconds) and (who := holder(self.folder)) is not None:
            if time.monotonic() >= end:
                return who
            if not told:
                told = True
                _say(f"wait    {who} still holds {self.folder}: the restart waits for it, {_HELD_SECONDS:g} s at most")
            seconds = min(2 * seconds, _LONGEST_WAIT_SECONDS)
        return None

    def _kill(self) -> None:
        if self._launch is not None:
            self._launch.kill()
        shutil.rmtree(self.own, ignore_errors=True)  # the process ends here, without the caller's clean-up

    def _gpus_left(self) -> int | None:
        """None on a machine that had none when it began."""
        return end_count(begin_count()) if self.gpus_at_start() else None

    def _tell(self, nxt: Restart, cause: str, saved: int) -> None:
        rank_word = "rank" if nxt.ranks == 1 else "ranks"
        if nxt.fewer is not None:
            self._micro_batch, reason = nxt.fewer
            _say(f"ranks   {nxt.ranks} from now on, micro-batch {self._micro_batch}: {reason}")
        _say(
            f"died    {self._where()}: {cause}; restart {nxt.number} of {self.policy.max_restarts} in "
            f"{nxt.wait_seconds:g} s on {nxt.ranks} {rank_word}; {_goes_on(saved)}"
        )

    def _record(self, nxt: Restart, cause: str, saved: int) -> None:
        """A line of the run's events, which no rank writes now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        Events(self.folder / EVENTS, rank=0).write(
            "restart", saved, number=nxt.number, of=self.policy.max_restarts, ranks=nxt.ranks, cause=cause,
            died_after=self._logged_step(), wait_seconds=nxt.wait_seconds,
        )  # fmt: skip

    def _where(self) -> str:
        step = self._logged_step()
        return "before a step was logged" if step is None else f"after step {step:,}"

    def _logged_step(self) -> int | None:
        """The last step that this launch logged."""
        line = last_metrics(self.folder, self._began)
        return None if line is None else int(line["step"])

    def _stop_file_came(self) -> bool:
        """Whether somebody made the stop file after the launch that died began; it is removed: obeyed."""
        file = self.folder / "stop"
        if not file.is_file() or file.stat().st_mtime < self._began - _CLOCK_TICK_SECONDS:
            return False
        file.unlink()
        return True


def _goes_on(step: int) -> str:
    return f"it goes on from step {step:,}" if step else "no step is saved yet"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone, the run is not
        print(line, flush=True)


def _say_error(line: str) -> None:
    with contextlib.suppress(OSError):
        print(f"error: {line}", file=sys.stderr, flush=True)
