"""What /proc/cpuinfo tells, of x86 and of ARM."""

from pathlib import Path
from unittest.mock import patch

import pytest

from scaletrain.runtime import processor

X86 = "processor\t: 0\nmodel name\t: AMD EPYC: 9\nflags\t\t: fma avx2\npower:\n\nprocessor\t: 1\nflags\t\t: none\n"
ARM = "processor\t: 0\nFeatures\t: asimd bf16\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [(X86, "AMD EPYC: 9", {"fma", "avx2"}), (ARM, None, {"asimd", "bf16"}), ("", None, set())],
)
def test_the_first_processor_is_told(text: str, name: str | None, flags: set[str]) -> None:
    with patch.object(Path, "read_text", return_value=text):
        assert processor.facts().get("model name") == name
        assert processor.flags() == flags


def test_elsewhere_nothing_is_known() -> None:
    with patch.object(Path, "read_text", side_effect=FileNotFoundError):
        assert processor.facts() == {}
        assert processor.flags() == frozenset()
