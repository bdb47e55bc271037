"""Folders that take another's place whole, or leave it as it was."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from scaletrain.runtime.files import replacing_folder


def test_what_the_system_refuses_safetensors_is_an_error_of_the_system(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replacing_folder(folder, "a") as partial:
        (partial / "a").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught, replacing_folder(folder, "a") as partial:
            save_file({"w": torch.zeros(1000)}, partial / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(folder))
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_any_other_fault_of_safetensors_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="broken"), replacing_folder(tmp_path / "model", "a"):
        raise SafetensorError("broken")
    assert list(tmp_path.iterdir()) == []
