"""Checkpoints of a run: written whole or not at all, verified before they are read, the newest good one found."""

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import xxhash

from scaletrain.engine.digest import Sums, shown
from scaletrain.engine.state import RunState
from scaletrain.errors import CheckpointError
from scaletrain.runtime import dist
from scaletrain.runtime.checkpoint_names import MANIFEST, STEP, UNFINISHED, step_names
from scaletrain.runtime.files import hash_file, sync_folder, write_json, write_whole

FORMAT = 3
_ADDABLE = "source "  # parts of a mixture: they may come and go at a resume, but never change
_FIRST = {"optimizer": {"optim.name": "adamw"}, "layout": {"moments": "float32"}}  # of checkpoints that do not say
SELF = "manifest_xxh3_128"  # the manifest's key for the hash of all its other values
BEST = "best"


Files = dict[str, tuple[int, str]]  # name -> (bytes, xxh3)
Written = tuple[Files, Sums]  # by one rank: files, and its part of the state's digest


class Saves(Protocol):
    """What can be checkpointed: the engine, seen from here."""

    def writer(self, *, copy: bool) -> Callable[[Path], Written]: ...
    def load(
        self, folder: Path, files: Iterable[str], stored: Mapping[str, str] | None = None
    ) -> dict[str, str] | None: ...


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to. A run may only resume from one of the same identity.

    `layout` tells how the state was held (ranks, ZeRO stage, precision, moments in how many bits) and may change;
    `model` is the architecture, `data` what decides which samples are read (dataset and tokenizer fingerprints, context
    length, seed, shuffle), `optimizer` which one it is: another has other moments.
    """

    layout: Mapping[str, Any]
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    optimizer: Mapping[str, Any] = field(default_factory=lambda: dict(_FIRST["optimizer"]))

    def to_dict(self) -> dict[str, Any]:
        return {name: dict(getattr(self, name)) for name in ("layout", "model", "data", "optimizer")}


@dataclass(frozen=True)
class Found:
    """A checkpoint folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def state(self) -> RunState:
        return RunState.from_dict(self.manifest["state"])

    @property
    def tokenizer_folder(self) -> Path:
        """The run's copy of its tokenizer."""
        return self.folder.parent.parent / "tokenizer"


def _position_file(rank: int) -> str:
    return f"data-rank-{rank:05d}.json"


def read_position(found: Found) -> dict[str, Any] | None:
    """Where this rank was in a live source when the checkpoint was made; None if it read from none."""
    name = _position_file(dist.rank())
    if name not in found.manifest["files"]:
        return None
    position: dict[str, Any] = json.loads((found.folder / name).read_text(encoding="utf-8"))
    return position


def step_folder(root: Path, step: int) -> Path:
    return root / f"{STEP}{step:08d}"


@dataclass(frozen=True)
class Pending:
    """A checkpoint that is being written; finish() makes it count. `stall`: seconds that training waited so far."""

    root: Path
    state: RunState
    identity: Identity
    extra: Mapping[str, Any]
    mine: Future[Written]
    began: float
    stall: float

    @property
    def is_written(self) -> bool:
        """Whether this rank's files are on the disk, or have failed."""
        return self.mine.done()


def begin(
    root: Path,
    engine: Saves,
    state: RunState,
    identity: Identity,
    extra: Mapping[str, Any],
    position: Mapping[str, Any] | None = None,
    *,
    background: bool = False,
) -> Pending:
    """Starts checkpoint `step` below `root`; all ranks call it, and one at a time.

    `extra` goes into the manifest; `position` is this rank's place in a live source (see read_position). In the
    background a thread writes a copy of the state in host memory, and training may go on at once; else all is written
    when this returns. Raises CheckpointError on every rank when the folder cannot be made.
    """
    began = time.perf_counter()
    unfinished = _unfinished_folder(root, state)
    with _telling_disk_faults(root, state), dist.together():
        if dist.rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
    write = engine.writer(copy=background)

    def work() -> Written:
        files, sums = write(unfinished)
        if position is not None:
            name = _position_file(dist.rank())
            write_json(unfinished / name, position)
            files[name] = (unfinished / name).stat().st_size, hash_file(unfinished / name)
        return files, sums

    mine: Future[Written] = Future()
    if background:
        threading.Thread(target=_settle, args=(mine, work), name="checkpoint", daemon=True).start()
    else:
        _settle(mine, work)
    return Pending(root, state, identity, extra, mine, began, time.perf_counter() - began)


def finish(pending: Pending) -> dict[str, Any]:
    """Waits until all ranks have written, and makes the checkpoint count. Returns folder name, bytes and seconds.

    When each file is on the disk rank 0 writes the manifest, renames the folder, and points `latest` at it. Whatever
    interrupts this, the earlier checkpoints stay whole and this one either exists whole or does not exist. All ranks
    call it; raises CheckpointError on every rank when one could not write.
    """
    root, state, waiting = pending.root, pending.state, time.perf_counter()
    unfinished, final = _unfinished_folder(root, state), step_folder(root, state.step)
    mine: Written = {}, {}
    with _telling_disk_faults(root, state):
        with dist.together():
            mine = pending.mine.result()
        everyone = dist.gather(mine)
        files = {name: record for part, _ in everyone for name, record in part.items()}
        digest = {kind: sum(sums[kind] for _, sums in everyone) % 2**64 for kind in mine[1]}
        with dist.together():
            if dist.rank() == 0:
                _commit(unfinished, final, files, shown(digest), state, pending.identity, pending.extra)
    now = time.perf_counter()
    return {
        "checkpoint": final.name,
        "bytes": sum(b for b, _ in files.values()),
        "seconds": now - pending.began,
        "stall_seconds": pending.stall + now - waiting,
    }


def _settle(future: Future[Written], work: Callable[[], Written]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001  raised by finish(), on the training thread
        future.set_exception(error)


def _unfinished_folder(root: Path, state: RunState) -> Path:
    return root / f"{UNFINISHED}{step_folder(root, state.step).name}"


@contextmanager
def _telling_disk_faults(root: Path, state: RunState) -> Iterator[None]:
    """A disk's error, which all ranks raise, as the line that a user needs; what was written is removed."""
    try:
        yield
    except OSError as error:
        if dist.rank() == 0:
            shutil.rmtree(_unfinished_folder(root, state), ignore_errors=True)
        kept = latest_name(root)
        raise CheckpointError(
            f"{step_folder(root, state.step)}: checkpoint not written ({error.strerror or error}): free space there "
            "and run again; " + (f"{kept} is whole" if kept else "there is no earlier one")
        ) from error


def _commit(
    unfinished: Path,
    final: Path,
    files: Mapping[str, tuple[int, str]],
    digest: Mapping[str, str],
    state: RunState,
    identity: Identity,
    extra: Mapping[str, Any],
) -> None:
    for name, (size, _) in files.items():
        if not (unfinished / name).is_file() or (unfinished / name).stat().st_size != size:
            raise CheckpointError(
                f"{unfinished / name} was written by another rank and is not here: run.dir must be on a disk that all "
                "nodes share"
            )
    manifest = {
        "format": FORMAT,
        "state": state.to_dict(),
        **identity.to_dict(),
        **extra,
        "digest": dict(digest),
        "files": {name: {"bytes": b, "xxh3_128": h} for name, (b, h) in sorted(files.items())},
    }
    write_json(unfinished / MANIFEST, {**manifest, SELF: _self_hash(manifest)})
    if final.exists():  # of an earlier attempt that was found damaged, or the same step again
        _remove(final)
    unfinished.rename(final)
    sync_folder(final.parent)
    point_latest(final.parent, final.name)


def point_latest(root: Path, name: str) -> None:
    write_whole(root / "latest", name + "\n")


def latest_name(root: Path) -> str | None:
    """What `latest` names, if it names a folder that exists."""
    try:
        name = (root / "latest").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return name if name and (root / name / MANIFEST).is_file() else None


@dataclass(frozen=True)
class Best:
    """The checkpoint of the best evaluation of a run, as `checkpoints/best` (JSON) tells it."""

    checkpoint: str
    metric: str
    value: float

    @property
    def step(self) -> int:
        return int(self.checkpoint.removeprefix(STEP))

    def is_better(self, other: "Best | None", *, lowest: bool) -> bool:
        """Whether this one is to be kept; a value that is no number never is."""
        if math.isnan(self.value):
            return False
        if other is None or other.metric != self.metric:
            return True
        return self.value < other.value if lowest else self.value > other.value


def write_best(root: Path, best: Best) -> None:
    write_whole(root / BEST, json.dumps(asdict(best)) + "\n")


def read_best(root: Path) -> Best | None:
    """The best checkpoint so far; None when there is none (any more)."""
    try:
        best = Best(**json.loads((root / BEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return best if (root / best.checkpoint / MANIFEST).is_file() else None


def set_aside(root: Path, names: Sequence[str], why: str = "damaged") -> None:
    """Renames checkpoints to `why`-step-..., so that they count no more and can still be looked at. Rank 0 only."""
    for name in names:
        target = root / f"{why}-{name}"
        shutil.rmtree(target, ignore_errors=True)
        (root / name).rename(target)


def clean(
    root: Path, keep_last: int | None = None, keep_every: int | None = None, best: str | None = None
) -> list[str]:
    """Removes what a killed save left and, with `keep_last`, all but the newest checkpoints. Rank 0 only.

    Those of steps that are multiples of `keep_every` stay, and the one named `best`.
    """
    gone = [p for p in root.glob(f"{UNFINISHED}*") if p.is_dir()]
    if keep_last is not None:
        older = list(step_names(root).items())[:-keep_last]
        gone += [root / name for name, step in older if name != best and (not keep_every or step % keep_every)]
    for folder in gone:
        _remove(folder)
    return [folder.name for folder in gone]


def _remove(folder: Path) -> None:
    """Takes the folder's name from it first: a kill on the way leaves nothing that looks like a checkpoint."""
    nameless = folder
    if not folder.name.startswith(UNFINISHED):
        nameless = folder.with_name(f"{UNFINISHED}removal-of-{folder.name}")
        with suppress(OSError):  # as for the removal: what cannot go now goes another time
            folder.rename(nameless)
    shutil.rmtree(nameless, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder; CheckpointError when it is missing, torn or of another format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (found := manifest["format"]) != FORMAT:
            raise CheckpointError(f"{folder}: checkpoint format {found}, this version reads {FORMAT}: use that version")
        intact = manifest.pop(SELF) == _self_hash(manifest)
        RunState.from_dict(manifest["state"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no {MANIFEST}: this is not a complete checkpoint") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: cannot be read ({error}): use another checkpoint") from error
    if not intact:
        raise CheckpointError(
            f"{folder / MANIFEST} is not as it was written (its hash differs): use another checkpoint"
        )
    return manifest  # type: ignore[no-any-return]


def _self_hash(manifest: Mapping[str, Any]) -> str:
    """Hash of a manifest's values, whatever the layout of the text."""
    return xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True).encode())


def damage(found: Found, part: int = 0, parts: int = 1) -> str | None:
    """The first file that is missing, of another size or of another hash; None when all are as written.

    Looks at every size, and hashes each `parts`-th file from `part` on.
    """
    records = found.manifest["files"]
    for name, record in records.items():
        path = found.folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != record["bytes"]:
            return f"{name} has {'no file' if size is None else f'{size:,} bytes'}, written were {record['bytes']:,}"
    for name in sorted(records)[part::parts]:
        if hash_file(found.folder / name) != records[name]["xxh3_128"]:
            return f"{name} is not as it was written (its hash differs)"
    return None


def newest_good(root: Path, tell: Callable[[str, str], None], last_step: int | None = None) -> Found | None:
    """The newest checkpoint whose every file is as written; all ranks call it and share the hashing.

    With `last_step`: of those of steps up to it. `tell(name, why)` hears of each newer one that was passed over. Raises
    CheckpointError when there are checkpoints and all are damaged: starting anew over them would lose work.
    """
    steps: dict[str, int] = dist.gather(step_names(root))[0]
    names = [name for name, step in steps.items() if last_step is None or step <= last_step]
    for name in reversed(names):
        try:
            found = Found(root / name, read_manifest(root / name))
            mine = damage(found, dist.rank(), dist.size())
        except (CheckpointError, OSError) as error:
            found, mine = None, str(error)
        wrong = next((d for d in dist.gather(mine) if d is not None), None)
        if wrong is None:
            return found
        tell(name, wrong)
    if names:
        raise CheckpointError(
            f"{root}: none of the {len(names)} checkpoints is whole: restore one from a copy, or choose a new run.dir"
        )
    return None


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys of two identities that may not differ and do."""
    return [
        key
        for key in {**before, **now}
        if before.get(key) != now.get(key) and not (key.startswith(_ADDABLE) and (key not in before or key not in now))
    ]


def check_identity(found: Found, identity: Identity) -> None:
    """CheckpointError, with every difference, when the checkpoint is of another model or of other data."""
    rules = {
        "data": "the data changed: resume with the dataset, context and seed that began the run, or choose a new "
        "run.dir",
        "model": "the model changed: resume with the recipe that began the run, or choose a new run.dir",
        "optimizer": "the optimizer changed, and has other moments: resume with the one that began the run, or choose "
        "a new run.dir",
    }
    for part, remedy in rules.items():
        if changed := _differences(found, identity, part):
            raise CheckpointError(f"{found.folder}: {'; '.join(changed)}: {remedy}")


def changed_layout(found: Found, identity: Identity) -> str | None:
    """What differs in how the state was held, such as "ranks was 2, is 1"; None: nothing."""
    return "; ".join(_differences(found, identity, "layout")) or None


def _differences(found: Found, identity: Identity, part: str) -> list[str]:
    before = {**_FIRST.get(part, {}), **found.manifest.get(part, {})}
    now = {**_FIRST.get(part, {}), **json.loads(json.dumps(identity.to_dict()[part]))}
    return [f"{k} was {before.get(k)}, is {now.get(k)}" for k in changed_keys(before, now)]
