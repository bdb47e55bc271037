"""Locks on files: one holder or many sharers, of the file that is there now, and none of it outlives its use."""

import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from scaletrain.runtime.locks import NoLocksError, is_at, locked, try_lock


def test_one_holds_a_lock_alone_and_the_next_has_it_after(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as first:
        assert first is not None
        with locked(tmp_path / "lock", block=False) as second:
            assert second is None
    with locked(tmp_path / "lock", block=False) as third:
        assert third is not None


def test_a_lock_changes_between_alone_and_shared(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a+") as one, (tmp_path / "lock").open("a+") as other:
        first, second = one.fileno(), other.fileno()
        assert try_lock(first)
        assert not try_lock(second, shared=True)
        assert try_lock(first, shared=True)
        assert try_lock(second, shared=True)
        assert not try_lock(first)
        other.close()
        assert try_lock(first)


@pytest.mark.parametrize("change", ["removed", "moved", "replaced"])
def test_who_waited_locks_the_file_that_is_there_now(tmp_path: Path, change: str) -> None:
    path, found = tmp_path / "lock", []

    def wait() -> None:
        with locked(path) as handle:
            assert handle is not None
            found.append(is_at(path, handle))

    waiter = threading.Thread(target=wait)
    with locked(path) as handle:
        assert handle is not None
        waiter.start()
        while len(descriptors_of(path)) < 2:
            assert waiter.is_alive()
            time.sleep(0.01)
        if change == "removed":
            path.unlink()
        else:
            path.rename(tmp_path / "away")
        if change == "replaced":
            path.touch()
        assert not is_at(path, handle)
        assert not found
    waiter.join(10)
    assert found == [True]


def descriptors_of(path: Path) -> list[int]:
    """This process's open descriptors of the file."""
    return [int(link.name) for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == str(path)]


def test_a_missing_file_is_made_or_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="No such file or directory: .*/lock"),
        locked(tmp_path / "lock", make=False),
    ):
        pass
    with locked(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), locked(path, block=False) as second:
        assert second is None
        assert len(descriptors_of(path)) == 1
    assert descriptors_of(path) == []
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    assert descriptors_of(path) == []


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    with locked(path):
        child = os.fork()
        if child == 0:
            os.close(to_child)
            os.write(to_parent, b"x")
            os.read(from_parent, 1)  # until the parent has looked
            os._exit(0)
        assert os.read(from_child, 1) == b"x"
    try:
        with locked(path, block=False) as handle:
            assert handle is not None
    finally:
        os.close(to_child)
        assert os.waitpid(child, 0)[1] == 0
        for end in (from_child, to_parent, from_parent):
            os.close(end)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks_is_told_from_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=os.strerror(number)) as caught, locked(tmp_path / "lock"):
        pass
    assert isinstance(caught.value, NoLocksError) == (number != errno.EIO)
    assert descriptors_of(tmp_path / "lock") == []
