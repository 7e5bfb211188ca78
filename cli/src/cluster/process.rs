//! One process of a cluster file: reads it, starts a coordinator or a node, runs until told to end.

use crate::admin::read_token;
use crate::cluster::local::SUPERVISED;
use crate::cluster::place::{beside, peer};
use crate::commands::config;
use anyhow::{Context, Result, bail};
use kvhive_config::{
    Ack, ClusterConfig, CoordinatorConfig, DeviceKind, DiskAdmission, NcclSettings, NcclUse, Newcomer,
    NodeConfig, Process, ScalingSettings, Token, TokenSource,
};
use kvhive_coordinator::BlockEventsConfig;
use kvhive_node::{
    ClassConfig, DeviceConfig, DeviceMemory, DiskKeys, MoveLimits, NcclConfig, PersistConfig, RedisConfig,
    Tuning,
};
use kvhive_protocol::Level;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data;
use kvhive_protocol::map::Settings;
use kvhive_protocol::scaling::{ScalingMode, ScalingPolicy};
use kvhive_runtime::http::{Access, Role};
use kvhive_spans::{Tracer, TracerConfig};
use kvhive_tls::{Tls, TlsFiles};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Runs the process `id` of the cluster file until SIGINT, SIGTERM, or a failure that it cannot go on from.
///
/// # Errors
/// When it does not start, or fails.
pub(crate) fn run(file: &Path, id: &str, newcomer: Option<&Newcomer>) -> Result<()> {
    if std::env::var_os(SUPERVISED).is_some() {
        // A supervisor that is killed takes its processes along.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    }
    let config = config::read_for(file, newcomer)?;
    let token = token(&config, file)?;
    let process = config.process(id).with_context(|| {
        format!(
            "{} describes no process {id:?}; it has {}{}",
            file.display(),
            config.ids().collect::<Vec<_>>().join(", "),
            if config.is_open() { ", and takes any node that is started with --host" } else { "" }
        )
    })?;
    let signals = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match process {
        Process::Coordinator(own) => {
            config.remarks().iter().for_each(|remark| tracing::warn!("{remark}"));
            let config = coordinator(&config, own, token, file)?;
            let tls = config.tls.clone();
            let mut running = kvhive_coordinator::start(config)?;
            let ended = signals.block_on(async {
                tokio::select! {
                    signal = kvhive_runtime::shutdown_signal() => Ok(signal?),
                    error = running.failed() => Err(anyhow::Error::from(error)),
                    Err(error) = heed_hangups(tls) => Err(error.into()),
                }
            });
            running.shutdown(process.stop_limit());
            tracing::info!(reason = ?ended.as_ref().ok(), "coordinator ended");
            ended.map(|_| ())
        }
        Process::Node(own) => {
            let config = node(&config, own, token, file)?;
            let tls = config.tls.clone();
            let running = Arc::new(kvhive_node::start(config)?);
            let (ended, end) = tokio::sync::oneshot::channel();
            let waiting = running.clone();
            // Ends with the process: a node that loses a device says so here.
            std::thread::spawn(move || ended.send(waiting.wait()));
            let lost = signals.block_on(async {
                tokio::select! {
                    signal = kvhive_runtime::shutdown_signal() => signal.map(|_| None).map_err(anyhow::Error::from),
                    error = end => Ok(error.ok().and_then(Result::err)),
                    Err(error) = heed_hangups(tls) => Err(error.into()),
                }
            })?;
            tracing::info!(?lost, "node ends");
            running.shutdown(process.stop_limit());
            lost.map_or(Ok(()), |error| Err(error.into()))
        }
    }
}

fn token(config: &ClusterConfig, file: &Path) -> Result<Vec<u8>> {
    let relative = match &config.cluster.token {
        TokenSource::File(path) => Some(path.clone()),
        TokenSource::Environment { file } => file.clone(),
    };
    let text = read_token(&beside(file, &relative.unwrap_or_default()))?;
    // Checked here so that a token that is too short is refused before anything listens.
    Token::parse(&text)?;
    Ok(text.into_bytes())
}

/// Reads whose tokens, beside the cluster's, may do what.
fn access(config: &ClusterConfig, file: &Path) -> Result<Access> {
    let cluster = &config.cluster;
    let mut access = Access::default();
    for (role, path) in
        [(Role::Operator, &cluster.operator_token_file), (Role::Viewer, &cluster.viewer_token_file)]
    {
        let Some(path) = path else { continue };
        let path = beside(file, path);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the {role}'s token from {}", path.display()))?;
        let token = Token::parse(&text).with_context(|| path.display().to_string())?;
        access = access.with(role, token.as_bytes())?;
    }
    Ok(access)
}

/// Reads what this process shows of itself, and checks it as those will who dial `host`.
fn tls(config: &ClusterConfig, host: &str, file: &Path) -> Result<Option<Tls>> {
    let Some(tls) = &config.tls else { return Ok(None) };
    let files = TlsFiles {
        certificate: beside(file, &tls.certificate),
        key: beside(file, &tls.key),
        authorities: beside(file, &tls.authorities),
        host: Some(host.to_owned()),
    };
    Ok(Some(Tls::load(files)?))
}

/// Has certificates read anew at every SIGHUP, for as long as it is polled. Without TLS the signal ends the process, as usual.
async fn heed_hangups(tls: Option<Tls>) -> std::io::Result<Infallible> {
    let Some(tls) = tls else { return std::future::pending().await };
    let mut hangups = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    loop {
        if hangups.recv().await.is_none() {
            return std::future::pending().await;
        }
        let tls = tls.clone();
        // What fails is in the log.
        let _ = tokio::task::spawn_blocking(move || tls.refresh(true)).await;
    }
}

/// Makes what records a process's spans, if the cluster traces.
fn tracer(config: &ClusterConfig, kind: &str, id: &str) -> Result<Tracer> {
    let Some(traces) = &config.traces else { return Ok(Tracer::OFF) };
    Ok(Tracer::new(&TracerConfig {
        service: format!("kvhive-{kind}"),
        process: id.to_owned(),
        endpoint: traces.endpoint.clone(),
        sample_ppm: u32::from(traces.sample_per_mille) * 1000,
        keep: traces.keep,
    })?)
}

fn coordinator(
    config: &ClusterConfig,
    own: &CoordinatorConfig,
    token: Vec<u8>,
    file: &Path,
) -> Result<kvhive_coordinator::CoordinatorConfig> {
    let cluster = &config.cluster;
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Ok(kvhive_coordinator::CoordinatorConfig {
        peer: own.peer,
        peers: config.coordinators.iter().map(peer).collect(),
        raft_listen: own.raft,
        admin_listen: own.admin,
        data_dir: beside(file, &own.data_dir),
        cluster_name: cluster.name.clone(),
        settings: Settings {
            replicas: cluster.replicas,
            segment_blocks: cluster.segment_blocks,
            ack: match cluster.ack {
                Ack::Primary => data::Ack::Primary,
                Ack::Quorum => data::Ack::Quorum,
                Ack::All => data::Ack::All,
            },
            lease_ms: ms(cluster.lease),
            heartbeat_ms: ms(cluster.heartbeat),
            serving_lease_ms: ms(cluster.serving_lease),
        },
        scaling: policy(&config.scaling),
        access: access(config, file)?,
        tls: tls(config, &own.host, file)?,
        token,
        election_timeout: config.raft.election_timeout,
        heartbeat: config.raft.heartbeat,
        repair_after: cluster.repair_after,
        balance: cluster.balance,
        snapshot_every: config.raft.snapshot_every,
        tracer: tracer(config, "coordinator", &own.id)?,
        block_events: own.block_events.map(|listen| BlockEventsConfig {
            listen,
            replay: own.block_events_replay,
            topic: own
                .block_events_topic
                .clone()
                .unwrap_or_else(|| format!("kv@{}@{}", own.id, config.cluster.name)),
        }),
        speaks: speaks(config)?,
    })
}

/// Returns the newest level that a process of this cluster speaks.
fn speaks(config: &ClusterConfig) -> Result<Level> {
    match config.cluster.max_level.map(Level) {
        None => Ok(Level::NEWEST),
        Some(level) if level < Level::OLDEST => bail!(
            "cluster.max_level is {level}, and this build of kvhive speaks {} to {}: take it away, or run an older build",
            Level::OLDEST,
            Level::NEWEST
        ),
        Some(level) => Ok(level.min(Level::NEWEST)),
    }
}

/// Returns what a cluster that is started now begins with.
fn policy(scaling: &ScalingSettings) -> ScalingPolicy {
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    ScalingPolicy {
        mode: match scaling.mode {
            kvhive_config::ScalingMode::Off => ScalingMode::Off,
            kvhive_config::ScalingMode::Advise => ScalingMode::Advise,
            kvhive_config::ScalingMode::Act => ScalingMode::Act,
        },
        floor: scaling.floor,
        ceiling: scaling.ceiling,
        keep_per_mille: scaling.keep_per_mille,
        up_cooldown_s: seconds(scaling.up_cooldown),
        down_cooldown_s: seconds(scaling.down_cooldown),
        look_ahead_s: seconds(scaling.look_ahead),
        max_queue_us: u32::try_from(scaling.max_queue.as_micros()).unwrap_or(u32::MAX),
        manual: None,
    }
}

fn node(
    config: &ClusterConfig,
    own: &NodeConfig,
    token: Vec<u8>,
    file: &Path,
) -> Result<kvhive_node::NodeConfig> {
    let classes: Vec<ClassConfig> = own
        .block_sizes
        .iter()
        .map(|class| ClassConfig { frame_bytes: class.size.0, share: class.share_ppm })
        .collect();
    let device = |device: &kvhive_config::DeviceConfig| DeviceConfig {
        memory: match device.kind {
            DeviceKind::Host => DeviceMemory::Host,
            DeviceKind::Cuda => DeviceMemory::Cuda(device.gpu),
            DeviceKind::Auto => DeviceMemory::Auto(device.gpu),
        },
        device_bytes: device.memory.0,
        host_bytes: device.host_memory.0,
        disk_bytes: device.disk.0,
        classes: classes.clone(),
    };
    let devices: Vec<DeviceConfig> = own.devices.iter().map(device).collect();
    if devices.is_empty() {
        bail!("node {} has no devices", own.id);
    }
    Ok(kvhive_node::NodeConfig {
        speaks: speaks(config)?,
        name: own.id.clone(),
        data_listen: own.data,
        advertise_data: own.data_address(),
        metrics_listen: own.metrics,
        advertise_metrics: own.metrics_address(),
        passing: false,
        labels: own.labels.clone(),
        io_threads: own.io_threads,
        max_connections: own.max_connections,
        max_inflight_bytes: own.max_inflight.0,
        moves: MoveLimits { rate: own.move_rate.0, slowdown_percent: own.move_slowdown_percent },
        devices,
        pin_memory: false,
        share_memory: match own.share_memory {
            kvhive_config::ShareMemory::Off => kvhive_node::ShareMemory::Off,
            kvhive_config::ShareMemory::Nodes => kvhive_node::ShareMemory::Nodes,
            kvhive_config::ShareMemory::Clients => kvhive_node::ShareMemory::Clients,
        },
        gpu_stages: own.gpu_stages,
        tuning: tuning(own),
        disk_folder: own.disk_dir.as_ref().map(|folder| beside(file, folder).join(&own.id)),
        disk_keys: if own.disk_encryption {
            DiskKeys::On(own.disk_key_file.as_ref().map(|key| beside(file, key)))
        } else {
            DiskKeys::Off
        },
        persist: own.persist_dir.as_ref().map(|folder| PersistConfig {
            folder: beside(file, folder).join(&own.id),
            every: own.persist_every,
        }),
        names_bytes: own.names_memory.0,
        guest_bytes: own.guest_memory.0,
        redis: own.redis.listen.map(|listen| RedisConfig {
            listen,
            max_connections: own.redis.max_connections,
            max_value_bytes: own.redis.max_value.0,
            max_inflight_bytes: own.redis.max_inflight.0,
        }),
        nccl: nccl(config, own)?,
        coordinators: config.coordinators.iter().map(CoordinatorConfig::raft_address).collect(),
        access: access(config, file)?,
        tls: tls(config, &own.host, file)?,
        token,
        tracer: tracer(config, "node", &own.id)?,
    })
}

/// Returns how a node goes by NCCL, if it is to: by processes of this very program. What is encrypted otherwise goes by it where that is said alone.
fn nccl(config: &ClusterConfig, own: &NodeConfig) -> Result<Option<NcclConfig>> {
    let NcclSettings { when, after, max_pairs, max_ctas, buffer, guest_memory } = own.nccl;
    let has_gpus = own.devices.iter().any(|device| device.kind != DeviceKind::Host);
    if !has_gpus || !when.is_on(config.tls.is_some()) {
        if has_gpus && when == NcclUse::Auto {
            tracing::info!(
                "blocks go from GPU to GPU over TCP: NCCL does not encrypt them, and this cluster has [tls]"
            );
        }
        return Ok(None);
    }
    let program = std::env::current_exe()
        .context("this program's own file cannot be found, which makes NCCL's calls")?;
    Ok(Some(NcclConfig {
        after_bytes: after.0,
        max_pairs,
        max_ctas,
        buffer_bytes: buffer.0,
        guest_bytes: guest_memory.0,
        ..NcclConfig::of(program)
    }))
}

/// Returns what a node's knobs come to.
pub(super) fn tuning(own: &NodeConfig) -> Tuning {
    shard_tuning(own.tuning)
}

/// Returns what a node makes of its knobs.
pub(super) fn shard_tuning(knobs: kvhive_config::Tuning) -> Tuning {
    let kvhive_config::Tuning {
        strategy,
        prefetch_blocks,
        hold,
        batch_delay,
        codec,
        priority,
        disk_admission,
        gc_per_mille,
    } = knobs;
    Tuning {
        strategy: strategy
            .parse()
            .expect("the configuration takes names of strategies only; a test compares them"),
        prefetch_blocks,
        hold,
        batch_delay,
        codec: match codec {
            kvhive_config::Codec::Raw => Codec::Raw,
            kvhive_config::Codec::Lossless => Codec::Lossless,
            kvhive_config::Codec::Fp8 => Codec::Fp8,
            kvhive_config::Codec::Int8 => Codec::Int8,
            kvhive_config::Codec::Int4 => Codec::Int4,
        },
        priority,
        unused_to_disk: disk_admission == DiskAdmission::All,
        gc_per_mille: Some(gc_per_mille).filter(|share| *share < 1000),
    }
}

#[cfg(test)]
mod tests {
    use crate::cluster::one_node;
    use kvhive_cache::policy::{self, Strategy};
    use kvhive_node::{ClassConfig, DeviceConfig, DeviceMemory, NcclConfig};

    #[test]
    fn the_configuration_and_a_node_part_a_disk_alike() {
        let text = r#"
            disk_dir = "/cache"
            block_sizes = [{ size = "4160B", share = 0.3 }, { size = "64KiB", share = 0.7 }]
            [[node.device]]
            disk = "10MiB"
        "#;
        let config = one_node::config(text, "");
        let node = &config.nodes[0];
        let classes = node.block_sizes.iter();
        let classes =
            classes.map(|class| ClassConfig { frame_bytes: class.size.0, share: class.share_ppm }).collect();
        let device = DeviceConfig {
            memory: DeviceMemory::Host,
            device_bytes: 0,
            host_bytes: 0,
            disk_bytes: node.devices[0].disk.0,
            classes,
        };
        let records: Vec<u64> = device.records().into_iter().map(u64::from).collect();
        assert_eq!(records, node.records(node.devices[0].disk));
        assert_eq!(records, [256, 105], "records of 12 KiB in 3 MiB, of 68 KiB in 7 MiB");
    }

    #[test]
    fn what_is_encrypted_otherwise_goes_by_nccl_where_that_is_said_alone() {
        let read = |tls: bool, device: &str, nccl: &str| {
            let tls = "[tls]\ncertificate = \"a.pem\"\nkey = \"a.key\"\nauthorities = \"ca.pem\"\n"
                .repeat(usize::from(tls));
            let text = format!(
                r#"
                {nccl}
                nccl_after = "3MiB"
                nccl_max_pairs = 5
                nccl_max_ctas = 7
                nccl_buffer = "2MiB"
                nccl_guest_memory = "9MiB"
                [[node.device]]
                kind = "{device}"
                "#
            );
            let config = one_node::config(&text, &tls);
            super::nccl(&config, &config.nodes[0]).expect("this program is there")
        };
        let (plain, encrypted) = (false, true);
        for (tls, nccl, is_on) in [
            (plain, "", true),
            (plain, "nccl = \"off\"", false),
            (plain, "nccl = \"unencrypted\"", true),
            (encrypted, "", false),
            (encrypted, "nccl = \"auto\"", false),
            (encrypted, "nccl = \"off\"", false),
            (encrypted, "nccl = \"unencrypted\"", true),
        ] {
            assert_eq!(read(tls, "cuda", nccl).is_some(), is_on, "{tls} {nccl}");
            assert_eq!(read(tls, "host", nccl), None);
        }
        // Each key gets to where it is used.
        let got = read(plain, "cuda", "").expect("it is on");
        let usual = NcclConfig::of(std::env::current_exe().expect("a test is a program"));
        let wanted = NcclConfig {
            after_bytes: 3 << 20,
            max_pairs: 5,
            max_ctas: 7,
            buffer_bytes: 2 << 20,
            guest_bytes: 9 << 20,
            ..usual
        };
        assert_eq!(got, wanted);
    }

    #[test]
    fn the_configuration_says_nothing_of_sizes_what_a_cluster_would_not_begin_with_anyway() {
        let config = kvhive_config::LocalCluster::default().config().expect("the usual one");
        assert_eq!(super::policy(&config.scaling), kvhive_protocol::scaling::ScalingPolicy::default());
    }

    #[test]
    fn the_configuration_takes_the_names_of_all_strategies_and_no_others() {
        let mut known: Vec<&str> = Strategy::ALL.iter().map(|strategy| strategy.name()).collect();
        let mut taken = kvhive_config::STRATEGIES.to_vec();
        known.sort_unstable();
        taken.sort_unstable();
        assert_eq!(known, taken);
        let shrinks =
            |name: &&str| name.parse().is_ok_and(|strategy: Strategy| policy::shrinks(strategy).is_some());
        taken.retain(shrinks);
        assert_eq!(taken, kvhive_config::SHRINKING_STRATEGIES);
    }
}
