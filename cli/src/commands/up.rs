//! `kvhive up`: a whole cluster on this machine, or one process of a cluster file.

use crate::cluster::local;
use crate::cluster::process;
use crate::report;
use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use kvhive_config::{Bytes, DeviceKind, LocalShape, Newcomer};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How much longer than its supervisor waits for a cluster whoever detached it waits for the supervisor.
const DETACH_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// Start a whole cluster on this machine, or one process of a cluster file
///
/// Without --config: three coordinators and two nodes of two devices each on loopback, host memory as the devices. It
/// runs until Ctrl-C, or in the background with --detach (stop it with `kvhive down`). With --config and --id: the
/// process of that name, in the foreground.
#[derive(Args, Debug)]
pub(crate) struct Up {
    /// Cluster file; run one process of it
    #[arg(long, value_name = "FILE", requires = "id")]
    config: Option<PathBuf>,
    /// Which process of the cluster file
    #[arg(long, value_name = "ID", requires = "config")]
    id: Option<String>,
    /// Address or name by which others reach this node; of a cluster file that lists no nodes, which takes any
    #[arg(long, value_name = "HOST", requires = "config")]
    host: Option<String>,
    /// Label of this node, as in the cluster file; an empty VALUE is none; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", requires = "host", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Folder of the local cluster: cluster file, token, logs, raft data; means nothing with --config
    #[arg(long, env = "KVHIVE_DIR", value_name = "DIR", default_value_os_t = local::default_dir())]
    dir: PathBuf,
    /// Return when the cluster serves, and leave it running
    #[arg(long, conflicts_with = "config")]
    detach: bool,
    /// Remove what an earlier cluster left in the folder, its data included
    #[arg(long, conflicts_with = "config")]
    fresh: bool,
    /// Coordinator processes: 1 to 15, of which an odd number is best [default: 3]
    #[arg(long, value_name = "N", conflicts_with = "config", value_parser = clap::value_parser!(u32).range(1..=15))]
    coordinators: Option<u32>,
    /// Node processes [default: 2]
    #[arg(long, value_name = "N", conflicts_with = "config")]
    nodes: Option<u32>,
    /// Devices of each node [default: 2]
    #[arg(long, value_name = "N", conflicts_with = "config")]
    devices: Option<u32>,
    /// What holds the device tiers: host memory, a GPU's (each device of a node takes the next), or a GPU's where there is one [default: host]
    #[arg(long, value_name = "KIND", conflicts_with = "config", value_parser = device_kind())]
    device_kind: Option<DeviceKind>,
    /// Device tier of each device [default: 128MiB]
    #[arg(long, value_name = "SIZE", conflicts_with = "config")]
    device_memory: Option<Bytes>,
    /// Host tier over each device [default: 64MiB]
    #[arg(long, value_name = "SIZE", conflicts_with = "config")]
    host_memory: Option<Bytes>,
    /// Disk tier under each device [default: none]
    #[arg(long, value_name = "SIZE", conflicts_with = "config")]
    disk: Option<Bytes>,
    /// Size of a block's frame [default: 64KiB]
    #[arg(long, value_name = "SIZE", conflicts_with = "config")]
    block_size: Option<Bytes>,
    /// Copies of each block's slot [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "config")]
    replicas: Option<u32>,
    /// What decides which block leaves a full shard, such as adaptive, lru or s3-fifo [default: adaptive]
    #[arg(long, value_name = "NAME", conflicts_with = "config", value_parser = PossibleValuesParser::new(kvhive_config::STRATEGIES))]
    strategy: Option<String>,
    /// Print what runs and where as JSON, once it serves
    #[arg(long, conflicts_with = "config")]
    json: bool,
    /// Encrypt every channel: an authority of the cluster's own signs for its processes, and for clients
    #[arg(long, conflicts_with = "config")]
    tls: bool,
    /// The folder was just made: where a port was lost since it was picked, others are taken
    #[arg(long, hide = true, conflicts_with = "config")]
    just_made: bool,
}

fn device_kind() -> impl TypedValueParser<Value = DeviceKind> {
    let words = PossibleValuesParser::new(DeviceKind::ALL.map(DeviceKind::as_str));
    words.map(|word| {
        DeviceKind::ALL.into_iter().find(|kind| kind.as_str() == word).unwrap_or(DeviceKind::Host)
    })
}

fn label(text: &str) -> Result<(String, String), String> {
    let parted = text.split_once('=').ok_or("allowed is KEY=VALUE, such as zone=a")?;
    Ok((parted.0.to_owned(), parted.1.to_owned()))
}

impl Up {
    /// Starts what was asked and, unless detached, runs until it is told to end.
    ///
    /// # Errors
    /// When something does not start.
    pub(crate) fn run(self) -> Result<()> {
        if let (Some(config), Some(id)) = (&self.config, &self.id) {
            return process::run(config, id, self.newcomer(id)?.as_ref());
        }
        let is_new = local::prepare(&self.dir, self.shape(), self.fresh)? || self.just_made;
        if self.detach { self.detached(is_new) } else { self.attached(is_new) }
    }

    /// Returns the node that is no part of the file, if this is one.
    fn newcomer(&self, id: &str) -> Result<Option<Newcomer>> {
        let Some(host) = self.host.clone() else { return Ok(None) };
        let mut labels = BTreeMap::new();
        for (key, value) in &self.labels {
            // What stands for it may be unset where this runs, as a zone that a scheduler does not know.
            if !value.is_empty() && labels.insert(key.clone(), value.clone()).is_some() {
                bail!("--label {key} is there twice");
            }
        }
        Ok(Some(Newcomer { id: id.to_owned(), host, labels }))
    }

    /// Returns the shape that was asked for, if any of it was.
    fn shape(&self) -> Option<LocalShape> {
        let asked = self.coordinators.is_some()
            || self.nodes.is_some()
            || self.devices.is_some()
            || self.device_kind.is_some()
            || self.device_memory.is_some()
            || self.host_memory.is_some()
            || self.disk.is_some()
            || self.block_size.is_some()
            || self.replicas.is_some()
            || self.strategy.is_some()
            || self.tls;
        let usual = LocalShape::default();
        asked.then(|| LocalShape {
            coordinators: self.coordinators.unwrap_or(usual.coordinators),
            nodes: self.nodes.unwrap_or(usual.nodes),
            devices: self.devices.unwrap_or(usual.devices),
            device_kind: self.device_kind.unwrap_or(usual.device_kind),
            device_memory: self.device_memory.unwrap_or(usual.device_memory),
            host_memory: self.host_memory.unwrap_or(usual.host_memory),
            disk: self.disk.unwrap_or(usual.disk),
            block_size: self.block_size.unwrap_or(usual.block_size),
            replicas: self.replicas.unwrap_or(usual.replicas),
            strategy: self.strategy.clone(),
            tls: self.tls,
        })
    }

    fn attached(&self, is_new: bool) -> Result<()> {
        let spinner = spinner();
        let mut cluster = local::start(&self.dir, is_new, |state| spinner.set_message(state.to_owned()))?;
        spinner.finish_and_clear();
        if self.json {
            report::print_json(&cluster.running(true))?;
        } else {
            announce(&cluster.running(true));
            println!("Ctrl-C stops it");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ended = runtime.block_on(async {
            let mut ticks = tokio::time::interval(POLL);
            let signal = kvhive_runtime::shutdown_signal();
            tokio::pin!(signal);
            loop {
                tokio::select! {
                    signal = &mut signal => return signal.map(|_| ()),
                    _ = ticks.tick() => {
                        while let Some((id, status)) = cluster.dead().map_err(std::io::Error::other)? {
                            match cluster.elsewhere(&id, status) {
                                Ok(true) => {
                                    eprintln!("a port of {id} was taken before it listened; it starts on others");
                                    continue;
                                }
                                Ok(false) => {}
                                Err(error) => eprintln!("warning: {id} cannot be started on other ports: {error:#}"),
                            }
                            eprintln!("warning: {id} has ended ({status}); its log is in {}", self.dir.join("logs").display());
                        }
                        if let Err(error) = cluster.heed_wish() {
                            eprintln!("warning: {error:#}");
                        }
                    }
                }
            }
        });
        eprintln!("stopping the cluster");
        cluster.stop();
        Ok(ended?)
    }

    fn detached(&self, is_new: bool) -> Result<()> {
        let log_file = self.dir.join("logs/supervisor.log");
        std::fs::create_dir_all(self.dir.join("logs"))?;
        let log = std::fs::File::create(&log_file)
            .with_context(|| format!("cannot write {}", log_file.display()))?;
        let mut supervisor = Command::new(std::env::current_exe()?)
            .args(["up", "--dir"])
            .arg(&self.dir)
            .args(is_new.then_some("--just-made"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in this terminal is not meant for it.
            .process_group(0)
            .spawn()
            .context("cannot start the supervisor")?;
        let spinner = spinner();
        let (begun, limit) = (Instant::now(), local::start_limit(&self.dir) + DETACH_LIMIT);
        loop {
            if let Some(status) = supervisor.try_wait()? {
                let said = std::fs::read_to_string(&log_file).unwrap_or_default();
                bail!("the cluster did not start ({status}):\n{said}");
            }
            if let Ok(running) = local::Running::load(&self.dir)
                && running.ready
            {
                spinner.finish_and_clear();
                if self.json {
                    return report::print_json(&running);
                }
                announce(&running);
                let dir = if self.dir == local::default_dir() {
                    String::new()
                } else {
                    format!(" --dir {}", self.dir.display())
                };
                println!("it runs in the background; `kvhive down{dir}` stops it");
                return Ok(());
            }
            if begun.elapsed() > limit {
                bail!("the cluster does not serve after {limit:?}; see {}", self.dir.join("logs").display());
            }
            spinner.set_message("waiting for the cluster".to_owned());
            std::thread::sleep(POLL);
        }
    }
}

fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
    let spinner =
        ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    spinner.enable_steady_tick(POLL);
    spinner
}

fn announce(running: &local::Running) {
    let of = |kind: &str| running.processes.iter().filter(|process| process.kind == kind).count();
    let (coordinators, nodes) = (of("coordinator") as u64, of("node") as u64);
    println!(
        "cluster serves: {}, {}",
        report::counted(coordinators, "coordinator"),
        report::counted(nodes, "node")
    );
    for url in &running.admin_urls {
        println!("admin API       {url}");
    }
    println!("for clients     {}", running.coordinators.join(","));
}
