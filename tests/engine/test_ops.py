"""Ops built ahead: whole or not at all, and never while another process builds them."""

import time
from pathlib import Path

import pytest

from tests.conftest import run_program

BUILD = "from scaletrain.engine.ops import build_ops; print(build_ops(['cpu_adam']))"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_op_that_is_built_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam" / "cpu_adam.so").write_text("built")
    assert run_program("-c", BUILD, TORCH_EXTENSIONS_DIR=str(tmp_path)).out == "{'cpu_adam': ''}\n"
    assert names(tmp_path) == {"cpu_adam", ".building"}


def test_an_op_that_does_not_build_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    done = run_program("-c", BUILD, TORCH_EXTENSIONS_DIR=str(tmp_path), CXX="/bin/false")
    assert done.out.splitlines()[-1].startswith("{'cpu_adam': "), done.err
    assert "'cpu_adam': ''" not in done.out
    assert names(tmp_path) == {".building"}


def test_an_op_that_another_process_builds_is_left_to_it(tmp_path: Path) -> None:
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    done = run_program("-c", BUILD, TORCH_EXTENSIONS_DIR=str(tmp_path))
    line = f"{{'cpu_adam': 'another process builds it: wait, or remove {lock} if none does'}}"
    assert done.out.splitlines()[-1] == line


def test_an_op_that_this_device_has_not_is_told(tmp_path: Path) -> None:
    code = BUILD.replace("cpu_adam", "quantizer")
    done = run_program("-c", code, TORCH_EXTENSIONS_DIR=str(tmp_path), DS_ACCELERATOR="cpu")
    assert done.out.splitlines()[-1] == "{'quantizer': 'DeepSpeed has no op quantizer for this device'}"


@pytest.mark.slow
def test_a_run_takes_the_op_that_was_built_ahead(tmp_path: Path) -> None:
    """Moved to its place after the build, and still no reason to compile again."""
    env = {"SCALETRAIN_CACHE": str(tmp_path), "TORCH_EXTENSIONS_DIR": ""}
    done = run_program("-c", BUILD, seconds=900, **env)
    assert done.out.splitlines()[-1] == "{'cpu_adam': ''}", done.err
    (library,) = tmp_path.glob("ops/*/cpu_adam/cpu_adam.so")
    built = library.stat().st_mtime_ns
    use = (
        "import os; del os.environ['TORCH_EXTENSIONS_DIR']\n"
        "from scaletrain.runtime.op_folder import use_built_ops; use_built_ops()\n"
        "from deepspeed.ops.op_builder import CPUAdamBuilder; print(CPUAdamBuilder().load(verbose=False).__file__)"
    )
    begun = time.monotonic()
    assert run_program("-c", use, seconds=300, **env).out.splitlines()[-1] == str(library)
    assert time.monotonic() - begun < 60
    assert library.stat().st_mtime_ns == built
