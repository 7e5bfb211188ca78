// The page: who is signed in, what is asked how often, and which panel gets what.

import { Api, ApiError } from "./api.js";
import { chart } from "./chart.js";
import { attribute, el, keyed, text } from "./dom.js";
import { eventLog } from "./events.js";
import * as as from "./format.js";
import { History } from "./history.js";
import { clusterMap, colourOf, condition, movesOf } from "./map.js";
import { scalingView } from "./scaling.js";
import { comb } from "./slots.js";
import { coordinatorsTable, devicesTable, figuresTable, hotTable, movesTable, strategiesTable, tenantsTable } from "./tables.js";
import { themes } from "./theme.js";

const TOKEN = "kvhive.token";
/** How often the cluster is looked at, and the tenants; slots while some move. */
const LOOK_MS = 2000;
const TENANTS_MS = 5000;
const SLOTS_MS = 1500;
/** How often while nobody looks at the page. */
const HIDDEN_MS = 10_000;
/** The least time that charts show. */
const LEAST_MS = 60_000;
/** Rows of the table of figures. */
const FIGURES = 20;

const $ = (id) => document.getElementById(id);

const nodes = new Map();
const names = {
  name: (id) => nodes.get(id)?.name ?? "?",
  state: (id) => (nodes.has(id) ? condition(nodes.get(id)).word : "?"),
};
let session = null;
let slots = { list: [], epoch: -1, at: 0, moving: 0 };

const charts = [
  chart({ title: "Hit rate", most: 1, format: as.percent, series: [{ name: "keys covered", line: 1, value: (point) => point.hitRate }] }),
  chart({
    title: "Blocks",
    format: as.perSecond,
    series: [{ name: "fetched", line: 1, value: (point) => point.fetched }, { name: "stored", line: 2, value: (point) => point.stored }],
  }),
  chart({
    title: "Bandwidth",
    base: 2,
    format: as.bandwidth,
    series: [{ name: "read", line: 1, value: (point) => point.read }, { name: "written", line: 2, value: (point) => point.written }],
  }),
  chart({
    title: "Fetch latency",
    format: as.duration,
    series: [{ name: "p99", line: 1, value: (point) => point.p99 }, { name: "p50", line: 2, value: (point) => point.p50 }],
  }),
];
$("charts").append(...charts.map((one) => one.element));

let history = new History();
const picture = comb();
$("slots").append(picture.element);
const map = clusterMap($("map"), (device) => picture.light(device));
const tables = {
  figures: figuresTable(),
  devices: devicesTable({ devices: { get: (name) => history.devices.get(name) } }, names),
  moves: movesTable(names),
  coordinators: coordinatorsTable(),
  tenants: tenantsTable(),
  hot: hotTable(names),
  strategies: strategiesTable(),
};
for (const [id, one] of Object.entries(tables)) $(id).append(one.element);
const showScaling = scalingView($("scaling"));
const events = eventLog({ list: $("events"), state: $("events-state"), kinds: $("events-kind") });

const facts = keyed($("facts"), ([name]) => name, ([name]) => {
  const value = el("dd", {});
  return { element: el("div", {}, el("dt", {}, name), value), update: ([, shown]) => text(value, shown) };
});

/** Says in a sentence how the cluster is. */
function health(cluster) {
  const down = cluster.nodes.filter((node) => node.state !== "up").map((node) => node.name);
  const lost = cluster.coordinators.filter((one) => one.role === "unreachable").map((one) => one.name);
  const drains = cluster.nodes.filter((node) => node.drains).map((node) => node.name);
  const cordoned = cluster.nodes.filter((node) => node.cordoned && !node.drains).map((node) => node.name);
  const bad = [];
  if (cluster.slots.unavailable > 0) bad.push(`${cluster.slots.unavailable} slots have no device`);
  if (!cluster.leader) bad.push("no coordinator leads");
  if (bad.length > 0) return { kind: "bad", words: bad.join("; ") };
  const few = (list) => (list.length > 3 ? `${list.slice(0, 3).join(", ")} and ${list.length - 3} more` : list.join(", "));
  const warn = [];
  if (down.length > 0) warn.push(`down: ${few(down)}`);
  if (lost.length > 0) warn.push(`unreachable: ${few(lost)}`);
  if (drains.length > 0) warn.push(`draining: ${few(drains)}`);
  if (cordoned.length > 0) warn.push(`cordoned: ${few(cordoned)}`);
  if (cluster.slots.moving > 0) warn.push(`${cluster.slots.moving} slots on their way`);
  return warn.length > 0 ? { kind: "warn", words: warn.join("; ") } : { kind: "good", words: "whole" };
}

function trouble(words, ...more) {
  const place = $("trouble");
  attribute(place, "hidden", words === null);
  if (words !== null && place.dataset.words !== words) place.replaceChildren(el("p", {}, words), ...more);
  place.dataset.words = words ?? "";
}

/** The other coordinators' pages: only their own may ask them. */
function others() {
  if (!session?.cluster) return [];
  const links = session.cluster.coordinators
    .filter((one) => one.admin_address && one.admin_address !== location.host)
    .map((one) => el("li", {}, el("a", { href: `${location.protocol}//${one.admin_address}/`, rel: "noreferrer" }, `${one.name} at ${one.admin_address}`)));
  if (links.length === 0) return [];
  return [el("p", {}, "A page may ask only the coordinator that it came from. The others have the same page:"), el("ul", {}, ...links)];
}

function showTime() {
  const range = Number(document.querySelector("input[name=range]:checked").value) * 1000;
  const to = Date.now();
  const points = history.since(to - range);
  // A page that was just opened does not show half an hour of nothing.
  const from = Math.max(to - range, Math.min(to - LEAST_MS, points[0]?.at ?? to));
  for (const one of charts) one.update(points, from, to, events.marks());
  const every = Math.max(1, Math.ceil(points.length / FIGURES));
  tables.figures.update(points.filter((_, at) => (points.length - 1 - at) % every === 0).reverse());
}

function showSlots(cluster) {
  const colours = new Map(cluster.nodes.map((node, at) => [String(node.id), colourOf(at)]));
  picture.update(slots.list, colours, new Map(cluster.nodes.map((node) => [String(node.id), node.name])));
}

function show(cluster) {
  nodes.clear();
  for (const node of cluster.nodes) nodes.set(String(node.id), node);
  document.title = cluster.name ? `${cluster.name} – kvhive` : "kvhive";
  text($("cluster-name"), cluster.name ?? "");
  const { kind, words } = health(cluster);
  text($("health"), words);
  attribute($("health"), "class", `health ${kind}`);
  const used = cluster.devices.flatMap((device) => device.tiers);
  const sum = (name) => used.reduce((all, tier) => all + tier[name], 0);
  facts([
    ["leader", cluster.leader ?? "none"],
    ["term", cluster.term],
    ["epoch", cluster.epoch],
    ["nodes", `${cluster.nodes.filter((node) => node.state === "up").length} of ${cluster.nodes.length}`],
    ["in use", `${as.bytes(sum("used_bytes"))} of ${as.bytes(sum("capacity_bytes"))}`],
  ]);
  showTime();
  const moves = movesOf(slots.list);
  map.update(cluster, history.devices, moves);
  attribute($("moves"), "hidden", moves.length === 0);
  tables.moves.update(moves);
  tables.devices.update(cluster.devices);
  const seats = new Map((session.group?.coordinators ?? []).map((one) => [one.peer, one]));
  tables.coordinators.update(cluster.coordinators.map((one) => ({ ...one, seat: seats.get(one.peer) })));
  const chosen = cluster.devices.flatMap((device) =>
    device.strategies.map((one) => ({ ...one, device: device.device, key: [device.device, one.tenant, one.frame_bytes].join() })));
  attribute($("strategies-panel"), "hidden", chosen.length === 0);
  tables.strategies.update(chosen);
  showSlots(cluster);
}

async function everyPage(api, path, field) {
  const all = [];
  let after = "";
  do {
    const page = await api.get(`${path}${after}`);
    all.push(...page[field]);
    after = page.next === null ? null : `?after=${page.next}`;
  } while (after !== null);
  return all;
}

async function look(api) {
  let cluster;
  let stale = null;
  try {
    cluster = await api.get("v1/cluster");
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 503) throw error;
    stale = error.message;
    cluster = await api.get("v1/cluster?consistency=stale");
  }
  const now = Date.now();
  if (session?.api !== api) return;
  session.cluster = cluster;
  history.add(now, cluster);
  const moves = cluster.slots.moving > 0 || slots.moving > 0;
  if (cluster.epoch !== slots.epoch || (moves && now - slots.at > SLOTS_MS)) {
    const answer = await api.get(`v1/slots?full=true${stale ? "&consistency=stale" : ""}`);
    slots = { list: answer.slots, epoch: answer.epoch, at: now, moving: answer.moving };
  }
  if (session?.api !== api) return;
  show(cluster);
  if (now - session.tenantsAt > TENANTS_MS) {
    session.tenantsAt = now;
    if (!stale) tables.tenants.update(await everyPage(api, "v1/tenants", "tenants"));
    if (!stale) tables.hot.update((await api.get("v1/stats")).hot_slots);
    if (!stale) showScaling(await api.get("v1/scaling"));
    session.group = stale ? null : await api.get("v1/raft");
  }
  trouble(stale ? `The leader does not answer (${stale}). What follows is what this coordinator has itself; figures of devices are missing.` : null);
  session.since = null;
}

async function keepLooking(api) {
  while (session?.api === api) {
    const begun = Date.now();
    if (!session.paused) {
      try {
        await look(api);
      } catch (error) {
        if (session?.api !== api) return;
        if (!(error instanceof ApiError)) throw error;
        if (error.status === 401) return signOut("This token is not accepted any more.");
        if (error.status === 0) {
          session.since ??= Date.now();
          trouble(`${location.host} does not answer since ${as.clock(session.since)}: ${error.message}. What you see is old; asking again every ${LOOK_MS / 1000} s.`, ...others());
        } else {
          trouble(`${location.host}: ${error.message}`);
        }
      }
    }
    const wanted = document.hidden ? HIDDEN_MS : LOOK_MS;
    await new Promise((done) => setTimeout(done, Math.max(250, wanted - (Date.now() - begun))));
  }
}

function signOut(why = "") {
  session?.stop.abort();
  session = null;
  sessionStorage.removeItem(TOKEN);
  history = new History();
  slots = { list: [], epoch: -1, at: 0, moving: 0 };
  events.clear();
  facts([]);
  text($("health"), "");
  attribute($("health"), "class", "health");
  text($("cluster-name"), "");
  document.title = "kvhive";
  trouble(null);
  for (const id of ["panels", "pause", "sign-out"]) attribute($(id), "hidden", true);
  attribute($("sign-in"), "hidden", null);
  text($("sign-in-trouble"), why);
  $("token").value = "";
  $("token").focus();
}

function begin(token) {
  const api = new Api(token);
  const stop = new AbortController();
  session = { api, stop, paused: false, cluster: null, group: null, tenantsAt: 0, since: null };
  sessionStorage.setItem(TOKEN, token);
  attribute($("sign-in"), "hidden", true);
  for (const id of ["panels", "pause", "sign-out"]) attribute($(id), "hidden", null);
  pause(false);
  events.follow(api, stop.signal, () => signOut("This token is not accepted any more."));
  keepLooking(api);
}

function pause(paused) {
  session.paused = paused;
  text($("pause"), paused ? "Go on" : "Pause");
  attribute($("pause"), "aria-pressed", String(paused));
}

$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = $("token").value.trim();
  text($("sign-in-trouble"), "");
  // A header takes no other characters; no token has them.
  if (!/^[\x21-\x7e]+$/.test(token)) return text($("sign-in-trouble"), "A token is one word of plain characters.");
  try {
    await new Api(token).get("v1/cluster?consistency=stale");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const why = error.status === 401 ? "This coordinator does not know that token." : `${location.host}: ${error.message}.`;
    $("token").focus();
    return text($("sign-in-trouble"), why);
  }
  begin(token);
  $("content").focus({ preventScroll: true });
});
$("sign-out").addEventListener("click", () => signOut());
$("pause").addEventListener("click", () => pause(!session.paused));
for (const choice of document.querySelectorAll("input[name=range]")) choice.addEventListener("change", showTime);
themes($("theme"), () => picture.redraw());

const kept = sessionStorage.getItem(TOKEN);
if (kept) begin(kept);
else signOut();
