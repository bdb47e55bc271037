"""What a terminal shows of a run."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from scaletrain.track.frame import draw_frame, sparkline
from scaletrain.track.recorded import Recorded


def shown(folder: Path, *lines: dict[str, Any], events: tuple[dict[str, Any], ...] = (), width: int = 120) -> str:
    for name, content in (("metrics", lines), ("events", events)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
    run = Recorded(folder)
    run.refresh()
    console = Console(width=width)
    with console.capture() as found:
        console.print(draw_frame(run, "running", width))
    return found.get()


def line(step: int, **more: Any) -> dict[str, Any]:
    speed = {"step_seconds": 6.0, "data_wait_seconds": 0.3, "tokens_per_second": 1000.0, "mfu": 0.4}
    return {"step": step, "loss": 4.0 - step / 100, "peak_memory_bytes": 3 << 30, "skipped_steps": 0, **speed, **more}


def test_a_running_run_shows_loss_speed_and_the_time_left(tmp_path: Path) -> None:
    start = {"event": "start", "time": 0.0, "step": 0, "last_step": 200}
    found = shown(
        tmp_path, line(50), line(100), {"step": 50, "eval_loss": 3.2, "eval_f1": 0.5},
        line(100, skipped_steps=2), {"step": 100, "eval_loss": 3.4, "eval_f1": 0.6}, events=(start,),
    )  # fmt: skip
    assert "100 of 200 (50.0%), 10.0 min of training left" in found
    assert "3.0000 last" in found
    assert "step 100: loss 3.4, least 3.2 at step 50, f1 0.6" in found
    assert "1,000 tok/s, mfu 40.0%, 6 s a step, 5.0% of it waiting for data" in found
    assert "3.00 GiB at most on rank 0" in found
    assert "2 updates left out" in found
    assert "start at step 0: last_step 200" in found


def test_of_what_an_event_holds_the_names_are_shown(tmp_path: Path) -> None:
    data = {"event": "data", "step": 0, "data": {"web": {"tokens": 5}, "code": {}}, "seconds": 0.12345}
    doctor = {"event": "doctor", "step": 0, "findings": [{"level": "warn"}, {"level": "note"}], "hosts": ["n1", "n2"]}
    found = shown(tmp_path, line(10), events=(data, doctor))
    assert "data at step 0: data (web, code), seconds 0.1235" in found
    assert "doctor at step 0: findings 2, hosts n1, n2" in found


def test_a_slow_rank_is_named_until_it_is_slow_no_longer(tmp_path: Path) -> None:
    ranks = line(10, rank_seconds_median=0.5, rank_seconds_max=1.0)
    told = {"event": "straggler", "step": 10, "slow_rank": 3, "slow_host": "n7"}
    slow, recovered = {**told, "change": "slow"}, {**told, "change": "recovered"}
    words = "median 0.5 s, slowest 1 s (2.00 times)"
    assert f"{words}; rank 3 on n7 is slow" in shown(tmp_path, ranks, events=(slow,))
    assert "is slow" not in shown(tmp_path, ranks, events=(slow, recovered))


def test_the_newest_texts_are_shown_and_are_no_events(tmp_path: Path) -> None:
    old, new = ({"event": "texts", "step": s, "texts": [{"prompt": f"at {s}", "text": "on\x1b"}]} for s in (5, 10))
    found = shown(tmp_path, line(10), events=(old, new))
    assert "writes      at 10 ... on " in found
    assert "at 5" not in found
    assert "texts at step" not in found


def test_nothing_that_is_written_steers_the_terminal_or_breaks_the_frame(tmp_path: Path) -> None:
    bad = {"event": "spike\x1b[2J", "step": 3, "reason": "[red]x[/nope]\nnext"}
    found = shown(tmp_path, {"step": 1, "loss": "nan"}, events=(bad,), width=60)
    assert "\x1b" not in found
    assert "[red]x[/nope] next" in found
    assert "not finite last, not finite smoothed" in found
    assert shown(tmp_path).startswith("run")


def test_a_sparkline_is_as_wide_as_there_is_room_and_shows_gaps() -> None:
    assert sparkline([1.0, 2.0, 8.0, math.inf], 10) == "▁▂█x"
    assert len(sparkline([float(i) for i in range(1000)], 40)) == 40
    assert sparkline([], 10) == ""
    assert sparkline([2.0, 2.0], 10) == "▁▁"
