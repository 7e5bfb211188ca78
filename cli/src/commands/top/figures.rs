//! What two looks at a cluster come to: pure. Nodes count since their start, so rates are differences; a device that began anew
//! counts from zero.

use super::look::{Device, Event, Look, Node, Slots, Tenant, Tier, Traffic};
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// What is shown, and printed by `--json`.
#[derive(Serialize, Clone, PartialEq, Debug, Default)]
pub(super) struct Figures {
    /// Milliseconds since 1970.
    pub(super) at_ms: u64,
    pub(super) name: Option<String>,
    pub(super) leader: Option<String>,
    pub(super) term: u64,
    pub(super) epoch: u64,
    pub(super) slots: Slots,
    pub(super) coordinators: Vec<CoordinatorRow>,
    pub(super) total: Rates,
    pub(super) nodes_up: usize,
    pub(super) nodes: usize,
    pub(super) devices: Vec<DeviceRow>,
    pub(super) tenants: Vec<Tenant>,
    /// The newest last.
    pub(super) events: Vec<Event>,
}

/// One coordinator.
#[derive(Serialize, Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct CoordinatorRow {
    pub(super) name: String,
    pub(super) role: String,
    /// Entries of the log that others have committed and it has not applied; none while it is unreachable.
    pub(super) behind: Option<u64>,
}

/// What was done a second; none where two looks cannot tell.
#[derive(Serialize, Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Rates {
    pub(super) hit_rate: Option<f64>,
    pub(super) matched_keys_per_s: Option<f64>,
    pub(super) fetched_blocks_per_s: Option<f64>,
    pub(super) stored_blocks_per_s: Option<f64>,
    pub(super) evicted_blocks_per_s: Option<f64>,
    pub(super) read_bytes_per_s: Option<f64>,
    pub(super) written_bytes_per_s: Option<f64>,
    /// Of the last seconds; of the slowest device where there are several.
    pub(super) fetch_p50_us: Option<u64>,
    pub(super) fetch_p99_us: Option<u64>,
}

/// One device, or a node that has none now.
#[derive(Serialize, Clone, PartialEq, Debug, Default)]
pub(super) struct DeviceRow {
    pub(super) node: String,
    /// `up`, `cordoned`, `drains` or `down`.
    pub(super) state: &'static str,
    /// `member/index`; none for a node that is down.
    pub(super) device: Option<String>,
    pub(super) tiers: Vec<Tier>,
    pub(super) primary_slots: u64,
    pub(super) replica_slots: u64,
    pub(super) filling_slots: u64,
    pub(super) rates: Rates,
    /// Its place in the cluster's own order.
    #[serde(skip)]
    at: usize,
}

impl DeviceRow {
    fn used_bytes(&self) -> u64 {
        self.tiers.iter().fold(0, |sum, tier| sum.saturating_add(tier.used_bytes))
    }
}

/// What devices are ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(super) enum Order {
    /// As they are named.
    #[default]
    Node,
    /// Whoever holds most bytes first.
    Used,
    /// Whoever covers most of what it is asked first.
    Hits,
    /// Whoever gives out most bytes first.
    Read,
    /// Whoever takes in most bytes first.
    Written,
    /// Whoever is slowest first.
    Latency,
}

impl Order {
    const ALL: [Order; 6] =
        [Order::Node, Order::Used, Order::Hits, Order::Read, Order::Written, Order::Latency];

    /// Returns the one after it.
    pub(super) fn next(self) -> Order {
        let at = Order::ALL.iter().position(|one| *one == self).unwrap_or(0);
        Order::ALL[(at + 1) % Order::ALL.len()]
    }

    /// Returns its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Order::Node => "node",
            Order::Used => "used",
            Order::Hits => "hits",
            Order::Read => "read",
            Order::Written => "written",
            Order::Latency => "latency",
        }
    }

    fn compare(self, one: &DeviceRow, other: &DeviceRow) -> Ordering {
        let most = |value: fn(&DeviceRow) -> f64| value(other).total_cmp(&value(one));
        let ordering = match self {
            Order::Node => Ordering::Equal,
            Order::Used => other.used_bytes().cmp(&one.used_bytes()),
            Order::Hits => most(|row| row.rates.hit_rate.unwrap_or(-1.0)),
            Order::Read => most(|row| row.rates.read_bytes_per_s.unwrap_or(-1.0)),
            Order::Written => most(|row| row.rates.written_bytes_per_s.unwrap_or(-1.0)),
            Order::Latency => other.rates.fetch_p99_us.cmp(&one.rates.fetch_p99_us),
        };
        ordering.then(one.at.cmp(&other.at))
    }
}

impl Figures {
    /// Says what `now` shows; rates are those since `before`.
    pub(super) fn between(before: Option<&Look>, now: &Look) -> Figures {
        let seconds = before.map_or(0.0, |before| now.at_ms.saturating_sub(before.at_ms) as f64 / 1000.0);
        let earlier: BTreeMap<&str, Traffic> = before
            .filter(|_| seconds > 0.0)
            .into_iter()
            .flat_map(|look| &look.cluster.devices)
            .filter_map(|device| Some((device.device.as_str(), device.traffic?)))
            .collect();
        let cluster = &now.cluster;
        let grown = |device: &Device| {
            let (now, before) = (device.traffic?, earlier.get(device.device.as_str())?);
            Some(grown(before, &now))
        };
        let steps: Vec<Option<Traffic>> = cluster.devices.iter().map(grown).collect();
        let rows = cluster.devices.iter().zip(&steps).enumerate().map(|(at, (device, step))| {
            let node = cluster.nodes.iter().find(|node| node.name == device.node);
            DeviceRow {
                node: device.node.clone(),
                state: node.map_or("up", state),
                device: Some(device.device.clone()),
                tiers: device.tiers.clone(),
                primary_slots: device.primary_slots,
                replica_slots: device.slots.saturating_sub(device.primary_slots),
                filling_slots: device.filling_slots,
                rates: Rates::of(step.as_ref(), seconds).with(device.traffic.iter()),
                at,
            }
        });
        let mut devices: Vec<DeviceRow> = rows.collect();
        let gone = cluster.nodes.iter().filter(|node| state(node) == "down");
        devices.extend(gone.map(|node| DeviceRow {
            node: node.name.clone(),
            state: "down",
            at: cluster.devices.len(),
            ..DeviceRow::default()
        }));
        let mut tenants = now.tenants.clone();
        tenants.sort_by_key(|tenant| std::cmp::Reverse(tenant.used_bytes));
        let committed = cluster.coordinators.iter().map(|one| one.committed).max().unwrap_or(0);
        Figures {
            at_ms: now.at_ms,
            name: cluster.name.clone(),
            leader: cluster.leader.clone(),
            term: cluster.term,
            epoch: cluster.epoch,
            slots: cluster.slots,
            coordinators: cluster
                .coordinators
                .iter()
                .map(|one| CoordinatorRow {
                    name: one.name.clone(),
                    role: one.role.clone(),
                    behind: (one.role != "unreachable").then(|| committed.saturating_sub(one.applied)),
                })
                .collect(),
            total: Rates::of(sum(&steps).as_ref(), seconds)
                .with(cluster.devices.iter().filter_map(|device| device.traffic.as_ref())),
            nodes_up: cluster.nodes.iter().filter(|node| state(node) != "down").count(),
            nodes: cluster.nodes.len(),
            devices,
            tenants,
            events: now.events.clone(),
        }
    }

    /// Puts the devices in this order.
    pub(super) fn sort(&mut self, order: Order) {
        self.devices.sort_by(|one, other| order.compare(one, other));
    }
}

fn state(node: &Node) -> &'static str {
    match (node.state.as_str(), node.drains) {
        ("up", false) if node.cordoned => "cordoned",
        ("up", false) => "up",
        ("up", true) => "drains",
        _ => "down",
    }
}

/// Returns what was counted between two looks at a device.
fn grown(before: &Traffic, now: &Traffic) -> Traffic {
    let pairs = |traffic: &Traffic| {
        [
            traffic.matched_keys,
            traffic.covered_keys,
            traffic.fetched_blocks,
            traffic.stored_blocks,
            traffic.evicted_blocks,
            traffic.read_bytes,
            traffic.written_bytes,
        ]
    };
    let (before, now) = (pairs(before), pairs(now));
    let restarted = before.iter().zip(&now).any(|(before, now)| now < before);
    let grown = |at: usize| if restarted { now[at] } else { now[at] - before[at] };
    Traffic {
        matched_keys: grown(0),
        covered_keys: grown(1),
        fetched_blocks: grown(2),
        stored_blocks: grown(3),
        evicted_blocks: grown(4),
        read_bytes: grown(5),
        written_bytes: grown(6),
        fetch_p50_us: None,
        fetch_p99_us: None,
    }
}

fn sum(steps: &[Option<Traffic>]) -> Option<Traffic> {
    steps.iter().flatten().copied().reduce(|sum, more| Traffic {
        matched_keys: sum.matched_keys.saturating_add(more.matched_keys),
        covered_keys: sum.covered_keys.saturating_add(more.covered_keys),
        fetched_blocks: sum.fetched_blocks.saturating_add(more.fetched_blocks),
        stored_blocks: sum.stored_blocks.saturating_add(more.stored_blocks),
        evicted_blocks: sum.evicted_blocks.saturating_add(more.evicted_blocks),
        read_bytes: sum.read_bytes.saturating_add(more.read_bytes),
        written_bytes: sum.written_bytes.saturating_add(more.written_bytes),
        ..sum
    })
}

impl Rates {
    fn of(step: Option<&Traffic>, seconds: f64) -> Rates {
        let Some(step) = step else { return Rates::default() };
        let a_second = |count: u64| Some(count as f64 / seconds);
        Rates {
            hit_rate: (step.matched_keys > 0).then(|| step.covered_keys as f64 / step.matched_keys as f64),
            matched_keys_per_s: a_second(step.matched_keys),
            fetched_blocks_per_s: a_second(step.fetched_blocks),
            stored_blocks_per_s: a_second(step.stored_blocks),
            evicted_blocks_per_s: a_second(step.evicted_blocks),
            read_bytes_per_s: a_second(step.read_bytes),
            written_bytes_per_s: a_second(step.written_bytes),
            ..Rates::default()
        }
    }

    /// Adds the latencies of the slowest of these devices.
    fn with<'a>(self, devices: impl Iterator<Item = &'a Traffic> + Clone) -> Rates {
        Rates {
            fetch_p50_us: devices.clone().filter_map(|one| one.fetch_p50_us).max(),
            fetch_p99_us: devices.filter_map(|one| one.fetch_p99_us).max(),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::{look, traffic};
    use super::*;

    #[test]
    fn rates_are_what_was_counted_between_two_looks() {
        let before = look(1000, &[("1/0", traffic(100, 50, 1 << 20)), ("2/0", traffic(10, 10, 0))]);
        let now = look(3000, &[("1/0", traffic(300, 200, 5 << 20)), ("2/0", traffic(10, 10, 0))]);
        let figures = Figures::between(Some(&before), &now);
        assert_eq!(figures.total.hit_rate, Some(0.75));
        assert_eq!(figures.total.matched_keys_per_s, Some(100.0));
        assert_eq!(figures.total.read_bytes_per_s, Some(2.0 * 1024.0 * 1024.0));
        assert_eq!(figures.devices[1].rates.hit_rate, None, "it was asked nothing");
        assert_eq!(figures.devices[1].rates.read_bytes_per_s, Some(0.0));
    }

    #[test]
    fn a_device_that_began_anew_counts_from_zero_and_a_new_one_not_yet() {
        let before = look(0, &[("1/0", traffic(1000, 900, 4 << 20))]);
        let now = look(1000, &[("1/0", traffic(40, 10, 1 << 20)), ("2/0", traffic(7, 7, 7))]);
        let figures = Figures::between(Some(&before), &now);
        assert_eq!(figures.total.matched_keys_per_s, Some(40.0));
        assert_eq!(figures.total.hit_rate, Some(0.25));
        assert_eq!(figures.devices[1].rates, Rates::default());
        assert_eq!(Figures::between(None, &now).total, Rates::default());
        assert_eq!(Figures::between(Some(&now), &now).total, Rates::default(), "no time has passed");
    }

    #[test]
    fn a_node_that_is_down_is_shown_without_devices() {
        let mut now = look(0, &[("1/0", traffic(1, 1, 1))]);
        now.cluster.nodes.push(Node {
            name: "node-2".to_owned(),
            state: "down".to_owned(),
            drains: true,
            ..Node::default()
        });
        let figures = Figures::between(None, &now);
        assert_eq!((figures.nodes_up, figures.nodes), (1, 2));
        let last = figures.devices.last().expect("there are two rows");
        assert_eq!((last.node.as_str(), last.state, &last.device), ("node-2", "down", &None));
    }

    #[test]
    fn devices_come_in_the_order_that_is_asked_for() {
        let before = look(0, &[("1/0", traffic(0, 0, 0)), ("2/0", traffic(0, 0, 0))]);
        let now = look(1000, &[("1/0", traffic(10, 9, 10)), ("2/0", traffic(10, 5, 99))]);
        let mut figures = Figures::between(Some(&before), &now);
        let mut first = |order| {
            figures.sort(order);
            figures.devices[0].device.clone().unwrap_or_default()
        };
        assert_eq!(first(Order::Read), "2/0");
        assert_eq!(first(Order::Hits), "1/0");
        assert_eq!(first(Order::Written), "1/0", "what is equal stays as it is named");
        assert_eq!(first(Order::Node), "1/0");
        let all: Vec<Order> =
            std::iter::successors(Some(Order::Node), |one| Some(one.next())).take(7).collect();
        assert_eq!((all[5], all[6]), (Order::Latency, Order::Node));
    }
}
