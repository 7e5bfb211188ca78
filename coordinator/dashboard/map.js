// The cluster as a picture: nodes by the host or rack they stand in, their devices with tiers that fill, and slots on their way.

import { attribute, el, keyed, svg, text } from "./dom.js";
import { bandwidth, bytes, duration } from "./format.js";
import { member } from "./slots.js";

/** Colours that nodes are told apart by; more nodes than that share them. */
const COLOURS = 8;
/** Moves that are drawn: those of most slots. The table has all. */
const ARCS = 24;
/** Labels that say where a node stands, widest first. */
const PLACES = ["zone", "rack", "host"];

/** Returns the name of the colour of a node, by its place among all. */
export const colourOf = (at) => `--node-${at % COLOURS}`;

/** Says how a node is, in a word. */
export function condition(node) {
  if (node.state !== "up") return { word: node.lingers ? "down, lingers" : "down", kind: "bad" };
  if (node.drains) return { word: "draining", kind: "warn" };
  if (node.cordoned) return { word: "cordoned", kind: "warn" };
  return { word: "up", kind: "good" };
}

/** Says where a node is, and whether a process of before may be answering reads by an older map: until its serving lease is over. */
function whereabouts(node) {
  if (node.state === "up") return node.lingers ? `${node.data_address}; start ${node.lingers.generation} may answer reads by an older map` : node.data_address;
  return `was at ${node.data_address}; ${node.lingers ? "may answer reads by an older map" : "serves nothing"}`;
}

/** Parts nodes by the widest place that any of them names; the narrower ones stand at each node. */
function places(nodes) {
  const widest = PLACES.find((name) => nodes.some((node) => node.labels[name]));
  const of = (node, name) => (node.labels[name] ? `${name} ${node.labels[name]}` : "");
  const narrower = PLACES.slice(PLACES.indexOf(widest) + 1);
  return {
    group: (node) => (widest ? of(node, widest) || `no ${widest}` : ""),
    rest: (node) => (widest ? narrower.map((name) => of(node, name)).filter(Boolean).join(" · ") : ""),
  };
}

/** Sums up which devices give slots to which. */
export function movesOf(slots) {
  const sums = new Map();
  for (const slot of slots) {
    for (const to of slot.filling ?? []) {
      const from = slot.replicas[0];
      const name = `${from}→${to}`;
      const sum = sums.get(name) ?? { name, from, to, slots: 0 };
      sum.slots += 1;
      sums.set(name, sum);
    }
  }
  return [...sums.values()].sort((one, other) => other.slots - one.slots);
}

function meter(tier) {
  const bar = el("span", { class: "fill" });
  const words = el("span", { class: "words" });
  const element = el("div", { class: `meter tier-${tier}`, role: "meter", "aria-valuemin": 0 }, bar, words);
  return {
    element,
    update(one, of) {
      const share = one.capacity_bytes > 0 ? one.used_bytes / one.capacity_bytes : 0;
      bar.style.setProperty("--share", share.toFixed(4));
      attribute(element, "aria-valuemax", one.capacity_bytes);
      attribute(element, "aria-valuenow", Math.min(one.used_bytes, one.capacity_bytes));
      const room = `${bytes(one.used_bytes)} of ${bytes(one.capacity_bytes)}`;
      const said = one.closed ? `${room}, failed` : room;
      attribute(element, "aria-valuetext", said);
      attribute(element, "aria-label", `${of} ${tier} tier`);
      attribute(element, "title", `${tier} tier: ${said}, ${one.blocks} blocks`);
      text(words, said);
    },
  };
}

function deviceView(light) {
  const name = el("span", { class: "device-name" });
  const work = el("span", { class: "device-work" });
  const tiers = el("div", { class: "tiers" });
  const primary = el("span", { class: "primary" });
  const replica = el("span", { class: "replica" });
  const share = el("div", { class: "slot-share", "aria-hidden": "true" }, primary, replica);
  const slots = el("span", { class: "device-slots" });
  const element = el("li", { class: "device", tabindex: 0 }, el("div", { class: "device-head" }, name, work), tiers, el("div", { class: "slot-line" }, share, slots));
  const keep = keyed(tiers, (tier) => tier.tier, (tier) => {
    const view = meter(tier.tier);
    return { element: view.element, update: (one) => view.update(one, name.textContent) };
  });
  let own = null;
  for (const event of ["pointerenter", "focus"]) element.addEventListener(event, () => light(own));
  for (const event of ["pointerleave", "blur"]) element.addEventListener(event, () => light(null));
  return {
    element,
    update({ device, rates, most }) {
      own = device.device;
      element.dataset.device = own;
      text(name, `${device.device} ${device.kind}`);
      attribute(name, "title", device.kind);
      const parts = [];
      if (rates) parts.push(`↓ ${bandwidth(rates.read)}`, `↑ ${bandwidth(rates.written)}`);
      if (device.traffic?.fetch_p99_us) parts.push(`p99 ${duration(device.traffic.fetch_p99_us)}`);
      text(work, device.traffic ? parts.join("  ") : "no report yet");
      keep(device.tiers);
      const others = device.slots - device.primary_slots;
      primary.style.setProperty("--share", (most > 0 ? device.primary_slots / most : 0).toFixed(4));
      replica.style.setProperty("--share", (most > 0 ? others / most : 0).toFixed(4));
      const filling = device.filling_slots > 0 ? ` · filling ${device.filling_slots}` : "";
      text(slots, `${device.primary_slots} primary · ${others} replica${filling}`);
      element.classList.toggle("filling", device.filling_slots > 0);
    },
  };
}

function nodeView(light) {
  const name = el("h4", {});
  const state = el("span", {});
  const address = el("p", { class: "soft address" });
  const devices = el("ul", { class: "devices" });
  const element = el("li", { class: "node" }, el("div", { class: "node-head" }, el("span", { class: "swatch", "aria-hidden": "true" }), name, state), address, devices);
  const keep = keyed(devices, (one) => one.device.device, () => deviceView(light));
  return {
    element,
    update({ node, colour, where, devices: own }) {
      const { word, kind } = condition(node);
      element.style.setProperty("--node", `var(${colour})`);
      attribute(element, "class", `node ${kind}`);
      text(name, node.name);
      text(state, word);
      attribute(state, "class", `chip ${kind}`);
      text(address, [where, whereabouts(node)].filter(Boolean).join(" · "));
      keep(own);
    },
  };
}

function groupView(light) {
  const title = el("h3", { class: "place" });
  const nodes = el("ul", { class: "nodes" });
  const element = el("div", { class: "group" }, title, nodes);
  const keep = keyed(nodes, (one) => one.node.id, () => nodeView(light));
  return {
    element,
    update(group) {
      text(title, group.name);
      attribute(title, "hidden", group.name === "");
      keep(group.nodes);
    },
  };
}

/** Makes the picture; `light` hears which device is looked at. */
export function clusterMap(container, light) {
  const groups = el("div", { class: "groups" });
  const arcs = svg("svg", { class: "arcs", "aria-hidden": "true" });
  const whole = el("div", { class: "whole" }, groups, arcs);
  container.append(whole);
  const keep = keyed(groups, (group) => group.name, () => groupView(light));
  let moves = [];

  function draw() {
    const box = whole.getBoundingClientRect();
    attribute(arcs, "viewBox", `0 0 ${box.width} ${box.height}`);
    const rows = new Map([...container.querySelectorAll(".device")].map((row) => [row.dataset.device, row.getBoundingClientRect()]));
    arcs.replaceChildren(...moves.slice(0, ARCS).flatMap((move) => {
      const [from, to] = [rows.get(move.from), rows.get(move.to)];
      if (!from || !to) return [];
      const below = Math.abs(from.left - to.left) < 20;
      const start = { x: (below || from.left > to.left ? from.left : from.right) - box.left, y: from.top + from.height / 2 - box.top };
      const end = { x: (below || from.left < to.left ? to.left : to.right) - box.left, y: to.top + to.height / 2 - box.top };
      const bend = below ? -22 : (end.x - start.x) / 2;
      const d = `M${start.x} ${start.y}C${start.x + bend} ${start.y} ${below ? end.x + bend : end.x - bend} ${end.y} ${end.x} ${end.y}`;
      return [
        svg("path", { class: "arc", d, "stroke-width": 1.5 + Math.min(3, Math.log10(1 + move.slots)) }),
        svg("circle", { class: "arc-end", cx: end.x, cy: end.y, r: 3.5 }),
      ];
    }));
  }
  new ResizeObserver(draw).observe(whole);

  return {
    /** Shows nodes with their devices, and slots on their way. */
    update(cluster, rates, flows) {
      moves = flows;
      const most = Math.max(0, ...cluster.devices.map((device) => device.slots));
      const named = new Map();
      const { group, rest } = places(cluster.nodes);
      cluster.nodes.forEach((node, at) => {
        const name = group(node);
        if (!named.has(name)) named.set(name, { name, nodes: [] });
        const own = cluster.devices.filter((device) => member(device.device) === String(node.id));
        const devices = own.map((device) => ({ device, rates: rates.get(device.device), most }));
        named.get(name).nodes.push({ node, colour: colourOf(at), where: rest(node), devices });
      });
      keep([...named.values()].sort((one, other) => one.name.localeCompare(other.name, undefined, { numeric: true })));
      draw();
    },
  };
}
