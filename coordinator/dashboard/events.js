// Events as they happen. The stream breaks off now and then; it goes on after the last event that came.

import { ApiError } from "./api.js";
import { attribute, el, text } from "./dom.js";
import { clock, moment } from "./format.js";

/** Events that are kept and shown. */
const KEPT = 400;
/** Events from before the page was opened. */
const EARLIER = 200;
/** Kinds that are trouble, and kinds that are worth a mark in charts. */
const BAD = new Set(["member-down"]);
const MARKED = new Set(["member-down", "member-left", "member-removed", "member-registered", "leader-elected", "drain-begun", "drain-ended", "drain-finished"]);

function subject(event) {
  const of = event.subject;
  const parts = [];
  if (of.member) parts.push(of.member);
  if (of.tenant) parts.push(`tenant ${of.tenant}`);
  if (of.coordinator) parts.push(of.coordinator);
  if (of.engine) parts.push(of.engine);
  if (of.slots) parts.push(`${of.slots} slots`);
  return parts.join(" · ");
}

function facts(event) {
  return Object.entries(event.facts).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ");
}

function row(event) {
  const more = facts(event);
  return el("li", { class: BAD.has(event.kind) ? "event bad" : "event" },
    el("time", { datetime: new Date(event.at_ms).toISOString(), title: moment(event.at_ms) }, clock(event.at_ms)),
    el("span", { class: "event-kind" }, event.kind),
    el("span", { class: "event-subject" }, subject(event)),
    el("p", { class: "event-why" }, [event.reason, more].filter(Boolean).join(" — ")));
}

/** Keeps the list of events, and those of them that charts mark. */
export function eventLog({ list, state, kinds }) {
  let events = [];
  let lost = 0;
  let asked = false;
  const known = new Set();

  function draw() {
    asked = false;
    const shown = events.filter((event) => kinds.value === "" || event.kind === kinds.value);
    const rows = shown.map(row).reverse();
    if (lost > 0) rows.push(el("li", { class: "event soft" }, `${lost} older ones are not remembered any more.`));
    if (rows.length === 0) rows.push(el("li", { class: "event soft" }, "None."));
    list.replaceChildren(...rows);
  }

  function later() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(draw);
  }

  kinds.addEventListener("change", draw);

  function take(sent) {
    let data;
    try {
      data = JSON.parse(sent.data);
    } catch {
      return;
    }
    if (sent.kind === "gap") {
      lost += data.oldest - data.after - 1;
      return later();
    }
    if (events.length > 0 && data.sequence <= events.at(-1).sequence) return;
    events.push(data);
    if (events.length > KEPT) events = events.slice(-KEPT);
    if (!known.has(data.kind)) {
      known.add(data.kind);
      kinds.append(el("option", { value: data.kind }, data.kind));
    }
    later();
  }

  return {
    /** Returns the events that charts mark. */
    marks: () => events.filter((event) => MARKED.has(event.kind)),
    /** Follows until `signal` aborts; `refused` hears of a token that is not accepted. */
    async follow(api, signal, refused) {
      let pause = 1;
      let after = null;
      while (!signal.aborted) {
        try {
          if (after === null) after = Math.max(0, (await api.get("v1/events?limit=1")).newest - EARLIER);
          text(state, "live");
          attribute(state, "class", "live");
          await api.follow("v1/events/stream", after, signal, (sent) => {
            pause = 1;
            take(sent);
            after = events.at(-1)?.sequence ?? after;
          });
        } catch (error) {
          if (signal.aborted) return;
          if (error instanceof ApiError && error.status === 401) return refused();
          text(state, `broken off: ${error.message}; trying again in ${pause} s`);
          attribute(state, "class", "soft");
        }
        await new Promise((done) => setTimeout(done, pause * 1000));
        pause = Math.min(15, pause * 2);
      }
    },
    /** Forgets everything. */
    clear() {
      events = [];
      lost = 0;
      list.replaceChildren();
      text(state, "");
    },
  };
}
