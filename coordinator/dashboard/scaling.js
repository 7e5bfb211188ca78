// What the autoscaler thinks of the cluster's size, and why.

import { attribute, el, keyed, text } from "./dom.js";
import * as as from "./format.js";
import { table } from "./tables.js";

const FIGURES = { rate: as.perSecond, growth: as.bandwidth, reuse: as.percent };
const NAMES = { rate: "keys asked", growth: "new bytes", reuse: "share covered" };

function span(seconds) {
  if (!seconds) return "–";
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Number((seconds / 3600).toFixed(1))} h`;
}

function share() {
  const bar = el("span", { class: "fill" });
  const words = el("span", { class: "words" });
  const meter = el("div", { class: "meter share", role: "meter", "aria-valuemin": 0, "aria-valuemax": 1 }, bar, words);
  const name = el("dt", {});
  return {
    element: el("div", {}, name, el("dd", {}, meter)),
    update([label, value]) {
      text(name, label);
      attribute(meter, "aria-label", label);
      attribute(meter, "aria-valuenow", value.toFixed(4));
      attribute(meter, "aria-valuetext", as.percent(value));
      bar.style.setProperty("--share", value.toFixed(4));
      text(words, as.percent(value));
    },
  };
}

/** Makes the panel's inside. */
export function scalingView(container) {
  const size = el("p", { class: "size" });
  const reason = el("p", {});
  const shares = el("dl", { class: "shares" });
  const policy = el("p", { class: "soft" });
  const forecast = table({
    caption: "Load to come",
    key: (row) => `${row.figure} ${row.ahead_s}`,
    columns: [
      { name: "Figure", value: (row) => row.figure, show: (row) => NAMES[row.figure] ?? row.figure },
      { name: "In", value: (row) => row.ahead_s, show: (row) => span(row.ahead_s), figure: true },
      { name: "Expected", value: (row) => row.value, show: (row) => (FIGURES[row.figure] ?? as.count)(row.value), figure: true },
      { name: "9 of 10 times within", value: (row) => row.low, show: (row) => row.high === null ? "–" : `${(FIGURES[row.figure] ?? as.count)(row.low)} to ${(FIGURES[row.figure] ?? as.count)(row.high)}`, figure: true },
      { name: "Held", value: (row) => row.coverage, show: (row) => as.percent(row.coverage), figure: true },
      { name: "Comes back", value: (row) => row.season_s, show: (row) => span(row.season_s), figure: true },
    ],
    none: "Nothing is foreseen yet.",
  });
  container.append(size, reason, shares, policy, el("details", {}, el("summary", {}, "Load to come"), forecast.element));
  const keep = keyed(shares, ([label]) => label, share);
  return (scaling) => {
    const said = scaling.recommendation;
    const wanted = said ? `, ${said.size} recommended` : "";
    text(size, `${scaling.members} ${scaling.members === 1 ? "member" : "members"}${wanted}${scaling.target !== scaling.members ? `, target ${scaling.target}` : ""}`);
    text(reason, said ? said.reason : "No leader has looked at load for long enough yet.");
    keep(said ? [
      ["with half the members", said.hit_rate_half],
      ["as it is", said.hit_rate],
      ["with twice the members", said.hit_rate_double],
      ["expected at the recommended size", said.hit_rate_expected],
      ["expected at the ceiling", said.hit_rate_ceiling],
    ] : []);
    const own = scaling.policy;
    const mode = { off: "off: nothing is recommended", advise: "advise: a dry run", act: "act: the cluster is given that size" }[own.mode] ?? own.mode;
    text(policy, `Mode ${mode}. ${own.floor} to ${own.ceiling} members${own.manual === null ? "" : `, ${own.manual} asked for by an operator`}; `
      + `keeps ${as.percent(own.keep)} of what the most members would cover; grows at most every ${span(own.up_cooldown_s)}, shrinks after ${span(own.down_cooldown_s)}; `
      + `looks ${span(own.look_ahead_s)} ahead. From ${scaling.observations} looks of five minutes.`);
    forecast.update(scaling.forecast);
  };
}
