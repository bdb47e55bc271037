// What happened when: for each run a row a kind of event, along the time on the wall.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const ROW = 18, NAMES = 130;

function svg(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const [unit, size] = units.find(([, one]) => seconds >= 2 * one) ?? units[3];
  return `${+(seconds / size).toFixed(1)} ${unit}`;
}

// Draws all of it anew into host. Events at the same pixel are one mark that names them all.
function drawTimeline(host, runs) {
  host.replaceChildren();
  const width = Math.max(280, host.clientWidth), names = Math.min(NAMES, width / 3);
  runs.forEach((run, number) => {
    const events = run.events.filter((event) => event.time !== null);
    if (!run.shown || !events.length) return;
    const times = events.map((event) => event.time);
    const first = times.reduce((a, b) => Math.min(a, b)), last = times.reduce((a, b) => Math.max(a, b));
    const kinds = [...new Set(events.map((event) => event.event))];
    const height = (kinds.length + 1) * ROW + 4;
    const title = Object.assign(document.createElement("h3"), { textContent: `${run.name}, ${duration(last - first)}` });
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    picture.setAttribute("aria-label", `Events of ${run.name}: ${kinds.map((kind) =>
      `${events.filter((event) => event.event === kind).length} ${kind}`).join(", ")}`);
    const x = (time) => names + ((time - first) / (last - first || 1)) * (width - names - 12) + 4;
    kinds.forEach((kind, row) => {
      const y = row * ROW + ROW / 2 + 2, marks = new Map();
      picture.append(svg("text", { x: 0, y: y + 4 }, kind.replaceAll("_", " ").slice(0, 20)));
      picture.append(svg("line", { x1: names, x2: width, y1: y, y2: y }));
      for (const event of events.filter((one) => one.event === kind)) {
        const at = Math.round(x(event.time));
        marks.set(at, [...(marks.get(at) ?? []), event]);
      }
      for (const [at, found] of marks) {
        const mark = svg("rect", { x: at - 2, y: y - 6, width: 4, height: 12, rx: 1, fill: `var(--run-${number % 8})` });
        const told = found.slice(0, 5).map((event) => `step ${event.step}: ${event.text}`);
        const more = found.length > 5 ? `\nand ${found.length - 5} more` : "";
        mark.append(svg("title", {}, `${kind}, ${duration(found[0].time - first)} after the start\n${told.join("\n")}${more}`));
        picture.append(mark);
      }
    });
    const labels = [[names, "start", "0"], [width, "end", duration(last - first)]];
    for (const [at, anchor, label] of labels) picture.append(svg("text", { x: at, y: height - 4, "text-anchor": anchor }, label));
    host.append(title, picture);
  });
}
