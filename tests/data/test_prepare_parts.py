"""Parts: made by many processes in any order, killed or not, they merge to the bytes of one prepare."""

import fcntl
import json
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from scaletrain.data.prepare.locks import hold, hold_part, join_in
from scaletrain.data.prepare.options import PrepareOptions
from scaletrain.data.prepare.parts import Part, list_numbers, read_part, share_out
from scaletrain.data.prepare.run import merge_parts, prepare_dataset, prepare_part
from scaletrain.data.prepare.units import Unit
from scaletrain.errors import DataError
from tests.data.test_audit import audit
from tests.data.test_prepare import Recorder, content

# One part as a process of its own: `OUTPUT INPUT NUMBER COUNT`.
PROGRAM = """
import sys
from tests.data.test_prepare_parts import options_for
from tests.data.test_prepare import Recorder
from scaletrain.data.prepare.parts import Part
from scaletrain.data.prepare.run import prepare_part

output, source, number, count = sys.argv[1:]
recorder = Recorder()
prepare_part(options_for(output, source), Part(int(number), int(count)), recorder)
print(recorder.stages, recorder.lines)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Python's own source, 3 MB in several units, some documents twice."""
    root = Path(sysconfig.get_paths()["stdlib"])
    folder = tmp_path_factory.mktemp("source")
    files = [file for file in sorted(root.glob("*.py")) if file.stat().st_size > 4000]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    lines = [json.dumps({"text": text}) + "\n" for text in texts + texts[::7]]
    (folder / "a.jsonl").write_text("".join(lines[:80]))
    (folder / "b.jsonl").write_text("".join(lines[80:]))
    return folder


def options_for(output: str | Path, source: str | Path, **changes: object) -> PrepareOptions:
    options = PrepareOptions(
        (str(source),),
        Path(output),
        train_tokenizer=300,
        tokenizer_sample=50_000,
        drop_duplicates=True,
        validation=0.1,
        shard_tokens=400_000,
        workers=1,
    )
    return replace(options, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one prepare without parts."""
    dataset = prepare_dataset(options_for(tmp_path_factory.mktemp("reference") / "set", source), Recorder())
    assert audit(dataset.name).faults == ()
    return content(dataset.path)


def start(output: Path, source: Path, number: int, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(output), str(source), str(number), str(count)]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[2], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_parts_hold_every_unit_once_and_nearly_equal_bytes() -> None:
    rng = random.Random(0)
    for count in (1, 2, 7, 40):
        units = [Unit("text", (f"{i}",), 0, 0, rng.choice([1, 8, 8, 8, 100])) for i in range(rng.randint(1, 300))]
        parts = share_out(units, count)
        assert sorted(number for part in parts for number in part) == list(range(len(units)))
        loads = [sum(units[number].bytes for number in part) for part in parts]
        assert max(loads) - min(loads) <= max(unit.bytes for unit in units)
        assert parts == share_out(units, count)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_one_after_another_merge_to_the_bytes_of_one_run(
    source: Path, reference: dict[str, bytes], tmp_path: Path, order: tuple[int, ...]
) -> None:
    options = options_for(tmp_path / "set", source)
    for number in order:
        recorder = Recorder()
        prepare_part(options, Part(number, 3), recorder)
        assert recorder.done == recorder.total
        assert ("training tokenizer" in recorder.stages) == (number == order[0])
        assert recorder.lines[-1].startswith(f"part {number}/3 is finished: ")
    recorder = Recorder()
    merge_parts(options, recorder)
    assert content(tmp_path / "set") == reference
    assert [file.name for file in tmp_path.iterdir()] == ["set"]
    assert recorder.stages == ["finding duplicates", "writing shards"]
    prepare_part(options, Part(1, 3), recorder)
    assert recorder.lines[-1].endswith("is complete with these inputs and options: nothing to do")
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_parts_at_the_same_time_train_one_tokenizer_and_merge_to_the_same_bytes(
    source: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    parts = [start(tmp_path / "set", source, number, 3) for number in (1, 2, 3)]
    told = [part.communicate() for part in parts]
    assert [part.returncode for part in parts] == [0, 0, 0], told
    assert sum("training tokenizer" in out for out, _ in told) == 1
    merge_parts(options_for(tmp_path / "set", source), Recorder())
    assert content(tmp_path / "set") == reference


def test_killed_part_is_named_by_the_merge_and_goes_on(
    source: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "set"
    options = options_for(output, source)
    program = start(output, source, 1, 2)
    segments = tmp_path / "set.partial" / "segments"
    while program.poll() is None and not list(segments.glob("*.json")):
        time.sleep(0.001)
    program.kill()
    assert program.wait() == -signal.SIGKILL
    program.communicate()
    finished = {file.name: file.stat().st_mtime_ns for file in segments.glob("*.json")}
    with pytest.raises(DataError, match=r"part 1, 2 of 2 is not finished in .*set\.partial: .*--part 1/2\), then --me"):
        merge_parts(options, Recorder())
    prepare_part(options, Part(2, 2), Recorder())
    with pytest.raises(DataError, match=r"part 1 of 2 is not finished in .*set\.partial: run the missing parts again"):
        merge_parts(options, Recorder())
    prepare_part(options, Part(1, 2), Recorder())
    assert finished.items() <= {file.name: file.stat().st_mtime_ns for file in segments.glob("*.json")}.items()
    merge_parts(options, Recorder())
    assert content(output) == reference


def test_prepare_without_part_finishes_what_parts_have_left(
    source: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    options = options_for(tmp_path / "set", source)
    prepare_part(options, Part(2, 2), Recorder())
    prepare_dataset(options, Recorder())
    assert content(tmp_path / "set") == reference


@pytest.fixture
def begun(source: Path, tmp_path: Path) -> PrepareOptions:
    """Options of which part 1 of 2 is finished."""
    options = options_for(tmp_path / "set", source)
    prepare_part(options, Part(1, 2), Recorder())
    return options


def part_2(options: PrepareOptions) -> None:
    prepare_part(options, Part(2, 2), Recorder())


def test_parts_with_other_options_are_refused(begun: PrepareOptions, source: Path) -> None:
    for function, message in (
        (part_2, r"set\.partial holds an unfinished prepare with other settings \(seed\): run that command again"),
        (
            lambda options: merge_parts(options, Recorder()),
            r"the parts in .*set\.partial were made with other settings \(seed\): give --merge the inputs and options",
        ),
    ):
        with pytest.raises(DataError, match=message):
            function(replace(begun, seed=1))
    with pytest.raises(DataError, match=r"other settings \(drop_duplicates\)"):
        part_2(replace(begun, drop_duplicates=False))
    with pytest.raises(DataError, match=r"is being made in 2 parts, not 3: use --part I/2, or finish it by the same"):
        prepare_part(begun, Part(2, 3), Recorder())


def test_changed_inputs_are_refused(begun: PrepareOptions, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    options = replace(begun, output=tmp_path / "other", inputs=(str(copy),))
    prepare_part(options, Part(1, 2), Recorder())
    with (copy / "b.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    for function in (part_2, lambda options: merge_parts(options, Recorder())):
        with pytest.raises(DataError, match=r"other settings \(input files\)"):
            function(options)


def test_overwrite_starts_anew_only_while_no_other_part_is_at_work(begun: PrepareOptions) -> None:
    other = replace(begun, seed=1, overwrite=True)
    partial = begun.output.with_name("set.partial")
    with (
        join_in(partial, lambda is_alone: None, lambda: None),
        pytest.raises(DataError, match=r"holds an unfinished prepare with other settings \(seed\)"),
    ):
        part_2(other)
    with join_in(partial, lambda is_alone: None, lambda: None), pytest.raises(DataError, match="in 2 parts, not 3"):
        prepare_part(replace(begun, overwrite=True), Part(2, 3), Recorder())
    part_2(other)
    with pytest.raises(DataError, match="part 1 of 2 is not finished"):
        merge_parts(replace(other, overwrite=False), Recorder())
    prepare_part(replace(begun, overwrite=True), Part(3, 3), Recorder())
    with pytest.raises(DataError, match="part 1, 2 of 3 is not finished"):
        merge_parts(begun, Recorder())


def test_same_part_twice_is_refused(begun: PrepareOptions) -> None:
    with (
        hold_part(begun.output.with_name("set.partial"), 2, 2),
        pytest.raises(DataError, match=r"part 2/2 is being made in .*set\.partial by another process: wait for it"),
    ):
        part_2(begun)


def test_merge_names_parts_at_work(begun: PrepareOptions) -> None:
    with (
        hold_part(begun.output.with_name("set.partial"), 2, 2),
        pytest.raises(DataError, match=r"part 2 of 2 is still at work in .*set\.partial: wait, then --merge"),
    ):
        merge_parts(begun, Recorder())


def test_parts_and_a_whole_prepare_keep_out_of_each_others_way(begun: PrepareOptions) -> None:
    partial = begun.output.with_name("set.partial")
    busy = r"another prepare is at work in .*set\.partial: wait for it"
    with hold(partial), pytest.raises(DataError, match=busy):
        part_2(begun)
    with join_in(partial, lambda is_alone: None, lambda: None), pytest.raises(DataError, match=busy):
        prepare_dataset(begun, Recorder())


@pytest.mark.parametrize(
    "function", [prepare_dataset, lambda options, progress: prepare_part(options, Part(1, 2), progress)]
)
def test_dataset_completed_while_one_waited_is_not_made_again(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[[PrepareOptions, Recorder], object],
) -> None:
    options, recorder = options_for(tmp_path / "set", source), Recorder()
    made = prepare_dataset(replace(options, output=tmp_path / "other"), Recorder()).path
    is_refused, lock = threading.Event(), fcntl.flock

    def watched(file: IO[str], how: int) -> None:
        try:
            lock(file, how)
        except BlockingIOError:
            is_refused.set()
            raise

    waiting = threading.Thread(target=function, args=(options, recorder))
    with hold(tmp_path / "set.partial"):
        monkeypatch.setattr("fcntl.flock", watched)
        waiting.start()
        assert is_refused.wait(30)
        made.rename(options.output)
    waiting.join(30)
    assert recorder.stages == []
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_part_waits_for_the_one_that_sets_up(begun: PrepareOptions) -> None:
    recorder, is_told = Recorder(), threading.Event()
    recorder.lines = _Watched(is_told.set)
    waiting = threading.Thread(target=prepare_part, args=(begun, Part(2, 2), recorder))

    def set_up(is_alone: bool) -> bool:
        waiting.start()
        assert is_told.wait(30)
        assert "encoding" not in recorder.stages
        return is_alone

    with join_in(begun.output.with_name("set.partial"), set_up, lambda: None) as was_alone:
        assert was_alone
        waiting.join(30)  # while the first one is at work on its part
    assert recorder.lines[0] == "part 2/2 waits for another part, which trains the tokenizer or looks through the input"
    assert recorder.lines[-1].startswith("part 2/2 is finished")


class _Watched(list[str]):
    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self._tell = tell

    def append(self, line: str) -> None:
        super().append(line)
        self._tell()


def test_merge_without_parts_is_one_line(source: Path, tmp_path: Path) -> None:
    options = options_for(tmp_path / "set", source)
    with pytest.raises(DataError, match=r"set\.partial holds no parts to merge: make them first, --part 1/N to --part"):
        merge_parts(options, Recorder())
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="needs more text"):
        prepare_part(replace(options, train_tokenizer=60_000), Part(1, 4), Recorder())
    with pytest.raises(DataError, match=r"no part of 4 has begun in .*set\.partial: make --part 1/4 to 4/4"):
        merge_parts(replace(options, train_tokenizer=60_000), Recorder())


def test_part_after_the_index_was_written_has_nothing_to_do(
    begun: PrepareOptions, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge that was killed just before the folder got its name."""
    part_2(begun)

    def stop(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", stop)
        merge_parts(begun, Recorder())
    recorder = Recorder()
    prepare_part(begun, Part(1, 2), recorder)
    assert recorder.lines[-1].startswith("part 1/2: all parts of ")
    assert recorder.lines[-1].endswith("set are finished: run --merge")
    merge_parts(begun, Recorder())
    assert content(begun.output) == reference


def test_part_is_read_and_checked() -> None:
    assert str(read_part("3/16")) == "3/16"
    for text in ("0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/2/3", ""):
        with pytest.raises(
            DataError, match=rf"--part {text} is not I/N with 1 <= I <= N: the first of sixteen parts is"
        ):
            read_part(text)


def test_long_lists_of_parts_are_shortened() -> None:
    assert list_numbers([3, 7]) == "3, 7"
    assert list_numbers(range(1, 31)).endswith(", 19, 20 and 10 more")
