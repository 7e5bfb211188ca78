// Lines over time. Each chart is a picture with a name, can be walked through with the arrow keys, and says what it shows; the
// same figures stand in a table below all of them.

import { attribute, el, svg, text } from "./dom.js";
import { clock, ticks } from "./format.js";

const HEIGHT = 132;
const PAD = { left: 6, right: 6, top: 14, bottom: 18 };
/** A gap between two points that is longer than this is shown as one. */
const GAP_MS = 15_000;

/**
 * Makes a chart. `series`: `{ name, value(point), line }`, where `line` is 1 or 2. `format` writes a value; `base` is 2 where
 * bytes are counted; `most` fixes the top.
 */
export function chart({ title, series, format, base = 10, most = null }) {
  const now = el("output", { class: "chart-now" });
  const legend = el("span", { class: "legend" });
  for (const one of series.length > 1 ? series : []) {
    legend.append(el("span", { class: `key line-${one.line}` }, one.name));
  }
  const grid = svg("g", { class: "grid" });
  const labels = svg("g", { class: "labels" });
  const marks = svg("g", { class: "marks" });
  const area = svg("path", { class: "area" });
  const lines = series.map((one) => svg("path", { class: `line line-${one.line}` }));
  const cross = svg("line", { class: "cross", y1: PAD.top, y2: HEIGHT - PAD.bottom, visibility: "hidden" });
  const picture = svg("svg", { height: HEIGHT, role: "img", "aria-label": title, tabindex: 0 }, grid, area, marks, ...lines, labels, cross);
  const element = el("figure", { class: "chart" }, el("figcaption", {}, el("h3", {}, title), legend, now), picture);

  let state = { points: [], from: 0, to: 1, events: [] };
  let chosen = null;
  let width = 300;

  const x = (at) => PAD.left + ((at - state.from) / (state.to - state.from)) * (width - PAD.left - PAD.right);

  function path(value, y) {
    let d = "";
    let last = null;
    for (const point of state.points) {
      const shown = value(point);
      if (shown === null) {
        last = null;
        continue;
      }
      d += `${last !== null && point.at - last < GAP_MS ? "L" : "M"}${x(point.at).toFixed(1)} ${y(shown).toFixed(1)}`;
      last = point.at;
    }
    return d;
  }

  /** The stretches of the first line that are whole, closed along the ground. */
  function filled(d, ground) {
    return d.split("M").filter(Boolean).map((part) => {
      const xs = part.split("L").map((pair) => pair.split(" ")[0]);
      return `M${xs[0]} ${ground}L${part}L${xs.at(-1)} ${ground}Z`;
    }).join("");
  }

  function say() {
    const point = chosen === null ? state.points.at(-1) : state.points[chosen];
    if (!point) {
      text(now, "–");
      attribute(picture, "aria-label", `${title}: nothing yet`);
      return;
    }
    const values = series.map((one) => format(one.value(point)));
    text(now, chosen === null ? values.join(" · ") : `${clock(point.at)}  ${values.join(" · ")}`);
    const names = series.map((one, at) => (series.length > 1 ? `${one.name} ${values[at]}` : values[at]));
    attribute(picture, "aria-label", `${title} at ${clock(point.at)}: ${names.join(", ")}. Arrow keys look at earlier times.`);
    attribute(cross, "visibility", chosen === null ? "hidden" : "visible");
    attribute(cross, "x1", x(point.at).toFixed(1));
    attribute(cross, "x2", x(point.at).toFixed(1));
  }

  function draw() {
    attribute(picture, "viewBox", `0 0 ${width} ${HEIGHT}`);
    const values = state.points.flatMap((point) => series.map((one) => one.value(point))).filter((value) => value !== null);
    const scale = most === null ? ticks(Math.max(0, ...values), base) : [0, most / 2, most];
    const top = scale.at(-1);
    const ground = HEIGHT - PAD.bottom;
    const y = (value) => ground - (value / top) * (ground - PAD.top);
    grid.replaceChildren(...scale.map((value) => svg("line", { x1: PAD.left, x2: width - PAD.right, y1: y(value), y2: y(value) })));
    const high = scale.filter((value) => value > 0);
    labels.replaceChildren(...high.map((value) => svg("text", { x: PAD.left, y: y(value) - 3 }, format(value))));
    for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
      const at = state.from + share * (state.to - state.from);
      labels.append(svg("text", { x: x(at), y: HEIGHT - 4, "text-anchor": anchor }, clock(at)));
    }
    lines.forEach((line, at) => attribute(line, "d", path(series[at].value, y)));
    attribute(area, "d", filled(lines[0].getAttribute("d") ?? "", ground));
    marks.replaceChildren(...state.events.filter((event) => event.at_ms > state.from && event.at_ms < state.to).map((event) =>
      svg("line", { x1: x(event.at_ms), x2: x(event.at_ms), y1: PAD.top, y2: ground }, svg("title", {}, event.kind))));
    say();
  }

  function choose(at) {
    chosen = at === null || state.points.length === 0 ? null : Math.max(0, Math.min(state.points.length - 1, at));
    say();
  }

  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const at = state.from + ((event.clientX - box.left - PAD.left) / (box.width - PAD.left - PAD.right)) * (state.to - state.from);
    let nearest = 0;
    state.points.forEach((point, index) => {
      if (Math.abs(point.at - at) < Math.abs(state.points[nearest].at - at)) nearest = index;
    });
    choose(nearest);
  });
  picture.addEventListener("pointerleave", () => choose(null));
  picture.addEventListener("blur", () => choose(null));
  picture.addEventListener("keydown", (event) => {
    const here = chosen ?? state.points.length - 1;
    const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: state.points.length - 1, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(to);
  });
  new ResizeObserver(([entry]) => {
    width = Math.max(120, Math.round(entry.contentRect.width));
    draw();
  }).observe(picture);

  return {
    element,
    /** Shows these points, from and to these times, with these events marked. */
    update(points, from, to, events) {
      // The point that is looked at stays the same one, though older ones have gone.
      const looked = chosen === null ? null : state.points[chosen]?.at;
      state = { points, from, to, events };
      if (looked !== null) {
        const at = points.findIndex((point) => point.at === looked);
        chosen = at < 0 ? null : at;
      }
      draw();
    },
  };
}
