// Tables that can be sorted by any column, and the tables of this page.

import { attribute, el, keyed, text } from "./dom.js";
import * as as from "./format.js";
import { member } from "./slots.js";

/**
 * Makes a table. Columns: `{ name, value(row), show(row), figure }`; `value` is what rows are sorted by, `show` the text (the value
 * itself where it is missing), `figure` whether it stands to the right, `wraps` whether it may take several lines, `kind(row)` a class for its
 * cell.
 */
export function table({ caption, columns, key, sorted = null, none = "None." }) {
  let order = sorted;
  let rows = [];
  const body = el("tbody");
  const heads = columns.map((column, at) => {
    const button = el("button", { type: "button", click: () => sort(at) }, column.name);
    return el("th", { scope: "col", class: column.figure ? "figure" : null }, button);
  });
  const empty = el("p", { class: "soft", hidden: true }, none);
  const whole = el("table", {}, el("caption", { class: "hidden" }, caption), el("thead", {}, el("tr", {}, ...heads)), body);
  const scroll = el("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: 0 }, whole);
  const element = el("div", {}, scroll, empty);
  const looks = (column) => (column.figure ? "figure" : column.wraps ? "wrap" : null);
  const keep = keyed(body, key, () => {
    const cells = columns.map((column, at) => el(at === 0 ? "th" : "td", { class: looks(column), scope: at === 0 ? "row" : null }));
    return {
      element: el("tr", {}, ...cells),
      update(row) {
        columns.forEach((column, at) => {
          text(cells[at], column.show ? column.show(row) : (column.value(row) ?? "–"));
          if (column.kind) attribute(cells[at], "class", [looks(column), column.kind(row)].filter(Boolean).join(" ") || null);
        });
      },
    };
  });

  function sort(at) {
    const descends = order?.at === at ? !order.descends : Boolean(columns[at].figure);
    order = { at, descends };
    show();
  }

  function show() {
    heads.forEach((head, at) => attribute(head, "aria-sort", order?.at === at ? (order.descends ? "descending" : "ascending") : null));
    const shown = [...rows];
    if (order) {
      const value = columns[order.at].value;
      const compare = (one, other) => {
        const [a, b] = [value(one) ?? -1, value(other) ?? -1];
        return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
      };
      shown.sort((one, other) => (order.descends ? compare(other, one) : compare(one, other)));
    }
    keep(shown);
    attribute(empty, "hidden", rows.length > 0);
    attribute(scroll, "hidden", rows.length === 0);
  }

  return {
    element,
    update(list) {
      rows = list;
      show();
    },
  };
}

const number = (name, value, show = (row) => as.count(value(row))) => ({ name, value, show, figure: true });

/** Every device, with all that the picture of the cluster shows. */
export function devicesTable(history, names) {
  const tier = (name) => ({
    name: `${name[0].toUpperCase()}${name.slice(1)} tier`,
    figure: true,
    value: (row) => row.tiers.find((one) => one.tier === name)?.used_bytes,
    show: (row) => {
      const own = row.tiers.find((one) => one.tier === name);
      return own ? `${as.bytes(own.used_bytes)} of ${as.bytes(own.capacity_bytes)}` : "–";
    },
  });
  return table({
    caption: "Devices",
    key: (row) => row.device,
    columns: [
      { name: "Device", value: (row) => row.device },
      { name: "Node", value: (row) => row.node },
      { name: "State", value: (row) => names.state(member(row.device)) },
      { name: "Kind", value: (row) => row.kind },
      number("Blocks", (row) => row.blocks),
      tier("device"),
      tier("host"),
      tier("disk"),
      number("Primary", (row) => row.primary_slots),
      number("Replica", (row) => row.slots - row.primary_slots),
      number("Filling", (row) => row.filling_slots),
      number("Hit rate", (row) => row.hit_rate, (row) => as.percent(row.hit_rate)),
      number("Read", (row) => history.devices.get(row.device)?.read, (row) => as.bandwidth(history.devices.get(row.device)?.read)),
      number("Written", (row) => history.devices.get(row.device)?.written, (row) => as.bandwidth(history.devices.get(row.device)?.written)),
      number("Wait", (row) => row.wait_us, (row) => as.duration(row.wait_us)),
      number("p50", (row) => row.traffic?.fetch_p50_us, (row) => as.duration(row.traffic?.fetch_p50_us)),
      number("p99", (row) => row.traffic?.fetch_p99_us, (row) => as.duration(row.traffic?.fetch_p99_us)),
    ],
    none: "No node has registered yet.",
  });
}

/** Slots on their way, device by device. */
export function movesTable(names) {
  const of = (device) => `${device} ${names.name(member(device))}`;
  return table({
    caption: "Slots on their way",
    key: (row) => row.name,
    columns: [
      { name: "From", value: (row) => of(row.from) },
      { name: "To", value: (row) => of(row.to) },
      number("Slots to fill", (row) => row.slots),
    ],
    none: "No slots are on their way.",
  });
}

/** The coordinators and how far each of them is. */
export function coordinatorsTable() {
  const most = (rows) => Math.max(0, ...rows.map((row) => row.committed));
  let committed = 0;
  const made = table({
    caption: "Coordinators",
    key: (row) => row.peer,
    columns: [
      { name: "Name", value: (row) => row.name },
      { name: "Role", value: (row) => row.role, kind: (row) => (row.role === "unreachable" ? "bad" : null) },
      { name: "Vote", value: (row) => (row.seat?.takes_snapshot ? `${row.seat.role}, is sent the state` : row.seat?.role) },
      number("Term", (row) => row.term),
      number("Applied", (row) => row.applied, (row) => String(row.applied)),
      number("Behind", (row) => committed - row.applied, (row) => (row.role === "unreachable" ? "–" : String(committed - row.applied))),
    ],
  });
  return {
    element: made.element,
    update(rows) {
      committed = most(rows);
      made.update(rows);
    },
  };
}

/** The tenants, whoever uses most first. */
export function tenantsTable() {
  const used = (row) => ["device", "host", "disk"].map((tier) => [tier, row[`${tier}_used_bytes`]]).filter(([, bytes]) => bytes > 0);
  return table({
    caption: "Tenants",
    key: (row) => row.id,
    sorted: { at: 2, descends: true },
    columns: [
      { name: "Name", value: (row) => row.name, show: (row) => (row.shares_with ? `${row.name} (shares with ${row.shares_with})` : row.name) },
      number("Blocks", (row) => row.blocks),
      number("Used", (row) => row.used_bytes, (row) => as.bytes(row.used_bytes)),
      { name: "By tier", value: (row) => row.device_used_bytes, show: (row) => used(row).map(([tier, bytes]) => `${tier} ${as.bytes(bytes)}`).join(", ") || "–", wraps: true },
      number("Hit rate", (row) => row.hit_rate, (row) => as.percent(row.hit_rate)),
      number("Fetched", (row) => row.fetched_blocks),
      number("Missed", (row) => row.missed_blocks),
      number("Stored", (row) => row.stored_blocks),
      number("Evicted", (row) => row.evicted_blocks),
      number("Refused", (row) => row.refused_blocks),
      { name: "Strategy", value: (row) => row.strategy, show: (row) => row.strategy ?? "each node's" },
    ],
  });
}

/** The slots that are read most. */
export function hotTable(names) {
  return table({
    caption: "Hot slots",
    key: (row) => `${row.slot} ${row.device}`,
    columns: [
      { name: "Slot", value: (row) => row.slot },
      { name: "Read of", value: (row) => row.device, show: (row) => `${row.device} ${names.name(member(row.device))}` },
      number("Replicas", (row) => row.replicas),
      number("Read, requests counted", (row) => row.read_rate, (row) => as.bandwidth(row.read_rate)),
      number("Hit rate", (row) => row.hit_rate, (row) => as.percent(row.hit_rate)),
    ],
    none: "No slot is read.",
  });
}

/** What strategies chose that choose among ways to rank. */
export function strategiesTable() {
  const rates = (row) => Object.entries(row.hit_rates).map(([name, rate]) => `${name} ${as.percent(rate)}`).join(", ");
  return table({
    caption: "What adaptive strategies chose",
    key: (row) => row.key,
    columns: [
      { name: "Device", value: (row) => row.device },
      { name: "Tenant", value: (row) => row.tenant, show: (row) => row.tenant ?? "all others" },
      { name: "Frames", value: (row) => row.frame_bytes, show: (row) => as.bytes(row.frame_bytes), figure: true },
      { name: "Ranks now", value: (row) => row.in_charge },
      { name: "Would hit", value: rates, wraps: true },
      number("Evidence", (row) => row.evidence),
      number("Switches", (row) => row.switches),
      { name: "Why", value: (row) => row.reason, wraps: true },
    ],
  });
}

/** The figures of the charts, a row a point in time. */
export function figuresTable() {
  return table({
    caption: "Figures over time",
    key: (row) => row.at,
    columns: [
      { name: "Time", value: (row) => row.at, show: (row) => as.clock(row.at) },
      number("Hit rate", (row) => row.hitRate, (row) => as.percent(row.hitRate)),
      number("Keys asked", (row) => row.asked, (row) => as.perSecond(row.asked)),
      number("Fetched", (row) => row.fetched, (row) => as.perSecond(row.fetched)),
      number("Stored", (row) => row.stored, (row) => as.perSecond(row.stored)),
      number("Evicted", (row) => row.evicted, (row) => as.perSecond(row.evicted)),
      number("Read", (row) => row.read, (row) => as.bandwidth(row.read)),
      number("Written", (row) => row.written, (row) => as.bandwidth(row.written)),
      number("Fetch p50", (row) => row.p50, (row) => as.duration(row.p50)),
      number("Fetch p99", (row) => row.p99, (row) => as.duration(row.p99)),
    ],
    none: "Nothing yet.",
  });
}

