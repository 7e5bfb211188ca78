//! The cluster as seen from here: whether each of its addresses answers, how long that takes, and how far clocks are apart.

use super::control::Dialled;
use super::finding::Finding;
use crate::admin::{Admin, Target};
use crate::cluster::local;
use crate::commands::status::{list, text};
use serde_json::Value;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

pub(super) const CLUSTER: &str = "cluster";
/// How long an address may take to accept a connection.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
/// A way that is longer costs every small fetch as much.
const FAR: Duration = Duration::from_millis(5);
/// Clocks further apart make events hard to read, and certificates of one seem not to be valid yet to the other.
const APART: Duration = Duration::from_secs(5);

/// Looks at the cluster that is meant, if one is.
pub(super) fn look(target: &Target, dialled: &Dialled) -> Vec<Finding> {
    let mut addresses = dialled.named();
    let running = local::Running::load(&target.dir).ok().filter(|_| target.admin.is_none());
    let has_admin = target.admin.is_some() || running.is_some();
    if !has_admin && addresses.is_empty() {
        return vec![absent(&target.dir, &local::default_dir())];
    }
    let mut findings = Vec::new();
    let mut known = running.map(|running| running.coordinators).unwrap_or_default();
    match has_admin.then(|| target.resolve()) {
        None => {}
        Some(Ok(admin)) => {
            findings.extend(by_admin(&admin));
            // Who coordinates by now, where one says so: those that a local cluster was started with may be gone.
            if let Ok(group) = admin.get::<Value>("/v1/raft?consistency=stale") {
                let seats = list(&group["coordinators"]).iter();
                known = seats.map(|seat| text(seat, "raft_address")).collect();
            }
        }
        Some(Err(error)) => {
            let advice = "name its admin API by --admin, its token by --token-file and, with TLS, its authorities by --ca";
            findings.push(Finding::fails(CLUSTER, "access", format!("{error:#}"), advice));
        }
    }
    for address in known {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    findings.extend(dialled.look(target, &addresses));
    findings
}

/// Says that no cluster runs by the folder, which is a fault where it was named.
fn absent(folder: &Path, usual: &Path) -> Finding {
    let shown = folder.display();
    if folder == usual {
        return Finding::holds(CLUSTER, "cluster", format!("none is named, and none runs by {shown}"));
    }
    let advice = format!("start one (`kvhive up --dir {shown}`), or name the folder of one that runs");
    Finding::fails(CLUSTER, "cluster", format!("none runs by {shown}"), advice)
}

/// Looks at all that the admin API tells.
fn by_admin(admin: &Admin) -> Vec<Finding> {
    let mut findings = Vec::new();
    for one in admin.each() {
        findings.extend(coordinator(&one));
    }
    match admin.get::<Value>("/v1/cluster") {
        Ok(overview) => findings.extend(members(&overview)),
        Err(error) => {
            findings.push(Finding::fails(
                CLUSTER,
                "state",
                format!("{error:#}"),
                "no coordinator says how the cluster stands: see that a majority of them runs, and that the token is theirs",
            ));
            // Nodes serve without a leader, by what one that answers has.
            if let Ok(overview) = admin.get::<Value>("/v1/cluster?consistency=stale") {
                findings.extend(members(&overview));
            }
        }
    }
    findings
}

/// Looks at one coordinator's admin API.
fn coordinator(admin: &Admin) -> Vec<Finding> {
    let what = format!("coordinator {}", admin.first_url());
    let begun = Instant::now();
    match admin.date() {
        Ok(theirs) => {
            let took = begun.elapsed();
            let mut findings =
                vec![Finding::holds(CLUSTER, what.as_str(), format!("answers in {}", millis(took)))];
            findings.extend(theirs.map(|theirs| clock(&what, SystemTime::now(), theirs)));
            findings
        }
        Err(error) => vec![Finding::fails(
            CLUSTER,
            what,
            format!("{error:#}"),
            "see that it runs, that its admin address is reachable from here, and that no firewall is between",
        )],
    }
}

fn clock(what: &str, own: SystemTime, theirs: SystemTime) -> Finding {
    let apart = own.duration_since(theirs).unwrap_or_else(|early| early.duration());
    let what = format!("clock against {what}");
    let found = format!("{} s apart, to the second", apart.as_secs());
    if apart > APART {
        return Finding::warns(
            CLUSTER,
            what,
            found,
            "have both follow a time server (chrony, systemd-timesyncd)",
        );
    }
    Finding::holds(CLUSTER, what, found)
}

/// Looks at the nodes and slots.
fn members(overview: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in list(&overview["nodes"]) {
        let what = format!("node {}", text(node, "name"));
        let (state, address) = (text(node, "state"), text(node, "data_address"));
        if state != "up" {
            findings.push(Finding::warns(
                CLUSTER,
                what,
                state,
                format!(
                    "start it again; or, if its process has ended for good, `kvhive drain {} --forget`",
                    text(node, "name")
                ),
            ));
            continue;
        }
        findings.push(match reach(&address) {
            Ok(took) if took > FAR => Finding::warns(
                CLUSTER,
                what,
                format!("{address} answers in {}", millis(took)),
                "every fetch takes the way once: place engines and nodes in one zone",
            ),
            Ok(took) => Finding::holds(CLUSTER, what, format!("{address} answers in {}", millis(took))),
            Err(error) => Finding::fails(
                CLUSTER,
                what,
                format!("{address}: {error}"),
                "its data address must be reachable from here: see its `host`, and firewalls between",
            ),
        });
    }
    let slots = &overview["slots"];
    let unavailable = slots["unavailable"].as_u64().unwrap_or_default();
    let found =
        format!("{} of {} unavailable, {} moving", unavailable, text(slots, "total"), text(slots, "moving"));
    findings.push(if unavailable > 0 {
        Finding::fails(
            CLUSTER,
            "slots",
            found,
            "blocks of those are found nowhere: start nodes that are down (`kvhive nodes`)",
        )
    } else {
        Finding::holds(CLUSTER, "slots", found)
    });
    findings
}

/// Says how long an address takes to accept a connection.
pub(super) fn reach(address: &str) -> std::io::Result<Duration> {
    let begun = Instant::now();
    let mut last = std::io::Error::other("the name has no address");
    for one in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&one, LIMIT) {
            Ok(_) => return Ok(begun.elapsed()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

pub(super) fn millis(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use serde_json::json;
    use std::net::TcpListener;

    #[test]
    fn each_node_is_dialled_and_slots_without_a_home_fail() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let here = listener.local_addr().expect("it listens").to_string();
        let gone = {
            let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
            other.local_addr().expect("it listens").to_string()
        };
        let overview = json!({
            "nodes": [
                {"name": "a", "state": "up", "data_address": here},
                {"name": "b", "state": "up", "data_address": gone},
                {"name": "c", "state": "down", "data_address": gone},
            ],
            "slots": {"total": 4096, "unavailable": 3, "moving": 0},
        });
        let states: Vec<State> = members(&overview).iter().map(|finding| finding.state).collect();
        assert_eq!(states, [State::Holds, State::Fails, State::Warns, State::Fails]);
    }

    #[test]
    fn a_cluster_that_is_named_and_does_not_run_fails() {
        let (usual, other) = (Path::new("/home/one/kvhive"), Path::new("/tmp/other"));
        assert_eq!(absent(usual, usual).state, State::Holds);
        let named = absent(other, usual);
        assert_eq!((named.state, named.found.as_str()), (State::Fails, "none runs by /tmp/other"));
    }

    #[test]
    fn clocks_may_be_a_few_seconds_apart_either_way() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let state = |theirs| clock("it", now, theirs).state;
        assert_eq!(state(now + Duration::from_secs(4)), State::Holds);
        assert_eq!(state(now + Duration::from_secs(6)), State::Warns);
        assert_eq!(state(now - Duration::from_secs(6)), State::Warns);
    }
}
