// The last minutes as small charts. Plain SVG, redrawn once a second while the panel is open.

import { h, svg } from "./dom.js";

const SPAN = 5 * 60_000;  // ms shown
const WIDTH = 200;
const HEIGHT = 44;

export class History {
  constructor() {
    this.series = new Map();
  }

  add(name, value, now = Date.now()) {
    if (!Number.isFinite(value)) return;
    const points = this.series.get(name) ?? [];
    points.push([now, value]);
    while (points[0][0] < now - SPAN) points.shift();
    this.series.set(name, points);
  }

  get(name) {
    return this.series.get(name) ?? [];
  }
}

/** {title, unit, digits, floor} -> a figure with now, range and curve; `floor` is the least top of the scale. */
export function chart({ title, unit, digits = 0, floor = 1, steps = false }, points, now = Date.now()) {
  const values = points.map(([, value]) => value);
  const say = (value) => `${value.toFixed(digits)}${unit}`;
  const last = values.length ? say(values.at(-1)) : "–";
  const range = new Set(values).size > 1 ? `${Math.min(...values).toFixed(digits)} to ${say(Math.max(...values))}` : "";
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `${title}, last 5 minutes: ${range || "no readings yet"}, now ${last}` },
    ...curve(points, now, Math.max(floor, ...values) * 1.1, steps));
  return h("figure", { class: "chart" },
    h("figcaption", {}, h("span", {}, title), h("strong", {}, last)), picture, h("small", {}, range || " "));
}

function curve(points, now, top, steps) {
  const line = svg("line", { x1: 0, y1: HEIGHT - 0.5, x2: WIDTH, y2: HEIGHT - 0.5, class: "axis" });
  if (points.length === 0) return [line];
  const xy = points.map(([time, value]) => [WIDTH * (1 - (now - time) / SPAN), (HEIGHT - 1) * (1 - value / top)]);
  xy.push([WIDTH, xy.at(-1)[1]]);
  const path = xy.map(([x, y], i) => (steps && i ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`)).join("");
  return [line, svg("path", { d: `${path}V${HEIGHT}H${xy[0][0].toFixed(1)}Z`, class: "area" }),
    svg("path", { d: path, class: "curve", "vector-effect": "non-scaling-stroke" })];
}

const BARS = 24;

/** The pulse: tokens of the last seconds as a row of bars, one per half second. */
export class Pulse {
  constructor() {
    this.counts = new Array(BARS).fill(0);
    this.bars = this.counts.map((_, i) => svg("rect", { x: i * 4, width: 2, rx: 1 }));
    this.node = svg("svg", { class: "pulse", viewBox: `0 0 ${BARS * 4 - 2} 14`, "aria-hidden": "true" }, ...this.bars);
    this.draw();
  }

  beat(tokens) {
    this.counts[BARS - 1] += tokens;
  }

  /** Call every half second. True while there is anything to see. */
  tick() {
    this.draw();
    this.counts.shift();
    this.counts.push(0);
    return this.counts.some((count) => count > 0);
  }

  draw() {
    const top = Math.max(4, ...this.counts);
    this.bars.forEach((bar, i) => {
      const height = 2 + (12 * this.counts[i]) / top;
      bar.setAttribute("height", height.toFixed(1));
      bar.setAttribute("y", (7 - height / 2).toFixed(1));
    });
  }
}
