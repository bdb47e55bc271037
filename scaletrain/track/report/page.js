// Puts the page to work: the data, the controls, the charts.
"use strict";

const RUNS = JSON.parse(document.getElementById("data").textContent).map((run) => ({ ...run, shown: true }));
const CHARTS = [
  { title: "Loss", keys: ["loss"], table: "training", smooth: true, log: true, first: true },
  { title: "Evaluation", keys: [], table: "evaluation" },
  { title: "Tokens per second", keys: ["tokens_per_second"], table: "training", smooth: true },
  { title: "Share of the peak FLOP/s (MFU)", keys: ["mfu"], table: "training", smooth: true, scale: 0.01, unit: "%" },
  { title: "Peak memory of rank 0, GiB", keys: ["peak_memory_bytes"], table: "training", scale: 2 ** 30, unit: " GiB" },
  { title: "Gradient norm", keys: ["grad_norm"], table: "training", smooth: true },
  { title: "Learning rate", keys: ["lr"], table: "training" },
  { title: "Seconds a step", keys: ["step_seconds", "data_wait_seconds", "forward_seconds", "backward_seconds",
    "optimizer_seconds", "rank_seconds_median", "rank_seconds_max"], table: "training", smooth: true },
  { title: "Updates left out", keys: ["skipped_steps"], table: "training" },
];

// What all charts share, and what changes it.
const view = {
  axis: "step", unit: 1, smoothing: 0.6, log: false, range: null, whole: [0, 1],
  show(range) {
    if (range && range[1] - range[0] < this.whole[1] * 1e-5) return;
    this.range = range;
    for (const chart of charts) chart.draw();
  },
  zoom(factor, around) {
    const [low, high] = this.range ?? this.whole;
    const at = around ?? (low + high) / 2;
    const next = [Math.max(this.whole[0], at - (at - low) * factor), Math.min(this.whole[1], at + (high - at) * factor)];
    const isAll = next[0] <= this.whole[0] && next[1] >= this.whole[1];
    this.show(isAll ? null : next);
  },
  move(share) {
    if (!this.range) return;
    const [low, high] = this.range, by = (high - low) * share;
    const shift = Math.max(this.whole[0] - low, Math.min(this.whole[1] - high, by));
    this.show([low + shift, high + shift]);
  },
  follow(axis) {
    Object.assign(this, { axis, range: null, unit: 1 });
    const last = (table) => table[axis].reduce((most, value) => Math.max(most, value ?? 0), 0);
    const most = Math.max(1e-9, ...RUNS.map((run) => Math.max(last(run.training), last(run.evaluation))));
    let name = axis === "step" ? "step" : "tokens";
    if (axis === "seconds") [this.unit, name] = most > 7200 ? [3600, "hours of training"] : most > 120 ? [60, "minutes of training"] : [1, "seconds of training"];
    this.name = name;
    this.whole = [0, most / this.unit];
  },
};
const charts = [];

function specs() {
  const has = (spec, key) => RUNS.some((run) => run[spec.table][key]?.some((value) => value !== null));
  return CHARTS.map((spec) => {
    const all = spec.table === "evaluation"
      ? [...new Set(RUNS.flatMap((run) => Object.keys(run.evaluation).filter((key) => key.startsWith("eval_"))))]
      : spec.keys;
    const keys = all.filter((key) => has(spec, key));
    const isFlat = spec.title === "Updates left out" && !RUNS.some((run) => run.training.skipped_steps?.some(Boolean));
    return { ...spec, keys: isFlat ? [] : keys };
  }).filter((spec) => spec.keys.length);
}

function listRuns() {
  const place = document.getElementById("runs");
  RUNS.forEach((run, number) => {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, { type: "checkbox", checked: true });
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    Object.assign(swatch.style, { borderTopColor: `var(--run-${number % 8})`, borderTopStyle: number % 8 > 3 ? "dashed" : "solid" });
    label.append(box, swatch, run.name);
    box.addEventListener("change", () => { run.shown = box.checked; view.show(view.range); drawEvents(); });
    place.append(label);
  });
}

const drawEvents = () => drawTimeline(document.getElementById("timeline"), RUNS);
const rebuild = () => { for (const chart of charts) chart.build(); };

function listen() {
  const views = {
    in: () => view.zoom(0.5), out: () => view.zoom(2), left: () => view.move(-0.25), right: () => view.move(0.25),
    all: () => view.show(null),
  };
  for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", views[button.dataset.view]);
  document.getElementById("axis").addEventListener("change", (event) => {
    for (const run of RUNS) for (const table of [run.training, run.evaluation]) delete table[`x:${event.target.value}`];
    view.follow(event.target.value);
    rebuild();
  });
  document.getElementById("smoothing").addEventListener("input", (event) => {
    view.smoothing = +event.target.value;
    document.getElementById("smoothing-told").textContent = view.smoothing.toFixed(2);
    for (const chart of charts) if (chart.spec.smooth) chart.draw();
  });
  document.getElementById("log").addEventListener("change", (event) => { view.log = event.target.checked; rebuild(); });
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
  // Not the window's resizing alone: the scroll bar that comes with the charts takes of their width too.
  const place = document.getElementById("charts");
  let width = 0;
  const fit = () => {
    if (width === place.clientWidth) return;
    width = place.clientWidth;
    for (const chart of charts) chart.fit();
    drawEvents();
  };
  // In the next frame: sizes that change inside the observer's own call make the browser complain.
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(place);
}

view.follow("step");
listRuns();
for (const spec of specs()) charts.push(new Chart(document.getElementById("charts"), spec, RUNS, view));
if (!charts.length) document.getElementById("charts").textContent = "No step is logged yet.";
rebuild();
drawEvents();
listen();
// After the charts, which draw themselves once this script is over.
queueMicrotask(() => Object.assign(document.documentElement.dataset, {
  ready: "true", readySeconds: (performance.now() / 1000).toFixed(2),
}));
