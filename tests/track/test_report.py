"""The page that explains runs: its numbers are those of metrics.jsonl, and nothing in a run can break out of it."""

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaletrain.track.report.columns import POINTS_OF_RUN, thin
from scaletrain.track.report.page import make_page, write_page
from scaletrain.track.report.run import ReportedRun, names_of, read_run

CHROMIUM = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>{{data}}&amp;\u2028"


def write_run(folder: Path, steps: int, *, seed: int = 0, every: int = 1) -> list[dict[str, Any]]:
    """A run as long as asked for; its lines."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    noise, speed = draw.normal(0, 0.1, steps + 1).tolist(), draw.uniform(900, 1100, steps + 1).tolist()
    lines = []
    for step in range(every, steps + 1, every):
        line = {
            "step": step, "samples": step * 8, "tokens": step * 8192, "loss": 2 + 6 / (1 + step / 50) + noise[step],
            "lr": 1e-3 * (1 - step / steps), "grad_norm": 1 + abs(noise[step]), "step_seconds": 8192 / speed[step],
            "data_wait_seconds": 0.001, "tokens_per_second": speed[step], "mfu": speed[step] / 2500,
            "peak_memory_bytes": (8 << 30) + step, "skipped_steps": step // 1000,
        }  # fmt: skip
        lines.append(line)
        if step % max(1, steps // 20) == 0:
            lines.append({"step": step, "eval_loss": line["loss"] + 0.1, "eval_perplexity": 9.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    events = [
        {"event": "start", "time": 1.0e9, "step": 0, "last_step": steps},
        {"event": "spike", "time": 1.0e9 + 50, "step": steps // 2, "loss": 9.0},
        {"event": "end", "time": 1.0e9 + 100, "step": steps},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "recipe.yaml").write_text(f"run: {{dir: x}}\nseed: {seed}\noptim: {{lr: 0.001}}\n")
    (folder / "environment.json").write_text(json.dumps({"versions": {"torch": "2.13"}, "host": f"n{seed}"}))
    return lines


def read_all(*folders: Path) -> list[ReportedRun]:
    return [read_run(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]


def data_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    value: list[dict[str, Any]] = json.loads(found[1])
    return value


def test_the_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    lines = write_run(tmp_path / "a", 300)
    (run,) = data_of(make_page(read_all(tmp_path / "a")))
    trained, evaluated = [one for one in lines if "loss" in one], [one for one in lines if "eval_loss" in one]
    for name in ("step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "peak_memory_bytes"):
        assert run["training"][name] == [line[name] for line in trained]
    for name in ("step", "eval_loss", "eval_perplexity"):
        assert run["evaluation"][name] == [line[name] for line in evaluated]
    assert run["evaluation"]["tokens"] == [line["step"] * 8192 for line in evaluated]
    assert run["training"]["seconds"][-1] == pytest.approx(sum(line["step_seconds"] for line in trained), abs=1e-3)


def test_each_step_of_a_run_that_went_back_stands_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 20)
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        for step in range(11, 16):
            file.write(json.dumps({"step": step, "loss": 100.0 + step}) + "\n")
    (run,) = data_of(make_page(read_all(tmp_path / "a")))
    assert run["training"]["step"] == list(range(1, 16))
    assert run["training"]["loss"][10:] == [111.0, 112.0, 113.0, 114.0, 115.0]
    assert run["evaluation"]["step"] == list(range(1, 11))


def test_values_that_are_not_finite_are_gaps_and_are_counted(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 3)
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": "nan", "grad_norm": "inf"}\n{"step": 5, "loss": NaN, "lr": -Infinity}\n')
        file.write('{"step": 6, "loss": 1.5}\nnot json\n')
    page = make_page(read_all(tmp_path / "a"))
    (run,) = data_of(page)
    assert run["training"]["loss"][3:] == [None, None, 1.5]
    assert "a: 4 logged values are not finite, and gaps here" in page
    assert "a: 1 lines of its records cannot be read" in page


class Tags(HTMLParser):
    """Counts the tags that a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


def test_nothing_in_a_run_breaks_out_of_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_run(folder, 5)
    clean = Tags()
    clean.feed(make_page(read_all(folder)))
    event = {"event": HOSTILE, "time": 1e9, "step": 5, "reason": HOSTILE, HOSTILE: HOSTILE}
    for name, line in (
        ("events.jsonl", event),
        ("events.jsonl", {"event": "texts", "step": 5, "texts": [{"prompt": HOSTILE, "text": HOSTILE}, {}]}),
        ("metrics.jsonl", {"step": 6, "loss": HOSTILE, f"eval_{HOSTILE}": 1.0}),
    ):
        with (folder / name).open("a") as file:
            file.write(json.dumps(line) + "\n")
    (folder / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (folder / "recipe.yaml").write_text(json.dumps({"run": {HOSTILE: HOSTILE}}))
    (folder / "plan.json").write_text(json.dumps({"peak_bytes": 1, "parts": {HOSTILE: 1}}))
    (folder / "predictions").mkdir()
    (folder / "predictions" / "step-00000005.jsonl").write_text(json.dumps({HOSTILE: HOSTILE, "logits": [1]}) + "\n")
    page = make_page([read_run(folder, HOSTILE)])
    seen = Tags()
    seen.feed(page)
    assert "img" not in seen.found
    assert seen.found.count("script") == clean.found.count("script")
    assert "alert(1)</script>" not in page
    (run,) = data_of(page)
    assert run["name"] == HOSTILE
    assert run["events"][-1]["event"] == HOSTILE
    assert unescape(page).count(HOSTILE) >= 8


def test_only_keys_that_differ_are_told_of_several_runs(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"r{seed}", 5, seed=seed)
    page = make_page(read_all(tmp_path / "r1", tmp_path / "r2"))
    assert "<th scope='row'>seed<td>1<td>2" in page
    assert "<th scope='row'>host<td>n1<td>n2" in page
    assert "optim.lr" not in page
    one = make_page(read_all(tmp_path / "r1"))
    assert "Recipe (3 keys)" in one
    assert "<th scope='row'>optim.lr<td>0.001" in one


def test_a_plan_is_shown_beside_what_was_measured_only_where_there_is_one(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 5)
    assert "Planned and measured" not in make_page(read_all(tmp_path / "a"))
    plan = {"peak_bytes": 3 << 30, "process_bytes": 1 << 30, "parts": {"weights": 1 << 30}, "tokens_per_second": 2000}
    (tmp_path / "a" / "plan.json").write_text(json.dumps(plan))
    page = make_page(read_all(tmp_path / "a"))
    assert "memory of a rank<td>4.00 GiB<td>8.00 GiB<td>2.00" in page
    assert "of it weights<td>1.00 GiB" in page
    assert re.search(r"tokens/s<td>2,000<td>\d{3,4}|tokens/s<td>2,000<td>1,\d{3}", page)


def test_a_run_that_has_logged_nothing_or_is_damaged_is_told(tmp_path: Path) -> None:
    (tmp_path / "a" / "predictions").mkdir(parents=True)
    (tmp_path / "a" / "predictions" / "step-00000001.jsonl").write_text("{")
    (tmp_path / "a" / "recipe.yaml").write_text("a: [")
    (tmp_path / "a" / "environment.json").write_bytes(b"\xff")
    (tmp_path / "a" / "plan.json").write_text("[]")
    page = make_page(read_all(tmp_path / "a"))
    for told in ("no step is logged yet", "recipe.yaml cannot be read", "environment.json cannot be read"):
        assert f"a: {told}" in page
    assert "a: plan.json cannot be read" in page
    assert "a: predictions/step-00000001.jsonl cannot be read" in page


def test_a_long_run_is_thinned_to_its_extremes_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaletrain.track.report.page.POINTS_OF_RUN", 100)
    lines = write_run(tmp_path / "a", 2000)
    page = make_page(read_all(tmp_path / "a"))
    (run,) = data_of(page)
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert len(run["training"]["step"]) <= 101
    assert run["training"]["step"][-1] == 2000
    assert run["training"]["loss"] == [losses[step] for step in run["training"]["step"]]
    assert {min(losses.values()), max(losses.values())} <= set(run["training"]["loss"])
    assert f"{len(run['training']['step'])} of 2,000 logged steps are in this page" in page


def test_thinning_keeps_what_is_not_finite() -> None:
    values = np.ones(1000)
    values[123] = np.inf
    assert 123 in thin(values, 10)
    assert list(thin(values, 1000)) == list(range(1000))


def test_runs_of_the_same_name_are_told_apart() -> None:
    assert names_of([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
    assert names_of([Path("/x/a"), Path("/x/b")]) == ["a", "b"]


def in_browser(page: Path, *options: str) -> tuple[str, list[str]]:
    """The page after its scripts, and what it said on the console."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    profile = page.parent / "profile"
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom",
        "--enable-logging=stderr", *options, f"file://{page}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "steps"), [(1, 500), (2, 500), (8, 2000), (1, POINTS_OF_RUN)])
def test_a_browser_opens_the_page_without_an_error(runs: int, steps: int, tmp_path: Path) -> None:
    folders = [tmp_path / f"run-{number}" for number in range(runs)]
    lines = [write_run(folder, steps, seed=seed) for seed, folder in enumerate(folders)]
    write_page(read_all(*folders), tmp_path / "report.html")
    found, said = in_browser(tmp_path / "report.html")
    assert said == []
    ready = re.search(r'data-ready-seconds="([0-9.]+)"', found)
    assert ready is not None
    size = (tmp_path / "report.html").stat().st_size / 1e6
    print(f"{runs} runs of {steps:,} steps, {size:.1f} MB: ready after {ready[1]} s")
    for folder, of_run in zip(folders, lines, strict=True):
        last = next(line for line in reversed(of_run) if "loss" in line)
        assert f"{folder.name}: {last['loss']:.6g}".rstrip("0") in found
    assert found.count("<canvas") >= 8


@pytest.mark.slow
def test_a_browser_runs_nothing_that_a_run_brought(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 5)
    with (tmp_path / "a" / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": HOSTILE, "time": 1e9, "step": 5, "reason": HOSTILE}) + "\n")
    write_page([read_run(tmp_path / "a", HOSTILE)], tmp_path / "report.html")
    found, said = in_browser(tmp_path / "report.html")
    assert said == []
    assert 'data-ready="true"' in found
    assert "<img" not in found


CLICKS = """
<script>
(async () => {
  const press = async (key) => {
    charts[0].box.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    await null;
  };
  const choose = async (selector) => { document.querySelector(selector).click(); await null; await null; };
  const told = () => charts[0].readout.textContent;
  const seen = {};
  for (const axis of ["tokens", "seconds", "step"]) {
    await choose(`input[value=${axis}]`);
    seen[axis] = view.whole[1];
  }
  await choose("#log");
  await press("ArrowLeft");
  seen.middle = told();
  await press("+");
  seen.zoomed = view.range;
  await choose("[data-view=right]");
  seen.moved = view.range;
  await choose("[data-view=all]");
  seen.all = view.range;
  const slider = document.getElementById("smoothing");
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  seen.raw = told();
  await choose("#runs input");
  seen.hidden = told();
  document.body.dataset.seen = JSON.stringify(seen);
})();
</script></body>"""


@pytest.mark.slow
def test_controls_work_by_mouse_and_by_keyboard(tmp_path: Path) -> None:
    lines = [line for line in write_run(tmp_path / "a", 500) if "loss" in line]
    write_run(tmp_path / "b", 400, seed=1)
    page = make_page(read_all(tmp_path / "a", tmp_path / "b")).replace("</body>", CLICKS)
    (tmp_path / "report.html").write_text(page)
    found, said = in_browser(tmp_path / "report.html")
    assert said == []
    clicked = re.search(r'data-seen="([^"]*)"', found)
    assert clicked is not None
    seen = json.loads(unescape(clicked[1]))
    assert seen["step"] == 500
    assert seen["tokens"] == 500 * 8192
    assert seen["seconds"] == pytest.approx(sum(line["step_seconds"] for line in lines) / 60, rel=1e-6)
    at = re.match(r"a: ([0-9.]+) \(smoothed [0-9.]+\) at step (\d+)", seen["middle"])
    assert at is not None
    assert 230 <= int(at[2]) <= 250
    assert float(at[1]) == pytest.approx(lines[int(at[2]) - 1]["loss"], rel=1e-5)
    low, high = seen["zoomed"]
    assert low < int(at[2]) < high
    assert high - low == pytest.approx(250)
    assert seen["moved"] == pytest.approx([low + 62.5, high + 62.5])
    assert seen["all"] is None
    assert "smoothed" not in seen["raw"]
    assert seen["hidden"].startswith("b: ")
