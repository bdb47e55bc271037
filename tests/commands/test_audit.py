"""`scaletrain audit` of runs that were killed, resumed and re-weighted, of datasets, and what it shows of either."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaletrain.commands.audit import audit
from scaletrain.data.order import digest
from scaletrain.data.shards import Dataset, dataset_fingerprint, open_dataset
from scaletrain.engine.audit import open_run
from scaletrain.engine.checkpoint import MANIFEST, SELF, _self_hash
from scaletrain.track.sinks import read_lines
from tests.conftest import ROOT, Done, pretrain, scaletrain, write_recipe

SETTINGS = [
    "data.context_length=256",
    "data.path=null",
    "data.shuffle_window_shards=2",
    "checkpoint.every_steps=4",
    "checkpoint.keep_last=3",
    "evaluate.every_steps=null",
]


def mixture(where: Path, a: int, b: int) -> str:
    return f"data.mixture={{a: {{path: {where}, weight: {a}}}, b: {{path: {where}, weight: {b}}}}}"


@pytest.fixture(scope="module")
def killed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three launches over two sources, through several epochs, each source in window order.

    The first is killed; the second has other weights and a smaller batch, and its checkpoints are damaged afterwards;
    so the third goes on from the first's, with the first weights.
    """
    folder = tmp_path_factory.mktemp("killed")
    recipe, run, first = write_recipe(folder, dataset, folder / "run"), folder / "run", mixture(dataset.path, 3, 1)
    command = [sys.executable, "launch/pretrain.py", str(recipe), *SETTINGS, first, "train.max_steps=100000"]
    process = subprocess.Popen([*command, "train.global_batch_size=64"], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and len(saved(run)) < 3:
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = int(newest(run).name[5:])
    second = mixture(dataset.path, 1, 9)
    for steps, weights in ((last + 8, second), (last + 10, first)):
        done = pretrain(recipe, *SETTINGS, weights, f"train.max_steps={steps}", "train.global_batch_size=48")
        assert done.code == 0, done.err
        if weights == second:
            for step in (last + 4, last + 8):
                (run / "checkpoints" / f"step-{step:08d}" / "state-00000-of-00001.safetensors").write_bytes(b"?")
    return run


def test_an_audit_may_open_as_many_files_as_the_system_lets_it(dataset: Dataset) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        audit(dataset.name)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def copy(killed: Path, tmp_path: Path) -> Path:
    shutil.copytree(killed, tmp_path / "run")
    return tmp_path / "run"


def saved(run: Path) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    return [line for line in read_lines(path) if line["event"] == "checkpoint"] if path.exists() else []


def told(done: Done, what: str = "fault") -> list[str]:
    return [line.removeprefix(f"{what}: ") for line in done.out.splitlines() if line.startswith(f"{what}: ")]


def edit_events(run: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    events = read_lines(run / "events.jsonl")
    change(events)
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def numbers(run: Path, event: str) -> list[int]:
    """The lines of events.jsonl, from 1 on, that hold such an event."""
    return [n for n, line in enumerate(read_lines(run / "events.jsonl"), start=1) if line["event"] == event]


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a manifest and hashes it anew, as by someone who knows how."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del manifest[SELF]
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps({**manifest, SELF: _self_hash(manifest)}), encoding="utf-8")


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def rows_of(dataset: Dataset, context: int) -> int:
    return sum(-(-(shard.tokens - 1) // context) for shard in dataset.train)


def test_a_run_that_was_killed_and_damaged_is_proven_with_its_launches_and_epochs(
    killed: Path, dataset: Dataset
) -> None:
    done = scaletrain("audit", killed)
    assert (done.code, done.err) == (0, "")
    *launches, a, b, verdict = done.out.splitlines()
    step = next(line for line in read_lines(killed / "events.jsonl") if line["event"] == "resume")["step"]
    assert launches == [
        f"launch 1  start at step 0, 1 rank, 64 samples a step, saved up to step {step}, killed",
        f"launch 2  resume at step {step}, 1 rank, 48 samples a step, saved up to step {step + 8}, done",
        f"launch 3  resume at step {step}, 1 rank, 48 samples a step, saved up to step {step + 10}, done",
    ]
    samples, rows = step * 64 + 480, rows_of(dataset, 256)
    read = [name for name, _ in open_run(killed).rows_at(0, samples)]
    assert read.count("a") > rows, "an epoch is to end"
    for name, line in (("a", a), ("b", b)):
        count = read.count(name)
        epochs = f"{count // rows} whole epoch{'' if count // rows == 1 else 's'}"
        assert line == (
            f"source {name}  {count:,} samples of {rows:,} rows: {epochs}, {count % rows / rows:.1%} of the next"
        )
    assert verdict == (
        f"proven: step {step + 10}, {samples:,} samples as the order says, each row once an epoch; "
        f"{len(saved(killed)) + 2 + 3} records of 3 launches agree, 3 checkpoints on the disk"
    )
    report = json.loads(scaletrain("audit", killed, "--json").out)
    assert report["state"]["tokens_seen"] == samples * 256
    assert report["state"]["sample_digest"] == saved(killed)[-1]["sample_digest"]
    assert (report["faults"], report["notes"], report["proven"]) == ([], [], report["claims"])


def test_a_run_over_one_packed_dataset_is_proven(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    settings = ["data.packing=best_fit", f"data.cache.dir={tmp_path / 'cache'}", "data.document_mask=true"]
    done = pretrain(recipe, *settings, "evaluate.every_steps=null", "train.max_steps=6")
    assert done.code == 0, done.err
    done = scaletrain("audit", tmp_path / "run")
    assert done.code == 0, done.out
    assert "proven: step 6, 48 samples as the order says, each row once an epoch; 4 records of 1 launch" in done.out
    for name in ("data.packing=cut", "data.document_mask=false", "data.context_length=64"):
        assert scaletrain("audit", tmp_path / "run", name).code == 2, "another row is behind each number"


def test_a_run_needs_neither_its_place_nor_its_deepspeed_file_nor_its_data_path(
    copy: Path, dataset: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(dataset.path, tmp_path / "moved")
    recipe = copy / "recipe.yaml"
    lines = recipe.read_text(encoding="utf-8").replace(str(dataset.path), "gone").splitlines()
    recipe.write_text("\n".join("deepspeed: gone.json" if x.startswith("deepspeed:") else x for x in lines))
    done = scaletrain("audit", copy)
    assert (done.code, done.out) == (2, "")
    assert "dataset gone is not a folder" in done.err
    places = [f"data.mixture.{name}.path={tmp_path / 'moved'}" for name in "ab"]
    assert scaletrain("audit", copy, *places).code == 0


def test_another_seed_in_the_recipe_is_told(copy: Path) -> None:
    recipe = copy / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("seed: 1234", "seed: 1235"), encoding="utf-8")
    done = scaletrain("audit", copy)
    assert done.code == 2
    names = sorted(path.name for path in (copy / "checkpoints").glob("step-*"))
    assert told(done) == [f"recipe.yaml: the seed of its data: expected 1234 as in {n}, found 1235" for n in names]
    assert done.err == (
        f"error: {copy}: 3 faults: the run did not read what its recipe and data say, or its records were changed\n"
    )


def test_a_replaced_dataset_is_told(copy: Path, dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.path, tmp_path / "other")
    index = json.loads((tmp_path / "other" / "index.json").read_text(encoding="utf-8"))
    index["train"].reverse()
    train = tuple(reversed(dataset.train))
    index["fingerprint"] = dataset_fingerprint(dataset.dtype, dataset.tokenizer, train, dataset.validation)
    (tmp_path / "other" / "index.json").write_text(json.dumps(index), encoding="utf-8")
    assert open_dataset(tmp_path / "other").fingerprint == index["fingerprint"]
    done = scaletrain("audit", copy, f"data.mixture.b.path={tmp_path / 'other'}")
    assert done.code == 2
    name = min((copy / "checkpoints").glob("step-*")).name
    assert told(done)[0] == (
        f"recipe.yaml: the source b of its data: expected {dataset.fingerprint} as in {name}, "
        f"found {index['fingerprint']}"
    )


def test_a_manifest_that_is_one_sample_off_is_told(copy: Path) -> None:
    folder = newest(copy)
    state = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["state"]
    right = state["sample_digest"]
    last, other = (digest(np.array([state["samples_seen"] - 1]), np.array([row])) for row in (0, 1))
    wrong = f"{(int(right, 16) - last + other) % 2**64:016x}"
    edit_manifest(folder, lambda manifest: manifest["state"].__setitem__("sample_digest", wrong))
    done = scaletrain("audit", copy)
    assert done.code == 2
    where, samples = f"checkpoints/{folder.name}/manifest.json", state["samples_seen"]
    event = f"that of its event (events.jsonl line {numbers(copy, 'checkpoint')[-1]})"
    shown = f"step {state['step']:,} with {samples:,} samples and digest"
    assert told(done) == [
        f"{where}: state: expected {event}, {shown} {right}, found {shown} {wrong}",
        f"{where}: the digest of the first {samples:,} samples: expected {right}, found {wrong}",
    ]


def test_other_counts_in_a_manifest_are_told(copy: Path) -> None:
    folder = newest(copy)

    def change(manifest: dict[str, Any]) -> None:
        manifest["state"]["tokens_seen"] += 1
        manifest["recipe"]["train"]["global_batch_size"] = 47

    edit_manifest(folder, change)
    state = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["state"]
    where, right = f"checkpoints/{folder.name}/manifest.json", state["samples_seen"] * 256
    assert told(scaletrain("audit", copy)) == [
        f"{where}: samples a step: expected the recipe's 47, found 48",
        f"{where}: tokens_seen: expected {right:,}, which is 256 a sample, found {right + 1:,}",
    ]


def test_samples_that_only_a_manifest_or_an_event_says_were_passed_over_are_told(copy: Path) -> None:
    folder, event = newest(copy), saved(copy)[-1]

    def change(manifest: dict[str, Any]) -> None:
        manifest["state"]["passed_over"] += 48
        manifest["state"]["tokens_seen"] -= 48 * 256

    kept = (folder / MANIFEST).read_text(encoding="utf-8")
    edit_manifest(folder, change)
    (fault,) = told(scaletrain("audit", copy))
    digest_shown = f"and digest {event['sample_digest']}"
    assert fault == (
        f"checkpoints/{folder.name}/manifest.json: state: expected that of its event (events.jsonl line "
        f"{numbers(copy, 'checkpoint')[-1]}), step {event['step']:,} with {event['samples_seen']:,} samples "
        f"{digest_shown}, found step {event['step']:,} with {event['samples_seen']:,} samples (48 of them passed over) "
        f"{digest_shown}"
    )
    (folder / MANIFEST).write_text(kept, encoding="utf-8")
    first = event["samples_seen"]
    over = {**event, "event": "pass_over", "first_sample": first, "samples": 48, "samples_seen": first + 48}
    edit_events(copy, lambda events: events.insert(len(events) - 1, {**over, "passed_over": 48}))
    (number,) = numbers(copy, "pass_over")
    assert (
        f"events.jsonl line {number}: passed over samples: expected up to {first:,}, as checkpoints/passed-over.json "
        f"says, found up to {first + 48:,}"
    ) in told(scaletrain("audit", copy))


def test_a_torn_manifest_is_told(copy: Path) -> None:
    (newest(copy) / MANIFEST).write_text("{", encoding="utf-8")
    (fault,) = told(scaletrain("audit", copy))
    assert fault.startswith(f"checkpoints/{newest(copy).name}: ")
    assert "manifest.json: cannot be read" in fault


def test_events_that_do_not_follow_from_those_before_are_told(copy: Path) -> None:
    resume, end = numbers(copy, "resume")[0], numbers(copy, "end")[0]
    last = numbers(copy, "checkpoint")[-1]
    name = read_lines(copy / "events.jsonl")[resume - 1]["checkpoint"]
    count = read_lines(copy / "events.jsonl")[last - 1]["samples_seen"]

    def change(events: list[dict[str, Any]]) -> None:
        events[0].update(sample_digest="0000000000000001", ranks=2)
        events[resume - 1]["sample_digest"] = "00000000000000ff"
        events[last - 1]["samples_seen"] += 1
        events[end - 1]["step"] += 1

    edit_events(copy, change)
    done = scaletrain("audit", copy)
    assert done.code == 2
    assert "launch 1  start at step 0, 2 ranks" in done.out
    start, resumed, ended, samples = [
        fault for fault in told(done) if fault.startswith("events.jsonl") and "digest of the first" not in fault
    ]
    assert start.startswith("events.jsonl line 1: a start: expected step 0 with 0 samples and digest 0000000000000000")
    assert resumed.startswith(f"events.jsonl line {resume}: resumed from {name}: expected step ")
    assert resumed.endswith("00000000000000ff")
    assert samples == (
        f"events.jsonl line {last}: samples of {newest(copy).name}: expected {count:,}, which is 48 a step, "
        f"found {count + 1:,}"
    )
    assert ended.startswith(f"events.jsonl line {end}: the step at the end: expected that of its last checkpoint, ")
    assert any(f"line {resume} (resume from {name}): the digest of the first" in fault for fault in told(done))


def test_the_digest_of_a_pruned_checkpoint_is_proven_from_its_event(copy: Path) -> None:
    first = numbers(copy, "checkpoint")[0]
    event = read_lines(copy / "events.jsonl")[first - 1]
    assert not (copy / "checkpoints" / event["checkpoint"]).exists()
    edit_events(copy, lambda events: events[first - 1].update(sample_digest="0123456789abcdef"))
    assert told(scaletrain("audit", copy)) == [
        f"events.jsonl line {first} ({event['checkpoint']}): the digest of the first {event['samples_seen']} samples: "
        f"expected {event['sample_digest']}, found 0123456789abcdef"
    ]


def test_events_that_cannot_be_or_cannot_be_read_are_told(copy: Path) -> None:
    first = numbers(copy, "checkpoint")[0]

    def change(events: list[dict[str, Any]]) -> None:
        del events[first - 1]["sample_digest"]
        events.insert(0, events[first])
        events.insert(0, {"event": "end", "step": 0})
        events[3].update(sources=["a"], segments=[{"start": 0, "weights": {"a": 5}}])

    edit_events(copy, change)
    assert told(scaletrain("audit", copy))[:4] == [
        "events.jsonl line 1: end before any start",
        f"events.jsonl line 2: {saved(copy)[0]['checkpoint']} was saved before any start",
        "events.jsonl line 4: cannot be read (ValueError: segments do not begin at 0, or have weights that are no whole"
        ")",
        f"events.jsonl line {first + 2}: cannot be read (KeyError: 'sample_digest')",
    ]
    (copy / "events.jsonl").unlink()
    assert told(scaletrain("audit", copy)) == [
        "events.jsonl: the file is missing: expected the events of the run, found no file"
    ]


def test_a_checkpoint_saved_before_the_one_before_it_is_told(copy: Path) -> None:
    first, second, *_ = numbers(copy, "checkpoint")

    def change(events: list[dict[str, Any]]) -> None:
        events[first - 1], events[second - 1] = events[second - 1], events[first - 1]

    edit_events(copy, change)
    assert told(scaletrain("audit", copy)) == [
        f"events.jsonl line {second}: step-00000004 was saved: expected after step 8, found step 4"
    ]


def test_what_a_kill_leaves_is_a_note_and_no_fault(copy: Path) -> None:
    """The event of the checkpoint that the run resumed from is lost; a power cut tore another line."""
    lines = (copy / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    resume = numbers(copy, "resume")[0]
    name = json.loads(lines[resume - 1])["checkpoint"]
    lost = next(
        n for n, line in enumerate(lines) if f'"checkpoint": "{name}"' in line and '"event": "checkpoint"' in line
    )
    lines[resume - 1] = '{"event": "evaluate", "ti' + lines[resume - 1]
    left = lines[:lost] + lines[lost + 1 :] + ['{"event": "eva']
    (copy / "events.jsonl").write_text("".join(left), encoding="utf-8")
    done = scaletrain("audit", copy)
    assert done.code == 0, done.out
    assert f"events.jsonl line {resume - 1}: its beginning was torn off by a kill" in told(done, "note")
    assert f"events.jsonl line {len(left)}: its end was torn off by a kill" in told(done, "note")
    assert (
        f"events.jsonl line {resume - 1}: events.jsonl does not tell of {name} before (a kill just after the save)"
        in told(done, "note")
    )


def without_damage(events: list[dict[str, Any]]) -> None:
    events[:] = [event for event in events if event["event"] != "bad_checkpoint"]


def test_going_back_behind_a_good_checkpoint_and_beginning_anew_are_noted(killed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    resume = numbers(run, "resume")[-1]
    step = read_lines(run / "events.jsonl")[resume - 1]["step"]
    edit_events(run, without_damage)
    done = scaletrain("audit", run)
    assert done.code == 0, done.out
    assert told(done, "note") == [
        f"events.jsonl line {resume - 2}: resumed from step-{step:08d}, though step-{step + 8:08d} had been saved and "
        "not found damaged"
    ]
    edit_events(run, lambda events: events.extend([{**events[0]}, {**events[1]}]))
    done = scaletrain("audit", run)
    assert f"the run began anew, though {newest(run).name} had been saved" in told(done, "note")[1]


def test_a_live_source_is_not_provable(copy: Path) -> None:
    live = ["data.source=huggingface", "data.path=text", "data.tokenizer=gpt2", "data.shuffle_window_shards=null"]
    live += ["data.mixture=null"]
    done = scaletrain("audit", copy, *live)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == (
        "not provable: a live source (data.source=huggingface) has no order that could be computed again"
    )
    done = scaletrain("audit", copy, *live, "--show", "1")
    assert done.err.endswith("reads a live source (data.source=huggingface): its samples cannot be shown again\n")


def test_a_run_without_a_checkpoint_has_nothing_to_prove(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    edit_events(copy, lambda events: events.__delitem__(slice(2, None)))
    done = scaletrain("audit", copy)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "nothing to prove: no checkpoint was written"


def test_a_dataset_is_told_whole_in_one_line(dataset: Dataset) -> None:
    done = scaletrain("audit", dataset.path)
    assert (done.code, done.err) == (0, "")
    tokens, documents = (
        sum(count(s) for s in ("train", "validation")) for count in (dataset.tokens, dataset.documents)
    )
    assert done.out.startswith(f"whole: {tokens:,} tokens, {documents} documents, 12 files, 0.000 GB, ")
    assert done.out.count("\n") == 1
    report = json.loads(scaletrain("audit", dataset.path, "--json").out)
    assert (report["tokens"], report["fingerprint"], report["faults"]) == (tokens, dataset.fingerprint, [])


def test_the_faults_of_a_dataset_are_a_line_each_and_exit_code_2(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(dataset.path, folder)
    (folder / "docs-00000.npy").unlink()
    (folder / "docs-00001.npy").unlink()
    (folder / "left.tmp").touch()
    done = scaletrain("audit", folder)
    assert done.code == 2
    assert [fault.split(":")[0] for fault in told(done)] == ["docs-00000.npy", "docs-00001.npy"]
    assert told(done, "note") == ["left.tmp: the index does not list this file"]
    assert done.err == (
        f"error: {folder}: 2 faults in 2 places: copy what is named again, or prepare the dataset again\n"
    )
    done = scaletrain("audit", folder, "--json")
    assert (done.code, len(json.loads(done.out)["faults"])) == (2, 2)


def test_shown_samples_of_a_run_are_those_of_its_order(killed: Path, dataset: Dataset) -> None:
    run = open_run(killed)
    expected = run.rows_at(500, 5)
    assert {name for name, _ in expected} == {"a", "b"}
    samples = json.loads(scaletrain("audit", killed, "--show", "5", "--from", "500", "--json").out)
    assert [(sample["source"], sample["row"]) for sample in samples] == expected
    assert [sample["position"] for sample in samples] == list(range(500, 505))
    done = scaletrain("audit", killed, "--show", "1", "--split", "validation", "--from", "6")
    held = -(-(dataset.tokens("validation") - 1) // 256)
    assert done.out.startswith(f"=== source b, row {6 - held}\n"), "one source after the other"


def test_a_shown_sample_names_its_pieces_and_hides_no_special_token(dataset: Dataset) -> None:
    ends = np.load(dataset.path / "docs-00003.npy")
    row = (int(ends[0]) - 1) // 100
    done = scaletrain("audit", dataset.path, "data.context_length=100", "--show", "9999", "--json")
    rows = json.loads(done.out)
    first = next(n for n, sample in enumerate(rows) if sample["pieces"][0]["file"] == "tokens-00003.npy")
    done = scaletrain("audit", dataset.path, "data.context_length=100", "--show", "1", "--from", str(first + row))
    begin = row * 100
    assert done.out.startswith(
        f"=== source data, row {first + row:,}\n--- tokens-00003.npy token {begin:,}: {int(ends[0]) - begin} token"
    )
    assert f"of document 0 from its token {begin:,} on, to its end\n" in done.out
    assert "<|endoftext|>" in done.out
    assert f"--- tokens-00003.npy token {int(ends[0]):,}: " in done.out
    assert "of document 1 from its beginning on\n" in done.out
    assert rows[-1]["padding"] > 0
    done = scaletrain("audit", dataset.path, "data.context_length=100", "--show", "1", "--from", str(len(rows) - 1))
    assert done.out.endswith(f"--- {rows[-1]['padding']} tokens of padding\n")


def test_control_characters_of_a_text_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("red \x1b[31m and\tback\r\n" * 30, encoding="utf-8", newline="")
    arguments = ["--output", tmp_path / "data", "--train-tokenizer", "270", "--validation", "0"]
    assert scaletrain("prepare", "--input", tmp_path / "a.txt", *arguments).code == 0
    done = scaletrain("audit", tmp_path / "data", "--show", "1")
    assert "\x1b" not in done.out
    assert "    red \\x1b[31m and\tback\\r\n" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--show", "1", "--split", "test"], "--split test is unknown: choose train or validation"),
        (["--split", "train"], "--split train has no effect without --show: add --show N, or remove it"),
        (["--from", "0"], "--from 0 has no effect without --show: add --show N, or remove it"),
        (["--show", "1", "--from", "999999"], "--from 999999 is beyond the "),
        (["data.contextlength=3"], "audit: data.contextlength=3 is unknown: did you mean data.context_length?"),
        (["data.context_length=x"], "audit: data.context_length=x should be a whole number"),
        (["here"], "audit: override 'here' is not section.key=value"),
    ],
)
def test_misuse_is_one_line(arguments: list[str], message: str, dataset: Dataset) -> None:
    done = scaletrain("audit", dataset.path, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1


def test_what_is_neither_a_run_nor_a_dataset_is_one_line(tmp_path: Path) -> None:
    done = scaletrain("audit", tmp_path / "nothing")
    assert done.code == 2
    assert "nothing is not a folder" in done.err
