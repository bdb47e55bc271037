"""What many tests stand on: a small dataset of real text, prepared once."""

import os
import sysconfig
from pathlib import Path

import pytest
import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["OMP_NUM_THREADS"] = "1"  # for the programs that tests start
torch.set_num_threads(1)  # threads that wait for each other make tiny tensors a hundred times slower on a busy machine


@pytest.fixture(scope="session")
def texts() -> list[Path]:
    """Some of Python's own source files: real text that is on every machine."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [root / name for name in ("argparse.py", "ast.py", "codecs.py", "configparser.py", "copy.py", "csv.py")]
