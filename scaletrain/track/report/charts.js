// One chart: lines of every run over steps, tokens or time, with a read-out of the numbers as they were logged.
"use strict";

const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const MOST_RAW = 3;  // runs whose unsmoothed lines are drawn too; those of more would hide the smooth ones
const MARKED = ["resume", "roll_back", "spike", "stop"];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const runColour = (number) => colour(`--run-${number % 8}`);
// Runs 5 to 8 are dashed, so that no two neighbours in hue look alike; further ones are dotted, then mixed.
const runDash = (number) => DASHES[Math.floor(number / 4) % DASHES.length];

// From the least value to the greatest, but never so narrow that no tick could tell them apart.
function spread(_, low, high) {
  if (low === null || high === null) return [0, 1];
  const least = Math.max(Math.abs(low), Math.abs(high)) * 1e-2 || 1, middle = (low + high) / 2;
  return high - low < least ? [middle - least, middle + least] : uPlot.rangeNum(low, high, 0.1, true);
}

// The values of a table along the x axis; rows without one are left out of lines by uPlot's own gaps.
function along(table, view) {
  const key = `x:${view.axis}`;
  if (!table[key]) {
    let last = 0;  // a missing value stands where the one before does, so that values ascend
    table[key] = table[view.axis].map((value) => (last = Math.max(last, (value ?? last * view.unit) / view.unit)));
  }
  return table[key];
}

function smoothed(table, key, weight) {
  const cache = table.cache ?? (table.cache = {});
  if (cache[key]?.weight !== weight) cache[key] = { weight, values: smooth(table[key], weight) };
  return cache[key].values;
}

// spec: title, keys (one is shown, chosen in a list if there are several), table, paired (evaluations of the same kind),
// scale (what a value is divided by), unit. view: what all charts share; its `changed` redraws them.
class Chart {
  constructor(host, spec, runs, view) {
    Object.assign(this, { spec, runs, view, key: spec.keys[0], plot: null });
    this.box = Object.assign(document.createElement("div"), { className: `chart${spec.first ? " first" : ""}`, tabIndex: 0 });
    this.box.setAttribute("role", "group");
    this.title = document.createElement("h3");
    this.title.textContent = spec.title;
    if (spec.keys.length > 1) this.title.append(this.select());
    this.readout = Object.assign(document.createElement("ul"), { className: "readout" });
    this.readout.setAttribute("aria-live", "polite");
    this.canvas = document.createElement("div");
    this.box.append(this.title, this.readout, this.canvas);
    this.box.addEventListener("keydown", (event) => this.press(event));
    host.append(this.box);
  }

  select() {
    const list = document.createElement("select");
    list.setAttribute("aria-label", `${this.spec.title}: which value`);
    for (const key of this.spec.keys) list.append(new Option(key.replace(/^eval_/, "").replaceAll("_", " "), key));
    list.addEventListener("change", () => { this.key = list.value; this.draw(); });
    return list;
  }

  // The lines of a run: each with its table, its key, and how it looks.
  lines(run, number) {
    const { spec, key } = this, dash = runDash(number);
    const table = run[spec.table];
    if (!spec.smooth) return [{ table, key, width: 1.6, dash, points: spec.table === "evaluation" }];
    return [
      { table, key, width: 1, dash: [], alpha: "48", raw: true },
      { table, key, width: 1.8, dash, smooth: true },
      { table: run.evaluation, key: "eval_" + key, width: 1.2, dash: [3, 3], points: true },
    ];
  }

  data() {
    const { view } = this, [low, high] = view.range ?? view.whole;
    const withRaw = view.smoothing > 0 && this.runs.filter((run) => run.shown).length <= MOST_RAW;
    const parts = Math.max(200, this.canvas.clientWidth);
    const tables = this.runs.flatMap((run, number) => this.lines(run, number).map((line) => {
      if (!run.shown || !line.table[line.key] || (line.raw && !withRaw)) return [[], []];
      const values = line.smooth ? smoothed(line.table, line.key, view.smoothing) : line.table[line.key];
      const [xs, ys] = thinned(along(line.table, view), values, low, high, parts);
      const scale = this.spec.scale ?? 1, positive = this.isLog();
      return [xs, ys.map((y) => (y === null || (positive && y <= 0) ? null : y / scale))];
    }));
    return uPlot.join(tables);
  }

  isLog() {
    return Boolean(this.spec.log && this.view.log);
  }

  options(width) {
    const { view } = this, text = () => colour("--faint"), rule = { stroke: () => colour("--rule"), width: 1 };
    const axis = { stroke: text, grid: rule, ticks: rule, font: "12px system-ui, sans-serif" };
    const series = this.runs.flatMap((run, number) => this.lines(run, number).map((line) => ({
      stroke: () => runColour(number) + (line.alpha ?? ""),
      width: line.width,
      dash: line.dash,
      points: { show: Boolean(line.points), size: 5, fill: () => colour("--ground") },
    })));
    return {
      width,
      height: this.spec.first ? Math.min(380, Math.max(240, width * 0.45)) : 220,
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false }, sync: { key: "all" } },
      scales: { x: { time: false, range: () => view.range ?? view.whole }, y: { distr: this.isLog() ? 3 : 1, range: this.isLog() ? undefined : spread } },
      axes: [
        { ...axis, size: 30, values: (_, ticks) => ticks.map((tick) => short(tick)) },
        { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) },
      ],
      series: [{}, ...series],
      hooks: {
        setCursor: [(plot) => this.tell(plot.cursor.left >= 0 ? plot.posToVal(plot.cursor.left, "x") : null)],
        setSelect: [(plot) => this.zoomTo(plot)],
        draw: [(plot) => this.mark(plot)],
      },
    };
  }

  zoomTo(plot) {
    if (plot.select.width < 4) return;
    const from = plot.posToVal(plot.select.left, "x");
    const to = plot.posToVal(plot.select.left + plot.select.width, "x");
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    if (to > from) this.view.show([from, to]);
  }

  build() {
    this.plot?.destroy();
    this.plot = new uPlot(this.options(this.canvas.clientWidth), this.data(), this.canvas);
    this.plot.over.addEventListener("dblclick", () => this.view.show(null));
    this.tell(null);
  }

  draw() {
    if (!this.plot) return;
    this.plot.setData(this.data());
    this.tell(null);
  }

  fit() {
    const width = this.canvas.clientWidth;
    if (this.plot && width && width !== this.plot.width) this.build();
  }

  // Where the run resumed, went back, spiked or stopped: broken lines in its colour.
  mark(plot) {
    if (!this.spec.first) return;
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.setLineDash([2, 4]);
    this.runs.forEach((run, number) => {
      if (!run.shown) return;
      ctx.strokeStyle = runColour(number);
      for (const event of run.events.filter((one) => MARKED.includes(one.event))) {
        const row = nearest(run.training.step, event.step);
        const x = row < 0 ? NaN : plot.valToPos(along(run.training, this.view)[row], "x", true);
        if (!(x >= bbox.left && x <= bbox.left + bbox.width)) continue;
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
      }
    });
    ctx.restore();
  }

  // The logged numbers next to x of every run shown; of the last step for x = null.
  tell(x) {
    const items = this.runs.flatMap((run, number) => (run.shown ? [[this.sentence(run, number, x), number]] : []));
    const told = items.filter(([sentence]) => sentence);
    this.readout.replaceChildren(...told.map(([sentence, number]) => {
      const item = document.createElement("li"), swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.borderTopColor = runColour(number);
      item.append(swatch, sentence);
      return item;
    }));
    if (x === null) this.box.setAttribute("aria-label", `${this.spec.title}: ${told.map(([one]) => one).join("; ")}`);
  }

  sentence(run, number, x) {
    const parts = [];
    for (const line of this.lines(run, number)) {
      if (line.raw || !line.table[line.key]?.length) continue;
      const xs = along(line.table, this.view), row = x === null ? xs.length - 1 : nearest(xs, x);
      const scale = this.spec.scale ?? 1, value = line.table[line.key][row];
      const name = line.key.startsWith("eval_") && this.spec.smooth ? "validation " : "";
      const shown = value === null ? "not a finite number" : `${short(value / scale, 6)}${this.spec.unit ?? ""}`;
      const mean = line.smooth && this.view.smoothing ? smoothed(line.table, line.key, this.view.smoothing)[row] : null;
      const also = mean === null ? "" : ` (smoothed ${short(mean / scale, 5)})`;
      parts.push(`${name}${shown}${also} at step ${line.table.step[row].toLocaleString("en")}`);
    }
    return parts.length ? `${run.name}: ${parts.join(", ")}` : "";
  }

  press(event) {
    if (event.target !== this.box || event.ctrlKey || event.metaKey || event.altKey || !this.plot) return;
    const width = this.plot.over.clientWidth, at = this.plot.cursor.left >= 0 ? this.plot.cursor.left : width / 2;
    const step = (event.shiftKey ? 0.1 : 0.01) * width;
    const moves = { ArrowLeft: -step, ArrowRight: step };
    if (event.key in moves) {
      const left = Math.min(width, Math.max(0, at + moves[event.key]));
      this.plot.setCursor({ left, top: 10 });
    } else if (event.key === "+" || event.key === "-") {
      this.view.zoom(event.key === "+" ? 0.5 : 2, this.plot.posToVal(at, "x"));
    } else if (event.key === "0" || event.key === "Escape") {
      this.view.show(null);
    } else return;
    event.preventDefault();
  }
}
