"""What dead runs leave is told with its remedy; what a living process holds, and what is young, is left alone."""

import mmap
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.runtime import leftovers
from tests.conftest import ROOT, run_program, write_recipe

HOUR = 3600


def make_old(path: Path, size: int = 0, seconds: float = HOUR) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    age(path, seconds)
    return path


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


@contextmanager
def process(code: str, *arguments: str | Path) -> Iterator[None]:
    """A Python process that has run `code` and lives on."""
    command = [sys.executable, "-c", f"{code}\nprint('ready', flush=True)\ninput()", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            started.kill()


def segments(folder: Path) -> list[leftovers.Segment]:
    """Those older than half a second: the kernel sets a file's ctime, no test can make one that is a minute old."""
    return leftovers.dead_segments(folder, older_than_seconds=0.5)


def dead(folder: Path) -> list[str]:
    return [segment.path.name for segment in segments(folder)]


def test_segments_of_dead_processes_are_found_by_the_names_that_libraries_give(tmp_path: Path) -> None:
    names = ["torch_12_345_0", "deepspeed_allreduce_buffer_0", "psm_1a2b", "sem.mp-abc", "nccl-Xy12"]
    for size, name in enumerate([*names, "pulse-shm-1", "my_data"]):
        make_old(tmp_path / name, size=(9 - size) * 8192)
    time.sleep(0.6)
    assert dead(tmp_path) == names, "the largest first"


def test_a_segment_that_a_living_process_maps_or_has_open_is_in_use(tmp_path: Path) -> None:
    mapped, opened = (make_old(tmp_path / name, mmap.PAGESIZE) for name in ("torch_mapped", "psm_open"))
    time.sleep(0.6)
    only_mapped = "import mmap, sys\nwith open(sys.argv[1], 'r+b') as f: held = mmap.mmap(f.fileno(), 0)"
    with process(only_mapped, mapped):
        assert dead(tmp_path) == ["psm_open"]
        with process("import sys\nheld = open(sys.argv[1])", opened):
            assert dead(tmp_path) == []
    assert sorted(dead(tmp_path)) == ["psm_open", "torch_mapped"]


def test_a_segment_that_was_just_made_is_left_alone(tmp_path: Path) -> None:
    make_old(tmp_path / "torch_new")  # an old mtime alone does not make it old: files are copied with theirs
    assert dead(tmp_path) == []
    time.sleep(0.6)
    assert dead(tmp_path) == ["torch_new"]
    assert leftovers.dead_segments(tmp_path) == [], "a minute, unless a test says otherwise"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_segment_of_another_user_is_left_alone(tmp_path: Path) -> None:
    os.chown(make_old(tmp_path / "torch_theirs", 8192), 12345, 12345)
    time.sleep(0.6)
    assert dead(tmp_path) == []


def test_a_few_megabytes_are_not_worth_a_line_and_many_are_one_with_the_command(tmp_path: Path) -> None:
    files = [make_old(tmp_path / name, 40_000_000) for name in ("torch_1 2", "psm_b")]
    time.sleep(0.6)
    found = segments(tmp_path)
    assert leftovers.segment_lines(found[:1]) == []
    (line,) = leftovers.segment_lines(found)
    assert line.startswith("note    2 files of dead processes hold 80 MB of memory in ")
    command = line[line.index(": rm ") + 2 :]
    subprocess.run(shlex.split(command), check=True)
    assert not any(file.exists() for file in files)


def test_a_sparse_file_counts_what_it_holds(tmp_path: Path) -> None:
    file = make_old(tmp_path / "torch_sparse")
    os.truncate(file, 1 << 40)
    time.sleep(0.6)
    assert [segment.bytes for segment in segments(tmp_path)] == [0]


def test_very_many_files_stay_a_line(tmp_path: Path) -> None:
    many = [leftovers.Segment(tmp_path / f"torch_{number}", 10_000_000) for number in range(100)]
    (line,) = leftovers.segment_lines(many)
    assert "100 files of dead processes hold 1,000 MB" in line
    assert line.count("/torch_") == 16
    assert line.endswith("(and 84 smaller ones, told at the next start)")


def test_a_build_lock_that_a_kill_left_is_told_with_its_remedy(tmp_path: Path) -> None:
    locks = [make_old(tmp_path / name / "lock") for name in ("py311_cpu/cpu_adam", "fused_adam")]
    make_old(tmp_path / "py311_cpu/young/lock", seconds=60)
    make_old(tmp_path / "py311_cpu/built/cpu_adam.so")
    stale = leftovers.stale_locks(tmp_path, set)  # nothing compiles
    assert sorted(path for path, _ in stale) == sorted(locks)
    line = leftovers.lock_lines([(locks[0], 3 * HOUR)])[0]
    assert line.startswith(f"note    the build lock {locks[0]} is 3.0 hours old and nothing compiles on ")
    assert line.endswith(f": a build of that op would wait for it for ever: rm {locks[0]}")


def test_a_lock_that_is_held_or_beside_a_living_compiler_is_no_leftover(tmp_path: Path) -> None:
    lock = make_old(tmp_path / "py311_cpu/cpu_adam/lock")
    with process("import sys\nheld = open(sys.argv[1])", lock):
        assert leftovers.stale_locks(tmp_path) == []
    with process("open('/proc/self/comm', 'w').write('cc1plus')"):
        assert leftovers.stale_locks(tmp_path) == []
    assert [path for path, _ in leftovers.stale_locks(tmp_path, set)] == [lock]


def test_the_folder_of_builds_is_torchs_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch.utils.cpp_extension import get_default_build_root

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert leftovers.extension_folder(os.environ) == Path(get_default_build_root())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert leftovers.extension_folder(os.environ) == Path(get_default_build_root())
    assert leftovers.extension_folder({"TORCH_EXTENSIONS_DIR": "/x"}) == Path("/x")


def test_a_run_tells_a_stale_build_lock_before_it_trains(dataset: Dataset, tmp_path: Path) -> None:
    lock = make_old(tmp_path / "builds/cpu_adam/lock")
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = run_program("launch/pretrain.py", recipe, "train.max_steps=2", TORCH_EXTENSIONS_DIR=str(tmp_path / "builds"))
    assert done.code == 0, done.err
    assert done.out.index(f"rm {lock}\n") < done.out.index("step 2")


def test_two_ranks_leave_nothing_in_shared_memory(dataset: Dataset, tmp_path: Path) -> None:
    """In a /dev/shm of its own, where the machine lets a test have one: other programs come and go in the real one."""
    private = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*private, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount of its own for a test here")
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    train = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "launch/pretrain.py"]
    script = 'touch /dev/shm/before; "$@" >&2 || exit; ls -A /dev/shm'
    command = [*private, "sh", "-c", script, "sh", *train, str(recipe)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "before\n"), done.stderr
