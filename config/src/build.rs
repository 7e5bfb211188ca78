//! Text and variables to a cluster. Reading goes on after a problem with a stand-in value, which never leaves this
//! crate: `ClusterConfig::from_toml` returns no cluster if the ledger holds a problem.

use crate::check;
use crate::config::{
    Ack, ClusterParts, ClusterSettings, CoordinatorConfig, Newcomer, RaftSettings, TokenSource,
};
use crate::environment;
use crate::keys::{self, CLUSTER, COORDINATOR, DEVICE, NODE, RAFT, ROOT, TOKEN_VARIABLE};
use crate::ledger::Ledger;
use crate::mode::{Codec, DiskAdmission, Mode, Tuning};
use crate::nccl::{NcclSettings, NcclUse};
use crate::node::{BlockClass, DeviceConfig, DeviceKind, NodeConfig, RedisSettings};
use crate::parse;
use crate::problem::{Origin, Problem};
use crate::scaling::{SCALING, ScalingSettings};
use crate::section::Section;
use crate::share::ShareMemory;
use crate::tls::{TLS, TlsPaths};
use crate::token::Token;
use crate::traces::{TRACES, Traces};
use crate::tree::{self, Kind, Table, Value};
use crate::units::Bytes;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const ADMIN_PORT: u16 = 7800;
const RAFT_PORT: u16 = 7801;
const DATA_PORT: u16 = 7810;
const METRICS_PORT: u16 = 7811;

pub(crate) fn read(
    text: &str,
    env: impl IntoIterator<Item = (String, String)>,
    newcomer: Option<&Newcomer>,
    ledger: &mut Ledger,
) -> ClusterParts {
    let mut root = tree::parse(text, ledger);
    // What the parser recovered from a broken text is a guess; its keys would be told as missing.
    let broken = !ledger.is_empty();
    let ours = |(name, _): &(String, String)| name.starts_with(environment::PREFIX);
    let variables: BTreeMap<String, String> = env.into_iter().filter(ours).collect();
    let mut aside = Ledger::default();
    let ledger = if broken { &mut aside } else { ledger };

    let is_open = lists_no_nodes(&root);
    match newcomer {
        Some(newcomer) if is_open => join(&mut root, newcomer),
        Some(newcomer) => ledger.add(Problem::Closed { id: parse::key_shown(&newcomer.id) }),
        None => {}
    }
    environment::apply(&mut root, &variables, ledger);
    let parts = file(&root, is_open, variables.get(TOKEN_VARIABLE), ledger);
    check::all(&parts, ledger);
    parts
}

/// Says whether the file is open: it lists no nodes, and `node_defaults` has all that one needs which joins.
fn lists_no_nodes(root: &Table) -> bool {
    let has_devices =
        |value: &Value| matches!(&value.kind, Kind::Table(table) if table.contains_key("device"));
    !root.contains_key("node") && root.get("node_defaults").is_some_and(has_devices)
}

/// Lists `newcomer` as the one node, so that it passes the checks of those that a file lists.
fn join(root: &mut Table, newcomer: &Newcomer) {
    let text = |text: &String, flag| Value::text(text, Origin::Flag(flag));
    let labels = newcomer.labels.iter().map(|(key, value)| (key.clone(), text(value, "--label"))).collect();
    let node = Table::from([
        ("id".to_owned(), text(&newcomer.id, "--id")),
        ("host".to_owned(), text(&newcomer.host, "--host")),
        ("labels".to_owned(), Value { kind: Kind::Table(labels), origin: Origin::Flag("--label") }),
    ]);
    let nodes = vec![Value { kind: Kind::Table(node), origin: Origin::Flag("--id") }];
    root.insert("node".to_owned(), Value { kind: Kind::List(nodes), origin: Origin::Flag("--id") });
}

fn file(root: &Table, is_open: bool, token: Option<&String>, ledger: &mut Ledger) -> ClusterParts {
    let top = Section::of(String::new(), ROOT, Cow::Borrowed(root), ledger);
    let cluster = Section::open("cluster".to_owned(), CLUSTER, root.get("cluster"), ledger);
    let cluster = cluster_settings(&cluster, token, ledger);
    let raft = Section::open("raft".to_owned(), RAFT, root.get("raft"), ledger);
    let raft = RaftSettings {
        election_timeout: time(&raft, ledger, "election_timeout"),
        heartbeat: time(&raft, ledger, "heartbeat"),
        snapshot_every: whole_number(&raft, ledger, "snapshot_every"),
    };
    let scaling = Section::open("scaling".to_owned(), SCALING, root.get("scaling"), ledger);
    let scaling = ScalingSettings::read(&scaling, ledger);
    let tls = root.get("tls").map(|table| {
        let section = Section::open("tls".to_owned(), TLS, Some(table), ledger);
        TlsPaths::read(&section, ledger)
    });

    let traces = root.get("traces").map(|table| {
        let section = Section::open("traces".to_owned(), TRACES, Some(table), ledger);
        Traces::read(&section, ledger)
    });

    let (_, tables) = top.tables(ledger, "coordinator");
    let mut coordinators = Vec::with_capacity(tables.len());
    for (at, table) in tables.into_iter().enumerate() {
        let section = Section::open(format!("coordinator[{at}]"), COORDINATOR, Some(table), ledger);
        coordinators.push(coordinator(&section, at, ledger));
    }

    let empty = Table::new();
    let defaults = match root.get("node_defaults").map(|value| &value.kind) {
        Some(Kind::Table(table)) => table,
        _ => &empty,
    };
    node_defaults(
        &Section::open("node_defaults".to_owned(), keys::node_defaults(), root.get("node_defaults"), ledger),
        ledger,
    );
    let stands_alone = is_open && !root.contains_key("node");
    let (_, tables) = if stands_alone { Default::default() } else { top.tables(ledger, "node") };
    let mut nodes = Vec::with_capacity(tables.len());
    for (at, table) in tables.into_iter().enumerate() {
        let section =
            Section::open(format!("node[{at}]"), NODE, Some(table), ledger).over("node_defaults", defaults);
        nodes.push(node(&section, ledger));
    }
    let template = is_open.then(|| match nodes.first() {
        Some(newcomer) => newcomer.clone(),
        None => stand_in(defaults, ledger),
    });
    ClusterParts { cluster, raft, scaling, tls, traces, coordinators, nodes, template }
}

/// Reads a node that has all from the defaults, so that what would be wrong with any that joins is told beforehand.
fn stand_in(defaults: &Table, ledger: &mut Ledger) -> NodeConfig {
    let own = ["id", "host"].map(|name| (name.to_owned(), Value::text("node", Origin::Default)));
    let section = Section::of("node[0]".to_owned(), NODE, Cow::Owned(Table::from(own)), ledger);
    node(&section.over("node_defaults", defaults), ledger)
}

fn cluster_settings(section: &Section<'_>, token: Option<&String>, ledger: &mut Ledger) -> ClusterSettings {
    let file = section.read(ledger, "token_file", parse::path);
    if let Some(Err(error)) = token.map(|token| Token::parse(token)) {
        ledger.add(Problem::Token { variable: TOKEN_VARIABLE, error });
    }
    if file.is_none() && token.is_none() && section.given("token_file").is_none() {
        let allowed =
            format!("a file with the shared token, 16 to 1024 bytes, or {TOKEN_VARIABLE} in the environment");
        ledger.missing("cluster.token_file", allowed);
    }
    ClusterSettings {
        name: section.read(ledger, "name", parse::name).unwrap_or_default(),
        replicas: u8::try_from(whole_number(section, ledger, "replicas")).expect("keys.rs bounds it by 8"),
        ack: match section.read(ledger, "ack", parse::choice) {
            Some(2) => Ack::All,
            Some(1) => Ack::Quorum,
            _ => Ack::Primary,
        },
        segment_blocks: u32::try_from(whole_number(section, ledger, "segment_blocks"))
            .expect("keys.rs bounds it by 1024"),
        token: match (token, file) {
            (Some(_), file) => TokenSource::Environment { file },
            (None, file) => TokenSource::File(file.unwrap_or_default()),
        },
        operator_token_file: section.read(ledger, "operator_token_file", parse::path),
        viewer_token_file: section.read(ledger, "viewer_token_file", parse::path),
        may_be_insecure: section.read(ledger, "insecure", parse::choice) == Some(1),
        lease: time(section, ledger, "lease"),
        serving_lease: time(section, ledger, "serving_lease"),
        heartbeat: time(section, ledger, "heartbeat"),
        repair_after: time(section, ledger, "repair_after"),
        balance: section.read(ledger, "balance", parse::choice) == Some(1),
        max_level: section
            .read(ledger, "max_level", parse::whole)
            .map(|level| u16::try_from(level).expect("keys.rs bounds it by 65,535")),
    }
}

fn coordinator(section: &Section<'_>, at: usize, ledger: &mut Ledger) -> CoordinatorConfig {
    let host = section.read(ledger, "host", parse::host);
    let position = at as u64 + 1;
    let peer = match section.given("peer") {
        Some(_) => whole_number(section, ledger, "peer"),
        None => {
            let key = section.key_path("peer");
            ledger.saw(&key, &key, Origin::Default, position.to_string());
            position
        }
    };
    CoordinatorConfig {
        id: section.read(ledger, "id", parse::name).unwrap_or_default(),
        peer,
        admin: listen(section, ledger, "admin", host.as_deref(), ADMIN_PORT),
        raft: listen(section, ledger, "raft", host.as_deref(), RAFT_PORT),
        host: host.unwrap_or_default(),
        data_dir: section.read(ledger, "data_dir", parse::path).unwrap_or_default(),
        block_events: section.read(ledger, "block_events", parse::listen),
        block_events_replay: section.read(ledger, "block_events_replay", parse::listen),
        block_events_topic: section.read(ledger, "block_events_topic", parse::topic),
    }
}

/// Reads the defaults by themselves, so that a mistake in them is found even if each node has its own value.
fn node_defaults(section: &Section<'_>, ledger: &mut Ledger) {
    for name in ["data", "metrics"] {
        section.read(ledger, name, parse::listen);
    }
    section.read(ledger, "labels", parse::labels);
    node_limits(section, ledger);
    if section.given("device").is_some() {
        devices(section, ledger);
    }
}

fn node(section: &Section<'_>, ledger: &mut Ledger) -> NodeConfig {
    let host = section.read(ledger, "host", parse::host);
    let limits = node_limits(section, ledger);
    NodeConfig {
        id: section.read(ledger, "id", parse::name).unwrap_or_default(),
        data: listen(section, ledger, "data", host.as_deref(), DATA_PORT),
        metrics: listen(section, ledger, "metrics", host.as_deref(), METRICS_PORT),
        host: host.unwrap_or_default(),
        labels: labels(section, ledger),
        io_threads: limits.io_threads,
        max_connections: limits.max_connections,
        max_inflight: limits.max_inflight,
        move_rate: limits.move_rate,
        move_slowdown_percent: limits.move_slowdown_percent,
        block_sizes: limits.block_sizes,
        disk_dir: limits.disk_dir,
        disk_encryption: limits.disk_encryption,
        disk_key_file: limits.disk_key_file,
        persist_dir: limits.persist_dir,
        persist_every: limits.persist_every,
        share_memory: limits.share_memory,
        gpu_stages: limits.gpu_stages,
        names_memory: limits.names_memory,
        guest_memory: limits.guest_memory,
        redis: limits.redis,
        nccl: limits.nccl,
        mode: limits.mode,
        tuning: limits.tuning,
        devices: devices(section, ledger),
    }
}

struct NodeLimits {
    io_threads: usize,
    max_connections: usize,
    max_inflight: Bytes,
    move_rate: Bytes,
    move_slowdown_percent: u32,
    block_sizes: Vec<BlockClass>,
    disk_dir: Option<String>,
    disk_encryption: bool,
    disk_key_file: Option<String>,
    persist_dir: Option<String>,
    persist_every: Option<Duration>,
    share_memory: ShareMemory,
    gpu_stages: bool,
    names_memory: Bytes,
    guest_memory: Bytes,
    redis: RedisSettings,
    nccl: NcclSettings,
    mode: Mode,
    tuning: Tuning,
}

fn node_limits(section: &Section<'_>, ledger: &mut Ledger) -> NodeLimits {
    let mode = section.read(ledger, "mode", parse::choice).map_or(Mode::default(), |at| Mode::ALL[at]);
    let block_sizes = section.read(ledger, "block_sizes", parse::classes).unwrap_or_default();
    let chosen = mode.tuning(block_sizes.len());
    let mut count =
        |name| usize::try_from(whole_number(section, ledger, name)).expect("keys.rs bounds it by a million");
    let (io_threads, max_connections) = (count("io_threads"), count("max_connections"));
    let move_slowdown_percent = count("move_slowdown_percent") as u32;
    let redis_connections = count("redis_max_connections");
    let (nccl_pairs, nccl_ctas) = (count("nccl_max_pairs"), count("nccl_max_ctas"));
    NodeLimits {
        io_threads,
        max_connections,
        max_inflight: section.read(ledger, "max_inflight", parse::size).unwrap_or_default(),
        move_rate: section.read(ledger, "move_rate", parse::size).unwrap_or_default(),
        move_slowdown_percent,
        block_sizes,
        disk_dir: section.read(ledger, "disk_dir", parse::path),
        disk_encryption: section
            .read(ledger, "disk_encryption", parse::choice)
            .is_none_or(|at| keys::DISK_ENCRYPTION[at] == "on"),
        disk_key_file: section.read(ledger, "disk_key_file", parse::path),
        persist_dir: section.read(ledger, "persist_dir", parse::path),
        persist_every: section.read(ledger, "persist_every", parse::time),
        share_memory: section
            .read(ledger, "share_memory", parse::choice)
            .map_or(ShareMemory::default(), |at| ShareMemory::ALL[at]),
        gpu_stages: section
            .read(ledger, "gpu_stages", parse::choice)
            .is_none_or(|at| keys::GPU_STAGES[at] == "auto"),
        names_memory: section.read(ledger, "names_memory", parse::size).unwrap_or_default(),
        guest_memory: section.read(ledger, "guest_memory", parse::size).unwrap_or_default(),
        redis: RedisSettings {
            listen: section.read(ledger, "redis_listen", parse::listen),
            max_connections: redis_connections,
            max_value: section.read(ledger, "redis_max_value", parse::size).unwrap_or_default(),
            max_inflight: section.read(ledger, "redis_max_inflight", parse::size).unwrap_or_default(),
        },
        nccl: NcclSettings {
            when: section
                .read(ledger, "nccl", parse::choice)
                .map_or(NcclUse::default(), |at| NcclUse::ALL[at]),
            after: section.read(ledger, "nccl_after", parse::size).unwrap_or_default(),
            max_pairs: nccl_pairs,
            max_ctas: nccl_ctas as u32,
            buffer: section.read(ledger, "nccl_buffer", parse::size).unwrap_or_default(),
            guest_memory: section.read(ledger, "nccl_guest_memory", parse::size).unwrap_or_default(),
        },
        mode,
        tuning: tuning(section, chosen, ledger),
    }
}

/// Puts what the file says over what the mode has chosen.
fn tuning(section: &Section<'_>, chosen: Tuning, ledger: &mut Ledger) -> Tuning {
    let strategy = section.read(ledger, "strategy", parse::choice);
    let prefetch = section.read(ledger, "prefetch_blocks", parse::whole);
    let admission = section.read(ledger, "disk_admission", parse::choice);
    let codec = section.read(ledger, "codec", parse::choice);
    let priority = section.read(ledger, "priority", parse::whole);
    Tuning {
        strategy: strategy.map_or(chosen.strategy, |at| keys::STRATEGIES[at]),
        prefetch_blocks: prefetch.map_or(chosen.prefetch_blocks, |blocks| blocks as u32),
        hold: section.read(ledger, "hold", parse::time).unwrap_or(chosen.hold),
        batch_delay: section.read(ledger, "batch_delay", parse::time).unwrap_or(chosen.batch_delay),
        codec: codec.map_or(chosen.codec, |at| Codec::ALL[at]),
        priority: priority.map_or(chosen.priority, |reads| reads as u32),
        disk_admission: admission.map_or(chosen.disk_admission, |at| DiskAdmission::ALL[at]),
        gc_per_mille: section.read(ledger, "gc_threshold", parse::share).unwrap_or(chosen.gc_per_mille),
    }
}

fn labels(section: &Section<'_>, ledger: &mut Ledger) -> BTreeMap<String, String> {
    // The defaults' labels are checked where they stand; here they only lie under the node's.
    let under = section.under().and_then(|table| table.get("labels"));
    let mut labels =
        under.and_then(|value| parse::labels(value, &keys::Rule::Labels).ok()).unwrap_or_default();
    labels.extend(section.read(ledger, "labels", parse::labels).unwrap_or_default());
    let key = section.key_path("labels");
    if labels.len() > keys::MAX_LABELS && ledger.is_good(&key) {
        ledger.conflict(
            &key,
            format!(
                "with those of node_defaults there are {} labels; allowed are {}",
                labels.len(),
                keys::MAX_LABELS
            ),
        );
    }
    labels
}

fn devices(section: &Section<'_>, ledger: &mut Ledger) -> Vec<DeviceConfig> {
    let (source, tables) = section.tables(ledger, "device");
    let mut devices = Vec::with_capacity(tables.len());
    for (at, table) in tables.into_iter().enumerate() {
        let device = Section::open(format!("{source}[{at}]"), DEVICE, Some(table), ledger);
        let kind = device.read(ledger, "kind", parse::choice).unwrap_or(0);
        devices.push(DeviceConfig {
            kind: DeviceKind::ALL[kind],
            gpu: whole_number(&device, ledger, "gpu") as u32,
            memory: device.read(ledger, "memory", parse::size).unwrap_or_default(),
            host_memory: device.read(ledger, "host_memory", parse::size).unwrap_or_default(),
            disk: device.read(ledger, "disk", parse::size).unwrap_or_default(),
        });
    }
    devices
}

fn whole_number(section: &Section<'_>, ledger: &mut Ledger, name: &str) -> u64 {
    section.read(ledger, name, parse::whole).unwrap_or(1)
}

fn time(section: &Section<'_>, ledger: &mut Ledger, name: &str) -> Duration {
    section.read(ledger, name, parse::time).unwrap_or_default()
}

fn listen(
    section: &Section<'_>,
    ledger: &mut Ledger,
    name: &str,
    host: Option<&str>,
    port: u16,
) -> SocketAddr {
    let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    if section.given(name).is_some() {
        return section.read(ledger, name, parse::listen).unwrap_or(SocketAddr::new(any, port));
    }
    let ip = match host.map(|host| (host, host.parse::<IpAddr>())) {
        Some((_, Ok(ip))) => ip,
        Some((host, Err(_))) if check::is_loopback(host) => IpAddr::from(Ipv4Addr::LOCALHOST),
        _ => any,
    };
    let address = SocketAddr::new(ip, port);
    if host.is_some() {
        let key = section.key_path(name);
        ledger.saw(&key, &key, Origin::Default, format!("{:?}", address.to_string()));
    }
    address
}
