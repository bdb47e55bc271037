"""A run proven from what it wrote: its events and manifests, beside the order of its data computed again."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.config.load import AnyRecipe, load_recipe
from scaletrain.config.schema import Recipe
from scaletrain.data.audit.fault import Fault
from scaletrain.data.audit.order import SourceUse, Usage, compute_digests
from scaletrain.data.mixture import SOURCE_SHIFT
from scaletrain.data.row_order import RowOrder
from scaletrain.data.training_data import TrainingData, open_training_data
from scaletrain.engine.checkpoint import Found, changed_keys, read_manifest
from scaletrain.engine.history import PASSED_OVER, History, Launch, past_weights, shown
from scaletrain.engine.roll_back import FILE, Window, next_sample, read_windows
from scaletrain.engine.state import RunState
from scaletrain.engine.trail import read_events
from scaletrain.errors import CheckpointError
from scaletrain.runtime.checkpoint_names import MANIFEST, STEP
from scaletrain.runtime.run_files import EVENTS


@dataclass(frozen=True)
class Claim:
    """What the run says of its samples at one point, and the mixture's record that held then."""

    where: str
    samples: int
    digest: int
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder about to be proven; `data` is None where there is no order to compute."""

    recipe: AnyRecipe
    history: History
    checkpoints: tuple[str, ...]
    claims: tuple[Claim, ...]
    data: TrainingData | RowOrder | None
    record: Mapping[str, Any]
    state: RunState

    @property
    def samples(self) -> int:
        """To be computed."""
        return sum(branch.samples for branch in _branches(self.claims, self.record))

    def samples_of(self, step: int) -> list[tuple[int, int]]:
        """Position of the first sample of optimizer step `step`, and how many it read: where a run that went back took
        it on other samples each time, all of these, the last ones last. CheckpointError when it has not been taken."""
        found: dict[tuple[int, int], None] = {}
        launches = self.history.launches
        reached = [launch.reached for launch in launches[:-1]]
        reached += [max(launch.reached, self.state.step) for launch in launches[-1:]]
        for launch, last in zip(launches, reached, strict=True):
            if launch.state.step < step <= last:
                batch = launch.batch or self.recipe.train.global_batch_size
                place = launch.state.samples_seen + (step - 1 - launch.state.step) * batch, batch
                found.pop(place, None)
                found[place] = None
        if not found:
            last = max(reached, default=0)
            raise CheckpointError(f"step {step} is not among those that the run has taken: its last is {last}")
        return list(found)

    def rows_at(self, start: int, count: int) -> list[tuple[str, int]]:
        """Source and row of the samples at positions start..start+count-1 of the run."""
        assert isinstance(self.data, TrainingData)
        ids = self.data.reading(self.record, self.state.samples_seen).order.ids(start, count)
        names, mask = list(self.data.row_counts()), (1 << SOURCE_SHIFT) - 1
        return [(names[sample >> SOURCE_SHIFT], sample & mask) for sample in ids.tolist()]


@dataclass(frozen=True)
class RunReport:
    """`state`: of the newest checkpoint; `proven`: how many of the `claims` the order agrees with."""

    state: RunState
    launches: tuple[Launch, ...]
    sources: tuple[SourceUse, ...]
    checkpoints: tuple[str, ...]
    proven: int
    claims: int
    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]
    is_provable: bool = True


def open_run(folder: Path, overrides: Sequence[str] = ()) -> Run:
    """Reads recipe, manifests and events, checks them against each other and opens the data.

    A ScaleTrainError where there is nothing to go on with.
    """
    recipe_file = folder / "recipe.yaml"
    # An audit needs no DeepSpeed file, which may be gone since: any file does for the recipe's rules.
    recipe = load_recipe(recipe_file, overrides, str(recipe_file.absolute()))
    history = History()
    found = _read_manifests(folder / "checkpoints", history)  # before the events: a live run writes those later
    read_events(folder / EVENTS, history)
    state = max([RunState(), *(f.state for f in found), *history.saved.values()], key=lambda s: s.samples_seen)
    names = tuple(f.folder.name for f in found)
    is_live = isinstance(recipe, Recipe) and recipe.data.source == "huggingface"
    if is_live or (isinstance(recipe, FinetuneRecipe) and not found):  # its rows are told by checkpoints alone
        return Run(recipe, history, names, (), None, {}, state)
    for checkpoint in found:
        _compare_with_events(checkpoint, history)
    _compare_with_windows(folder / "checkpoints", history)
    records = [launch.record for launch in history.launches[-1:]] + [f.manifest["reading"] or {} for f in found[-1:]]
    record = records[-1] if records else {}
    data: TrainingData | RowOrder
    if isinstance(recipe, Recipe):
        data = open_training_data(recipe.data, recipe.seed).renumbered(record)
    else:
        data = RowOrder(found[-1].manifest["data"])
    same = [f for f in found if not _other_data(f, data, history)]
    claims = [Claim(where, s.samples_seen, s.sample_digest, launch.record) for where, launch, s in history.points]
    claims += [
        Claim(_manifest_name(f), f.state.samples_seen, f.state.sample_digest, f.manifest["reading"] or {})
        for f in same
        if f.state.samples_seen == history.saved.get(f.folder.name, f.state).samples_seen
    ]
    if found and found[-1] not in same:  # another order: each of its digests would differ
        claims = []
    return Run(recipe, history, names, tuple(claims), data, record, state)


def prove_run(run: Run, advance: Callable[[int], None], workers: int) -> RunReport:
    """Computes the samples of the run again, and compares; `advance` hears of the samples done."""
    history = run.history
    if run.data is None:
        return RunReport(
            run.state, tuple(history.launches), (), run.checkpoints, 0, 0, tuple(history.faults), tuple(history.notes),
            is_provable=False,
        )  # fmt: skip
    faults, wrong = list(history.faults), 0
    usage = Usage(run.data.row_counts())
    for branch in _branches(run.claims, run.record):
        order = run.data.renumbered(branch.record).reading(branch.record, branch.samples).order
        ends, counted = [claim.samples for claim in branch.claims], usage if branch.is_main else None
        digests = compute_digests(order, ends, advance, workers, counted, run.state.samples_seen)
        for claim in branch.claims:
            if (computed := digests[claim.samples]) != claim.digest:
                wrong += 1
                what = f"the digest of the first {claim.samples:,} samples"
                faults.append(Fault(claim.where, what, f"{computed:016x}", f"{claim.digest:016x}"))
    sources, twice = usage.finish()
    return RunReport(
        state=run.state,
        launches=tuple(history.launches),
        sources=tuple(sources) if run.claims else (),
        checkpoints=run.checkpoints,
        proven=len(run.claims) - wrong,
        claims=len(run.claims),
        faults=(*faults, *twice),
        notes=tuple(history.notes),
    )


@dataclass(frozen=True)
class _Branch:
    """Claims that one pass over the order of `record` proves."""

    record: Mapping[str, Any]
    claims: list[Claim]
    is_main: bool

    @property
    def samples(self) -> int:
        return max(claim.samples for claim in self.claims)


def _branches(claims: Sequence[Claim], record: Mapping[str, Any]) -> Iterator[_Branch]:
    """All claims: first those that `record` covers, the rest by the records of launches that were given up.

    A launch whose checkpoints were damaged may have read by weights that the run has left again.
    """
    rest, is_main = list(claims), True
    while rest:
        fits = [past_weights(c.record, c.samples) == past_weights(record, c.samples) for c in rest]
        if any(fits):
            yield _Branch(record, [c for c, fit in zip(rest, fits, strict=True) if fit], is_main)
        rest, is_main = [c for c, fit in zip(rest, fits, strict=True) if not fit], False
        record = max(rest, key=lambda c: c.samples).record if rest else {}


def _read_manifests(root: Path, history: History) -> list[Found]:
    """The checkpoints that are there, oldest first; a manifest that is not whole is a fault."""
    found = []
    for folder in sorted(root.glob(f"{STEP}*")):
        try:
            found.append(Found(folder, read_manifest(folder)))
        except CheckpointError as error:
            if folder.is_dir():  # else the run has removed it meanwhile
                history.faults.append(Fault(f"checkpoints/{folder.name}", str(error)))
    return found


def _manifest_name(found: Found) -> str:
    return f"checkpoints/{found.folder.name}/{MANIFEST}"


def _compare_with_events(found: Found, history: History) -> None:
    """What a manifest says of its samples against the event of the same checkpoint and against itself."""
    name, where, state = found.folder.name, _manifest_name(found), found.state
    event = history.saved.get(name)
    if event is None:
        history.notes.append(Fault(where, f"{EVENTS} does not tell of this checkpoint (a kill just after the save)"))
    elif replace(state, tokens_seen=0, skipped_steps=0) != event:
        right = f"that of its event ({history.told[name]}), {shown(event)}"
        history.faults.append(Fault(where, "state", right, shown(state)))
    batch = found.manifest["recipe"]["train"]["global_batch_size"]
    if history.batches.get(name, batch) != batch:
        history.faults.append(Fault(where, "samples a step", f"the recipe's {batch}", str(history.batches[name])))
    length = found.manifest["data"].get("context_length")
    if length is not None and (tokens := (state.samples_seen - state.passed_over) * length) != state.tokens_seen:
        right = f"{tokens:,}, which is {length} a sample"
        history.faults.append(Fault(where, "tokens_seen", right, f"{state.tokens_seen:,}"))


def _compare_with_windows(root: Path, history: History) -> None:
    """Roll-backs and the samples passed over against the windows that the run keeps. A window is written before its
    roll-back is told, so that a kill in between leaves one of which no event tells."""
    file = f"checkpoints/{FILE}"
    try:
        windows = read_windows(root)
    except CheckpointError as error:
        history.faults.append(Fault(file, str(error)))
        return
    told = 0  # windows up to that of the last roll-back
    for detour in history.detours:
        if detour.end is None:
            own = (number for number in range(told, len(windows)) if windows[number].start == detour.first)
            if (number := next(own, None)) is None:
                right = f"a window in {file} from {detour.first:,} on"
                history.faults.append(Fault(detour.where, "samples to pass over", right, "none"))
            else:
                told = number + 1
            continue
        ends = {end for count in range(told, len(windows) + 1) for end in _ends(windows[:count], detour.first)}
        if detour.end not in ends:
            right = f"up to {max(ends):,}, as {file} says"
            history.faults.append(Fault(detour.where, PASSED_OVER, right, f"up to {detour.end:,}"))


def _ends(windows: Sequence[Window], first: int) -> set[int]:
    """Where a run may go on that stands at sample `first`, with batches that may or may not reach a window."""
    batches = [1, *(window.start - first + 1 for window in windows if window.start > first)]
    return {next_sample(windows, first, batch) for batch in batches}


def _other_data(found: Found, data: TrainingData | RowOrder, history: History) -> bool:
    """Whether the checkpoint is of other data than the recipe names now; each difference is a fault."""
    before, now = found.manifest["data"], json.loads(json.dumps(data.identity()))
    differing = changed_keys(before, now)
    for key in differing:
        right = f"{before.get(key)} as in {found.folder.name}"
        history.faults.append(Fault("recipe.yaml", f"the {key} of its data", right, str(now.get(key))))
    return bool(differing)
