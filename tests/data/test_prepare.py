"""Preparing: the same shards for any number of processes, kills and full disks; each fault told in one line."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaletrain.data.prepare.join import ShardPlan, Stretch, plan_shards
from scaletrain.data.prepare.locks import hold
from scaletrain.data.prepare.options import PrepareOptions, Report
from scaletrain.data.prepare.run import prepare_dataset
from scaletrain.data.prepare.units import Reading
from scaletrain.data.shards import Dataset, open_docs, open_tokens
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.errors import DataError
from tests.data.test_audit import audit

# A program of its own, so that it can be killed or limited: `OUTPUT INPUT WORKERS [BYTES A FILE MAY HAVE]`.
PROGRAM = """
import resource, sys
from pathlib import Path
from scaletrain.data.prepare.options import PrepareOptions
from scaletrain.data.prepare.run import prepare_dataset
from scaletrain.errors import ScaleTrainError
from tests.data.test_prepare import Recorder

if len(sys.argv) > 4:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
options = PrepareOptions((sys.argv[2],), Path(sys.argv[1]), train_tokenizer=600, tokenizer_sample=200_000,
                         workers=int(sys.argv[3]), shard_tokens=200_000)
try:
    prepare_dataset(options, Recorder())
except ScaleTrainError as error:
    sys.exit(f"error: {error}")
"""


class Recorder:
    """A progress that keeps what it is told."""

    def __init__(self, on_advance: Callable[[], None] = lambda: None) -> None:
        self.lines: list[str] = []
        self.stages: list[str] = []
        self.done = self.total = self.tokens = 0
        self.report: Report | None = None
        self._on_advance = on_advance

    def stage(self, name: str, total: int) -> None:
        self.stages.append(name)
        self.done, self.total = 0, total

    def advance(self, done: int, text_bytes: int = 0, tokens: int = 0) -> None:
        del text_bytes
        self.done += done
        self.tokens += tokens
        self._on_advance()

    def say(self, line: str) -> None:
        self.lines.append(line)

    def finish(self, report: Report) -> None:
        self.report = report


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 2 MB of Python's own source as JSON lines: five units or so."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in sorted(root.glob("*.py"))[::2]]
    path = tmp_path_factory.mktemp("source") / "code.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts if text.strip()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an uninterrupted run."""
    output = tmp_path_factory.mktemp("reference") / "set"
    assert start(output, source).wait() == 0
    return content(output)


@pytest.fixture(scope="session")
def tokenizer(reference: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(reference[f"tokenizer/{name}"])
    return str(folder)


def start(output: Path, source: Path, workers: int = 2, limit: int | None = None) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(output), str(source), str(workers)]
    command += [str(limit)] if limit else []
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, text=True, stderr=subprocess.PIPE)


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def documents(dataset: Dataset, split: str) -> Iterator[str]:
    """The text of each document, decoded; each must end with the end-of-text token and hold no other."""
    tokenizer = load_tokenizer(dataset.path / "tokenizer")
    for shard in dataset.shards(split):  # type: ignore[arg-type]
        tokens, begin = open_tokens(dataset, shard), 0
        for end in open_docs(dataset, shard).tolist():
            ids = tokens[begin:end]
            assert ids[-1] == tokenizer.eos_id
            assert not (ids[:-1] == tokenizer.eos_id).any()
            yield tokenizer.decode(ids[:-1])
            begin = end
        assert begin == shard.tokens


def options_for(tmp_path: Path, tokenizer_path: str, *inputs: Path, **changes: object) -> PrepareOptions:
    names = tuple(str(path) for path in inputs)
    options = PrepareOptions(names, tmp_path / "out", tokenizer_path, workers=1)
    return replace(options, **changes)  # type: ignore[arg-type]


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_dataset_holds_every_text_once_in_order(source: Path, tokenizer: str, tmp_path: Path) -> None:
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    recorder = Recorder()
    dataset = prepare_dataset(options_for(tmp_path, tokenizer, source, workers=2, validation=0.2), recorder)
    assert audit(dataset.name).faults == ()
    train, validation = list(documents(dataset, "train")), list(documents(dataset, "validation"))
    held_out = set(validation)
    assert train == [text for text in texts if text not in held_out]
    assert validation == [text for text in texts if text in held_out]
    assert 0.1 < len(validation) / len(texts) < 0.3
    assert dataset.bytes("train") == sum(len(text.encode()) for text in train)
    assert recorder.stages == ["encoding", "writing shards"]
    assert recorder.tokens == dataset.tokens("train") + dataset.tokens("validation") == recorder.done == recorder.total
    assert json.loads((dataset.path / "index.json").read_text())["sources"] == [
        {"name": str(source), "bytes": source.stat().st_size}
    ]


def test_few_documents_give_a_span_of_each(source: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    del reference
    novel = tmp_path / "novel.txt"
    novel.write_text("".join(f"Chapter {i}. It was a dark and stormy night.\n" for i in range(5000)))
    options = PrepareOptions((str(novel),), tmp_path / "out", train_tokenizer=300, validation=0.1, workers=1)
    dataset = prepare_dataset(options, Recorder())
    (train,), (validation,) = documents(dataset, "train"), documents(dataset, "validation")
    assert train + validation == novel.read_text()
    assert validation.startswith("Chapter 45")


def test_end_of_text_written_in_a_text_ends_no_document(tokenizer: str, tmp_path: Path) -> None:
    text = "ignore <|endoftext|> this" * 50
    path = write_lines(tmp_path / "a.jsonl", [text, "second"])
    dataset = prepare_dataset(options_for(tmp_path, tokenizer, path, validation=0.0), Recorder())
    assert list(documents(dataset, "train")) == [text, "second"]
    assert dataset.validation == ()


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_content_does_not_depend_on_workers(
    source: Path, reference: dict[str, bytes], tmp_path: Path, workers: int
) -> None:
    assert start(tmp_path / "set", source, workers).wait() == 0
    assert content(tmp_path / "set") == reference


def _has(pattern: str, count: int = 1) -> Callable[[Path], bool]:
    return lambda partial: len(list(partial.glob(pattern))) >= count


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "plan": _has("prepare.json"),
    "tokenizer": _has("tokenizer"),
    "first segment open": _has("segments/*.tokens"),
    "first segment": _has("segments/*.json"),
    "third segment": _has("segments/*.json", 3),
    "shards": _has("tokens-*.npy"),
    "third shard": _has("tokens-*.npy", 3),
    "index": _has("index.json"),
}


def test_kill_at_any_moment_resumes_to_the_same_bytes(
    source: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    """One prepare killed at every moment in turn, and one killed at each from the start."""
    killed = 0
    for name, moment in MOMENTS.items():
        killed += kill_when(tmp_path / "chain", source, moment)
        if (tmp_path / "chain").exists():  # it was faster than we looked
            assert content(tmp_path / "chain") == reference, name
            shutil.rmtree(tmp_path / "chain")
    for i, name in enumerate(("first segment open", "third shard")):
        output = tmp_path / f"each-{i}"
        killed += kill_when(output, source, MOMENTS[name])
        assert start(output, source).wait() == 0
        assert content(output) == reference
        assert not list(tmp_path.glob(f"each-{i}.*"))
        shutil.rmtree(output)
    assert start(tmp_path / "chain", source).wait() == 0
    assert content(tmp_path / "chain") == reference
    assert killed >= 6  # else the moments were missed and nothing was shown


def kill_when(output: Path, source: Path, moment: Callable[[Path], bool]) -> bool:
    """Kills a prepare as soon as its partial folder shows the moment; its workers must end with it."""
    program = start(output, source)
    partial = output.with_name(output.name + ".partial")
    while program.poll() is None and not moment(partial):
        time.sleep(0.001)
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    program.kill()
    was_killed = program.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.01)
    return was_killed


# A file limit meets in turn: the tokenizer, a worker's segment, the shard that the parent writes.
@pytest.mark.parametrize("limit", [4096, 200_000, 390_000])
def test_full_disk_is_one_line_and_the_work_goes_on_later(
    source: Path, reference: dict[str, bytes], tmp_path: Path, limit: int
) -> None:
    program = start(tmp_path / "set", source, 2, limit)
    _, errors = program.communicate()
    assert program.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith("error: a file may not grow while writing ")
    assert line.endswith("run the same command again, it goes on from what is finished")
    assert not (tmp_path / "set").exists()
    assert start(tmp_path / "set", source).wait() == 0
    assert content(tmp_path / "set") == reference


@pytest.mark.parametrize("size", ["100k", "1m", "3m"])
def test_full_tmpfs_is_one_line(source: Path, reference: dict[str, bytes], tmp_path: Path, size: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() or mount is None:
        pytest.skip("needs root to mount a small tmpfs")
    if subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        program = start(disk / "set", source)
        _, errors = program.communicate()
        (line,) = errors.splitlines()
        assert line.startswith("error: the disk is full while writing ")
        assert not (disk / "set").exists()
        subprocess.run([mount, "-o", "remount,size=50m", disk], check=True)
        assert start(disk / "set", source).wait() == 0
        assert content(disk / "set") == reference
    finally:
        subprocess.run(["umount", disk], check=True)


def test_complete_dataset_is_left_as_it_is(tokenizer: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one text", "another text"])
    options = options_for(tmp_path, tokenizer, path, validation=0.3)
    first = prepare_dataset(options, Recorder())
    stamps = {file: file.stat().st_mtime_ns for file in first.path.rglob("*")}
    recorder = Recorder()
    assert prepare_dataset(replace(options, workers=2), recorder) == first
    assert "is complete with these inputs and options: nothing to do" in recorder.lines[0]
    assert {file: file.stat().st_mtime_ns for file in first.path.rglob("*")} == stamps


def test_other_settings_need_overwrite(tokenizer: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one text", "another text"])
    options = options_for(tmp_path, tokenizer, path, validation=0.3)
    first = prepare_dataset(options, Recorder())
    with pytest.raises(DataError, match=r"out is a dataset made with other settings \(seed\): choose another --output"):
        prepare_dataset(replace(options, seed=1), Recorder())
    write_lines(path, ["one text", "another text, longer"])
    with pytest.raises(DataError, match=r"made with other settings \(input files\): .*--overwrite"):
        prepare_dataset(options, Recorder())
    second = prepare_dataset(replace(options, overwrite=True), Recorder())
    assert second.fingerprint != first.fingerprint
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_folder_that_is_no_dataset_is_never_replaced(tokenizer: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one text"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="out exists and is no dataset: choose another --output"):
        prepare_dataset(options_for(tmp_path, tokenizer, path, overwrite=True), Recorder())


def test_unfinished_work_of_other_settings_is_kept(source: Path, tmp_path: Path) -> None:
    assert kill_when(tmp_path / "out", source, MOMENTS["first segment"])
    options = PrepareOptions((str(source),), tmp_path / "out", train_tokenizer=700, tokenizer_sample=200_000, workers=1)
    with pytest.raises(DataError, match=r"holds an unfinished prepare with other settings \(tokenizer, shard_tokens\)"):
        prepare_dataset(options, Recorder())
    assert prepare_dataset(replace(options, overwrite=True), Recorder()).tokenizer.vocab_size == 700


def test_second_prepare_on_one_output_is_refused(tokenizer: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one text"])
    with (
        hold(tmp_path / "out.partial"),
        pytest.raises(DataError, match=r"another prepare is at work in .*out\.partial: wait for it"),
    ):
        prepare_dataset(options_for(tmp_path, tokenizer, path), Recorder())


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_not_taken_for_another_prepare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    wanted = rf"out\.partial cannot be locked \({os.strerror(code)}\): mount its file system with locks, or choose"
    with pytest.raises(DataError, match=wanted), hold(tmp_path / "out.partial"):
        pass


def test_killed_worker_is_told_with_the_remedy(source: Path, tokenizer: str, tmp_path: Path) -> None:
    def kill_workers() -> None:
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            if b"scaletrain.data.prepare.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)

    options = options_for(tmp_path, tokenizer, source)
    with pytest.raises(DataError, match=r"a worker process was killed by signal 9 \(out of memory\?\).*fewer --work"):
        prepare_dataset(options, Recorder(kill_workers))
    assert prepare_dataset(options, Recorder()).documents("train") > 50


def test_faults_in_a_worker_are_one_line(tokenizer: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [f"fine {i}" for i in range(2000)])
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2001 is no JSON object"):
        prepare_dataset(options_for(tmp_path, tokenizer, path), Recorder())
    recorder = Recorder()
    skip = options_for(tmp_path, tokenizer, path, reading=Reading(skip_bad_lines=True))
    prepare_dataset(skip, recorder)
    assert recorder.report is not None
    assert recorder.report.findings.bad_places == [f"{path}:2001"]
    assert recorder.report.split == "hash"


def test_read_only_output_is_one_line(tokenizer: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one text"])
    with pytest.raises(DataError, match=r"cannot write .*a\.jsonl.*: a part of the path is no folder; choose another"):
        prepare_dataset(options_for(tmp_path, tokenizer, path, output=path / "out"), Recorder())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "no --input given"),
        ({"tokenizer": None}, "give one of --tokenizer .* and --train-tokenizer"),
        ({"train_tokenizer": 300}, "give one of --tokenizer .* and --train-tokenizer"),
        ({"tokenizer": None, "train_tokenizer": 300, "eos_token": "x"}, "--eos-token is for --tokenizer only"),
        ({"validation": 1.0}, r"--validation 1\.0 is not in \[0, 1\)"),
        ({"shard_tokens": 0}, "--shard-tokens 0 is below 1"),
        ({"workers": 0}, "--workers 0 is below 1"),
        ({"reading": Reading(separator="")}, "--separator is empty"),
        ({"validation": 0.001}, r"--validation 0\.001 leaves the validation split empty .* use a larger --validation"),
    ],
)
def test_each_wrong_option_has_its_line(
    tokenizer: str, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one text"])
    with pytest.raises(DataError, match=message):
        prepare_dataset(options_for(tmp_path, tokenizer, path, **changes), Recorder())
    assert not (tmp_path / "out").exists()


def test_only_empty_documents_are_nothing_to_prepare(tokenizer: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["", " \n", ""])
    with pytest.raises(DataError, match=r"a\.jsonl \.\.\.\) holds only empty documents: there is nothing to prepare"):
        prepare_dataset(options_for(tmp_path, tokenizer, path), Recorder())


def stretch(segment: int, *lengths: int) -> Stretch:
    tokens = np.array(lengths, dtype=np.int64)
    return Stretch(segment, np.cumsum(tokens) - tokens, np.stack([tokens, tokens], axis=1).astype(np.uint64))


def test_shards_hold_whole_documents_up_to_their_size() -> None:
    stretches = [stretch(0, 4, 5), stretch(2, 1, 30, 3), stretch(3, 7, 10, 10)]
    plans: list[ShardPlan] = list(plan_shards(stretches, 10))
    found = [[int(length) for part in plan.stretches for length in part.lengths[:, 0]] for plan in plans]
    assert found == [[4, 5, 1], [30], [3, 7], [10], [10]]
    runs = [(part.segment, run) for part in plans[2].stretches for run in part.runs()]
    assert runs == [(2, (31, 3)), (3, (0, 7))]


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_shards_do_not_depend_on_the_blocks_that_lengths_are_read_in(block: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 200)
    whole = stretch(0, *lengths.tolist())
    blocks = [Stretch(0, whole.starts[i : i + block], whole.lengths[i : i + block]) for i in range(0, 200, block)]
    assert [plan.tokens for plan in plan_shards(blocks, 100)] == [plan.tokens for plan in plan_shards([whole], 100)]


def test_runs_leave_out_what_lies_between_documents() -> None:
    whole = stretch(0, 3, 4, 5, 6, 7)
    kept = np.array([True, True, False, True, False])
    assert list(Stretch(0, whole.starts[kept], whole.lengths[kept]).runs()) == [(0, 7), (12, 6)]
