"""Where train.compile=blocks is refused."""

import pytest

from scaletrain.assemble.pretraining import check_compiling
from scaletrain.errors import ConfigError


def test_stage_3_is_refused() -> None:
    check_compiling("r.yaml", 2)
    with pytest.raises(ConfigError, match=r"^r.yaml: train.compile=blocks with ZeRO stage 3: .* use stage 1 or 2, or"):
        check_compiling("r.yaml", 3)


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ConfigError, match=r"needs a C\+\+ compiler, and none of g\+\+, clang\+\+, c\+\+ is there: install"
    ):
        check_compiling("r.yaml", 1)
