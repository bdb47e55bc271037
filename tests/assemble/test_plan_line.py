"""What a run says of its length."""

from types import SimpleNamespace

import pytest

from scaletrain.assemble.start import _plan_line, _repeats
from scaletrain.engine.plan import Plan


def data(rows: int | None, tokens: int | None) -> SimpleNamespace:
    return SimpleNamespace(train={} if rows is None else {"data": range(rows)}, tokens=lambda split: tokens)


def plan(samples: int) -> Plan:
    return Plan(samples // 32, 32, 32, 128, samples)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (data(9063, 9063 * 128 + 5), "x 128 tokens = 491,520 tokens, 0.42 epochs"),
        (data(9063, 9063 * 27), "x up to 128 tokens = about 104,000 tokens, 0.42 epochs"),  # shorter rows
        (data(None, None), "x 128 tokens = 491,520 tokens"),  # a live source
    ],
)
def test_tokens_and_epochs_are_those_that_are_read(found: SimpleNamespace, line: str) -> None:
    assert _plan_line(plan(3840), found, 120) == f"plan    120 steps x 32 samples {line}"  # type: ignore[arg-type]
    ended = _plan_line(plan(3840), found, 200)  # type: ignore[arg-type]
    assert ended.endswith("; of 200 asked for, as max_epochs allows")


def test_a_text_that_is_read_too_often_is_told() -> None:
    assert list(_repeats(plan(3200), data(200, 1))) == []  # type: ignore[arg-type]
    (line,) = _repeats(plan(3232), data(100, 1))  # type: ignore[arg-type]
    assert line.startswith("note    the text is read 32 times: more than about 16 teach next to nothing")
    assert list(_repeats(plan(3232), data(None, None))) == []  # type: ignore[arg-type]
