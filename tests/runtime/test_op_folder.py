"""Which folder DeepSpeed's ops are built in: the user's, ours once it is there, else torch's."""

from pathlib import Path

import pytest

from scaletrain.runtime import op_folder
from scaletrain.runtime.op_folder import VARIABLE, is_built, private_folder, use_built_ops


def test_ours_counts_once_it_is_there_and_the_users_always(tmp_path: Path) -> None:
    env = {"SCALETRAIN_CACHE": str(tmp_path), "XDG_CACHE_HOME": "/torchs"}
    assert op_folder.op_folder(env) == Path("/torchs/torch_extensions")
    use_built_ops(env)
    assert VARIABLE not in env
    private_folder(env).mkdir(parents=True)
    assert op_folder.op_folder(env) == private_folder(env)
    given = {**env, VARIABLE: "/users"}
    use_built_ops(given)
    assert given[VARIABLE] == "/users"
    assert op_folder.op_folder(given) == Path("/users")
    use_built_ops(env)
    assert env[VARIABLE] == str(private_folder(env))


def test_another_processor_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"SCALETRAIN_CACHE": str(tmp_path)}
    here = private_folder(env)
    monkeypatch.setattr(op_folder, "_processor", lambda: "model name: another")
    assert private_folder(env) != here
    assert private_folder(env).parent == here.parent == tmp_path / "ops"


@pytest.mark.parametrize("place", ["cpu_adam/cpu_adam.so", "py311_cu126/cpu_adam/cpu_adam.so"])
def test_an_op_is_built_when_its_library_is_there(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).with_name("lock").touch()
    assert not is_built("cpu_adam", tmp_path)
    (tmp_path / place).touch()
    assert is_built("cpu_adam", tmp_path)
    assert not is_built("async_io", tmp_path)
