// A line chart as inline SVG, from plain numbers. It redraws itself when its width changes, and reads out its values
// under the pointer or under the arrow keys.

import { element } from "./view.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 46, right: 14, top: 10, bottom: 26 };
const MOST_POINTS = 600;

export const short = (value) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return `${(value / 1e9).toFixed(2)}B`;
  if (size >= 1e6) return `${(value / 1e6).toFixed(2)}M`;
  if (size >= 1e4) return `${(value / 1e3).toFixed(1)}K`;
  if (size >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
  return value.toFixed(size >= 10 ? 2 : size >= 0.001 || size === 0 ? 3 : 5);
};

const round = (value) => (Math.abs(value) < 1000 ? String(Number(value.toPrecision(6))) : short(value));

function svg(tag, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  return node;
}

// About `count` round numbers from low to high.
export function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * size).find((n) => n >= rough);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-9; n++) found.push(Number((n * step).toPrecision(12)));
  return found;
}

// [[x, y]] -> at most MOST_POINTS of them, each the mean of its stretch.
export function thin(points, most = MOST_POINTS) {
  const width = Math.ceil(points.length / most);
  if (width <= 1) return points;
  const means = [];
  for (let at = 0; at < points.length; at += width) {
    const part = points.slice(at, at + width);
    means.push([part.at(-1)[0], part.reduce((sum, [, y]) => sum + y, 0) / part.length]);
  }
  return means;
}

// The mean of about the last thirtieth of the points before each one, later ones counting more: little lag where the curve
// is steep, little noise where it is flat.
export function smooth(points) {
  let mean = 0;
  return points.map(([x, y], index) => {
    mean += (y - mean) / (1 + Math.min(index / 30, 50));
    return [x, mean];
  });
}

export class Chart {
  // title: what is drawn; unit: of the y axis, which begins at 0 if `zero`. update() gives it lines: [{name, points,
  // look, dots}].
  constructor(title, unit, zero = false) {
    this.title = title;
    this.zero = zero;
    this.lines = [];
    this.legend = element("p", { class: "legend" });
    this.drawing = svg("svg", { class: "chart", tabindex: "0", role: "img" });
    this.figure = element("figure", { class: "panel" }, element("figcaption", {}, element("h2", {}, title), element("span", { class: "quiet" }, unit)), this.legend, this.drawing);
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => this.mark(null));
    this.drawing.addEventListener("blur", () => this.mark(null));
    this.drawing.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  update(lines) {
    this.lines = lines.map((line) => ({ ...line, points: thin(line.points) })).filter((line) => line.points.length);
    this.figure.hidden = !this.lines.length;
    this.draw();
  }

  draw() {
    const width = this.drawing.clientWidth;
    const height = this.drawing.clientHeight;
    if (!width || !this.lines.length) return;
    const all = this.lines.flatMap((line) => line.points);
    const [low, high] = range([...(this.zero ? [0] : []), ...all.map(([, y]) => y)], this.zero ? 0 : 0.04);
    const [first, last] = range(all.map(([x]) => x), 0);
    this.x = (x) => MARGIN.left + ((x - first) / (last - first)) * (width - MARGIN.left - MARGIN.right);
    this.y = (y) => height - MARGIN.bottom - ((y - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [];
    for (const value of ticks(low, high, Math.max(2, height / 60))) {
      parts.push(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: this.y(value), y2: this.y(value) }));
      parts.push(svg("text", { class: "tick", x: MARGIN.left - 8, y: this.y(value) + 4, "text-anchor": "end" }, round(value)));
    }
    for (const value of ticks(first, last, Math.max(4, width / 90))) {
      parts.push(svg("text", { class: "tick", x: this.x(value), y: height - 6, "text-anchor": "middle" }, short(value)));
    }
    for (const line of this.lines) parts.push(...this.drawLine(line));
    this.marker = svg("g", { class: "marker" });
    this.drawing.replaceChildren(...parts, this.marker);
    this.drawing.setAttribute("aria-label", `${this.title} by step. ${this.lines.map((line) => `${line.name}: from ${short(line.points[0][1])} to ${short(line.points.at(-1)[1])}`).join(". ")}. The arrow keys read the values.`);
    this.mark(this.at ?? null);
  }

  drawLine({ points, look, dots }) {
    const path = points.map(([x, y], index) => `${index ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`).join("");
    const parts = [svg("path", { class: `line ${look}`, d: path })];
    if (dots || points.length === 1) for (const [x, y] of points) parts.push(svg("circle", { class: `dot ${look}`, cx: this.x(x), cy: this.y(y), r: 3 }));
    return parts;
  }

  point(event) {
    const at = event.clientX - this.drawing.getBoundingClientRect().left;
    const xs = this.lines.reduce((longest, line) => (line.points.length > longest.length ? line.points : longest), []);
    if (this.x && xs.length) this.mark(xs.reduce((best, [x]) => (Math.abs(this.x(x) - at) < Math.abs(this.x(best) - at) ? x : best), xs[0][0]));
  }

  step(event) {
    const xs = [...new Set(this.lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
    const now = this.at === null || this.at === undefined ? xs.length - 1 : xs.findIndex((x) => x >= this.at);
    const jump = Math.max(1, Math.round(xs.length / 50));
    const to = { ArrowLeft: now - jump, ArrowRight: now + jump, Home: 0, End: xs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.mark(xs[Math.max(0, Math.min(xs.length - 1, to))]);
    document.getElementById("status").textContent = this.legend.textContent;
  }

  // Show the values at step `at`; the newest ones if it is null.
  mark(at) {
    this.at = at;
    const parts = [];
    const entries = this.lines.filter((line) => !line.look.includes("faint")).map((line) => {
      const found = at === null ? line.points.at(-1) : line.points.findLast(([x]) => x <= at) ?? line.points[0];
      if (at !== null && this.x) parts.push(svg("circle", { class: `dot ${line.look}`, cx: this.x(found[0]), cy: this.y(found[1]), r: 4 }));
      return element("span", { class: `key ${line.look}` }, `${line.name} `, element("b", {}, short(found[1])));
    });
    if (at !== null) entries.unshift(element("span", {}, "step ", element("b", {}, short(at)), " "));
    this.legend.replaceChildren(...entries);
    if (!this.marker) return;
    if (at !== null) parts.unshift(svg("line", { class: "guide", x1: this.x(at), x2: this.x(at), y1: MARGIN.top, y2: this.drawing.clientHeight - MARGIN.bottom }));
    this.marker.replaceChildren(...parts);
  }
}

// The smallest and the largest value, with a little room around them.
function range(values, room) {
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const space = (high - low) * room || (room ? Math.abs(high) * 0.05 || 0.5 : high === low ? 0.5 : 0);
  return [low - space, high + space];
}
