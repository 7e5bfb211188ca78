// What the figures were, as long as the page is open. Nodes count since their start; rates are differences between two looks.

const COUNTERS = ["matched_keys", "covered_keys", "fetched_blocks", "stored_blocks", "evicted_blocks", "read_bytes", "written_bytes"];

/** Points that are kept: half an hour of looks every two seconds. */
const KEPT = 900;
/** Two looks that lie farther apart than this say nothing about the time between: the page slept. */
const LONGEST_STEP_MS = 30_000;

/** Counters of one look against those of the look before: a device that began anew counts from 0. */
function step(before, now) {
  const grown = Object.fromEntries(COUNTERS.map((name) => [name, 0]));
  const known = new Map(before.map((device) => [device.device, device.traffic]));
  let compared = 0;
  for (const device of now) {
    const last = known.get(device.device);
    if (!device.traffic || !last) continue;
    compared += 1;
    const restarted = COUNTERS.some((name) => device.traffic[name] < last[name]);
    for (const name of COUNTERS) grown[name] += device.traffic[name] - (restarted ? 0 : last[name]);
  }
  return compared > 0 ? grown : null;
}

/** The figures over time. */
export class History {
  constructor() {
    this.points = [];
    this.last = null;
    /** Rates of each device in the last step, by its name. */
    this.devices = new Map();
  }

  /** Takes in an answer of `/v1/cluster` that was had at `at` milliseconds. */
  add(at, cluster) {
    const devices = cluster.devices;
    const seconds = this.last ? (at - this.last.at) / 1000 : 0;
    const comparable = seconds > 0 && seconds * 1000 <= LONGEST_STEP_MS;
    const grown = comparable ? step(this.last.devices, devices) : null;
    this.devices = new Map();
    if (comparable) {
      for (const device of devices) {
        const own = step(this.last.devices, [device]);
        if (own) this.devices.set(device.device, { read: own.read_bytes / seconds, written: own.written_bytes / seconds });
      }
    }
    this.last = { at, devices };
    const told = devices.filter((device) => device.traffic);
    const most = (name) => {
      const all = told.map((device) => device.traffic[name]).filter((value) => value !== null && value !== undefined);
      return all.length > 0 ? Math.max(...all) : null;
    };
    const rate = (name) => (grown ? grown[name] / seconds : null);
    this.points.push({
      at,
      hitRate: grown && grown.matched_keys > 0 ? grown.covered_keys / grown.matched_keys : null,
      asked: rate("matched_keys"),
      fetched: rate("fetched_blocks"),
      stored: rate("stored_blocks"),
      evicted: rate("evicted_blocks"),
      read: rate("read_bytes"),
      written: rate("written_bytes"),
      p50: most("fetch_p50_us"),
      p99: most("fetch_p99_us"),
    });
    if (this.points.length > KEPT) this.points.shift();
  }

  /** Returns the points since a time. */
  since(at) {
    return this.points.filter((point) => point.at >= at);
  }
}
