// Figures as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

function digits(value) {
  if (value >= 100) return value.toFixed(0);
  if (value >= 10) return value.toFixed(1);
  return value.toFixed(2);
}

/** Writes bytes in the unit that fits them. */
export function bytes(count) {
  if (count === null || count === undefined) return "–";
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit + 1 < UNITS.length) {
    value /= 1024;
    unit += 1;
  }
  return unit === 0 ? `${Math.round(value)} B` : `${digits(value)} ${UNITS[unit]}`;
}

/** Writes bytes a second. */
export function bandwidth(perSecond) {
  return perSecond === null || perSecond === undefined ? "–" : `${bytes(perSecond)}/s`;
}

/** Writes a number that may be large. */
export function count(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10_000) return Number.isInteger(value) ? String(value) : value.toFixed(value < 10 ? 1 : 0);
  if (value < 1e6) return `${digits(value / 1e3)} k`;
  if (value < 1e9) return `${digits(value / 1e6)} M`;
  return `${digits(value / 1e9)} G`;
}

/** Writes so many a second. */
export function perSecond(value) {
  return value === null || value === undefined ? "–" : `${count(value)}/s`;
}

/** Writes a share of one as a percentage. */
export function percent(share) {
  return share === null || share === undefined ? "–" : `${(100 * share).toFixed(1)} %`;
}

/** Writes microseconds in the unit that fits them. */
export function duration(us) {
  if (us === null || us === undefined) return "–";
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1e6) return `${digits(us / 1e3)} ms`;
  return `${digits(us / 1e6)} s`;
}

/** Writes a time of day, as this browser's owner tells it. */
export function clock(ms) {
  const at = new Date(ms);
  const two = (value) => String(value).padStart(2, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** Writes a day and a time in full, with the zone. */
export function moment(ms) {
  return new Date(ms).toISOString().replace("T", " ");
}

/** Returns round numbers for an axis from 0 to `most`; in powers of two where bytes are counted. */
export function ticks(most, base = 10) {
  if (!(most > 0)) return [0, 1];
  const scale = base === 2 ? 1024 ** Math.floor(Math.log(most) / Math.log(1024)) : 1;
  const value = most / scale;
  const power = 10 ** Math.floor(Math.log10(value / 2));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => value / one <= 4) * scale;
  const all = [];
  for (let at = 0; at < most + step * 0.999; at += step) all.push(at);
  return all;
}
