// The slots as a comb: a cell each, in the colour of the node that is primary. What is on the move or has no home stands out.

import { attribute, el, text } from "./dom.js";

const COLUMNS = 64;

/** The node of a device `member/index`. */
export const member = (device) => device.split("/")[0];

/** Makes the comb. */
export function comb() {
  const canvas = el("canvas", { role: "img", tabindex: 0, "aria-label": "Slots", class: "comb" });
  const said = el("p", { class: "said", role: "status" });
  const probe = el("span", { "aria-hidden": "true" });
  const element = el("div", { class: "comb-frame" }, canvas, said, probe);
  let slots = [];
  let colours = new Map();
  let names = new Map();
  let chosen = null;
  let lit = null;

  const width = () => Math.max(200, canvas.clientWidth);
  const cell = () => {
    const wide = width() / (COLUMNS + 0.5);
    return { wide, high: wide * 0.866, side: wide / Math.sqrt(3) };
  };
  const rows = () => Math.ceil(slots.length / COLUMNS);

  /** A canvas knows no variables: an element that wears the colour says what it comes to. */
  function colour(name) {
    probe.style.setProperty("color", `var(${name})`);
    return getComputedStyle(probe).color;
  }

  function draw() {
    if (slots.length === 0 || canvas.clientWidth === 0) return;
    const { wide, high, side } = cell();
    const tall = (rows() - 1) * high + 2 * side;
    const scale = devicePixelRatio || 1;
    canvas.width = Math.round(width() * scale);
    canvas.height = Math.round(tall * scale);
    canvas.style.setProperty("aspect-ratio", `${width()} / ${tall}`);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const named = new Map();
    const of = (name) => {
      if (!named.has(name)) named.set(name, colour(name));
      return named.get(name);
    };
    const hexagon = (centre, size) => {
      pen.beginPath();
      for (let corner = 0; corner < 6; corner += 1) {
        const angle = (Math.PI / 3) * corner + Math.PI / 6;
        pen.lineTo(centre.x + size * Math.cos(angle), centre.y + size * Math.sin(angle));
      }
      pen.closePath();
    };
    slots.forEach((slot, at) => {
      const row = Math.floor(at / COLUMNS);
      const centre = { x: wide * ((at % COLUMNS) + 0.5 + (row % 2) / 2), y: side + row * high };
      const primary = slot.replicas[0];
      const holds = lit === null || slot.replicas.some((device) => device === lit || member(device) === lit);
      pen.globalAlpha = holds ? (lit !== null && primary && primary !== lit && member(primary) !== lit ? 0.45 : 1) : 0.1;
      pen.fillStyle = of(primary ? (colours.get(member(primary)) ?? "--ink-soft") : "--bad");
      hexagon(centre, side * 0.86);
      pen.fill();
      if (slot.filling) {
        pen.globalAlpha = 1;
        pen.fillStyle = of("--ink-strong");
        pen.beginPath();
        pen.arc(centre.x, centre.y, side * 0.38, 0, 7);
        pen.fill();
      }
      if (at === chosen) {
        pen.globalAlpha = 1;
        pen.strokeStyle = of("--ink-strong");
        pen.lineWidth = 2;
        hexagon(centre, side * 1.25);
        pen.stroke();
      }
    });
    pen.globalAlpha = 1;
  }

  function describe(slot) {
    const of = (device) => `${device} (${names.get(member(device)) ?? "?"})`;
    if (slot.replicas.length === 0) return `Slot ${slot.slot}: no device holds it`;
    const [primary, ...others] = slot.replicas;
    const parts = [`Slot ${slot.slot}: primary ${of(primary)}`];
    if (others.length > 0) parts.push(`replicas ${others.map(of).join(", ")}`);
    if (slot.filling) parts.push(`${slot.filling.map(of).join(", ")} still being filled`);
    return parts.join(" · ");
  }

  function summary() {
    const moving = slots.filter((slot) => slot.filling).length;
    const homeless = slots.filter((slot) => slot.replicas.length === 0).length;
    const rest = [];
    if (homeless > 0) rest.push(`${homeless} have no device`);
    if (moving > 0) rest.push(`${moving} are being copied (a dot)`);
    return `${slots.length} slots${rest.length > 0 ? `: ${rest.join(", ")}` : ", all where they belong"}`;
  }

  function say() {
    const words = chosen === null ? summary() : describe(slots[chosen]);
    text(said, words);
    attribute(canvas, "aria-label", `${words}. Arrow keys go from slot to slot.`);
  }

  function choose(at) {
    const to = at === null || at < 0 || at >= slots.length ? null : at;
    if (to === chosen) return;
    chosen = to;
    say();
    draw();
  }

  canvas.addEventListener("pointermove", (event) => {
    const { wide, high } = cell();
    const row = Math.floor(event.offsetY / high);
    const column = Math.floor(event.offsetX / wide - (row % 2) / 2);
    choose(column < 0 || column >= COLUMNS ? null : row * COLUMNS + column);
  });
  canvas.addEventListener("pointerleave", () => choose(null));
  canvas.addEventListener("blur", () => choose(null));
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -COLUMNS, ArrowDown: COLUMNS };
    if (event.key === "Escape") return choose(null);
    if (event.key === "Home") choose(0);
    else if (event.key === "End") choose(slots.length - 1);
    else if (steps[event.key] === undefined) return;
    else if (chosen === null) choose(0);
    else if (slots[chosen + steps[event.key]]) choose(chosen + steps[event.key]);
    event.preventDefault();
  });
  new ResizeObserver(draw).observe(canvas);

  return {
    element,
    /** Shows these slots; nodes' colours and names are by their id. */
    update(list, colourOf, nameOf) {
      [slots, colours, names] = [list, colourOf, nameOf];
      if (chosen !== null && !slots[chosen]) chosen = null;
      say();
      draw();
    },
    /** Lights up the slots of a device or a member; none for all. */
    light(device) {
      if (lit === device) return;
      lit = device;
      draw();
    },
    redraw: draw,
  };
}
