//! A cluster of a benchmark's own, in a temporary folder, gone when the benchmark ends.

use crate::admin::{Admin, Target};
use crate::cluster::local::{self, Cluster};
use crate::trust;
use anyhow::{Context, Result};
use kvhive_client::{Client, ClientConfig};
use kvhive_config::{Bytes, ClusterConfig, LocalShape};

/// Returns the shape of one coordinator and one node, whose one device has so many bytes of host memory and no other tier.
pub(crate) fn one_device(device_memory: u64, block_size: u64) -> LocalShape {
    LocalShape {
        coordinators: 1,
        nodes: 1,
        devices: 1,
        device_memory: Bytes(device_memory),
        host_memory: Bytes(0),
        block_size: Bytes(block_size),
        // A strategy that declines what never comes back would leave nothing to measure.
        strategy: Some("lru".to_owned()),
        ..LocalShape::default()
    }
}

/// A private cluster and how to reach it.
pub(crate) struct Private {
    // Dropped in this order: processes first, then their folder.
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl Private {
    /// Starts a cluster of this shape.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(shape: LocalShape) -> Result<Private> {
        Private::start_with(shape, |_| Vec::new())
    }

    /// Sums a figure of `/metrics` over the nodes that are wanted.
    ///
    /// # Errors
    /// When one of them does not answer, or does not tell it.
    pub(crate) fn summed(&self, figure: &str, is_wanted: impl Fn(&str) -> bool) -> Result<f64> {
        let target = Target { admin: None, token_file: None, ca: None, dir: self.folder().to_owned() };
        let admin = target.resolve()?;
        let of = |admin: Admin| {
            let text = String::from_utf8(admin.get_bytes("/metrics", 16 << 20)?)?;
            let line = text.lines().find_map(|line| line.strip_prefix(figure)?.split_whitespace().last());
            line.with_context(|| format!("a node does not tell {figure}"))?.parse::<f64>().map_err(Into::into)
        };
        let nodes = self.config().nodes.iter().filter(|node| is_wanted(&node.id));
        nodes.map(|node| of(admin.of_node(&node.metrics.to_string()))).sum()
    }

    /// Starts a cluster of this shape, with the overrides that `adjust` puts over its cluster file.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start_with(
        shape: LocalShape,
        adjust: impl FnOnce(&ClusterConfig) -> Vec<(String, String)>,
    ) -> Result<Private> {
        let folder = tempfile::Builder::new().prefix("kvhive-bench-").tempdir()?;
        local::prepare(folder.path(), Some(shape), false)?;
        let file = folder.path().join(local::CONFIG_FILE);
        let text = std::fs::read_to_string(&file)?;
        let overrides = adjust(&ClusterConfig::from_toml(&text, std::iter::empty())?);
        let adjusted = ClusterConfig::from_toml(&text, overrides)?.to_toml();
        std::fs::write(&file, adjusted.expect("a local cluster lists its nodes"))?;
        let cluster = Cluster::start(folder.path(), |_| {})?;
        Ok(Private { cluster, folder })
    }

    /// Connects to it with the changes that `adjust` makes to the default client.
    ///
    /// # Errors
    /// When no coordinator answers.
    pub(crate) async fn client(&self, adjust: impl FnOnce(&mut ClientConfig)) -> Result<Client> {
        let mut config = self.client_config()?;
        adjust(&mut config);
        Ok(Client::connect(config).await?)
    }

    /// Returns how a client reaches it: by sockets alone, as from another host.
    ///
    /// # Errors
    /// When the token cannot be read.
    pub(crate) fn client_config(&self) -> Result<ClientConfig> {
        let token = std::fs::read_to_string(self.folder.path().join(local::TOKEN_FILE))?;
        let coordinators = self.cluster.running(true).coordinators;
        let tls = trust::of_local(self.folder.path())?;
        let config = ClientConfig::new(coordinators, token.trim().as_bytes().to_vec());
        Ok(ClientConfig { tls, shared_memory: false, ..config })
    }

    /// Returns its folder.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Returns the process ids of its nodes.
    pub(crate) fn node_pids(&self) -> Vec<u32> {
        let running = self.cluster.running(true);
        running.processes.iter().filter(|process| process.kind == "node").map(|process| process.pid).collect()
    }

    /// Returns the names of its processes that run.
    pub(crate) fn running(&self) -> Vec<String> {
        self.cluster.running(true).processes.into_iter().map(|process| process.id).collect()
    }

    /// Returns the cluster file's content.
    pub(crate) fn config(&self) -> &ClusterConfig {
        self.cluster.config()
    }

    /// Gives access to its processes.
    pub(crate) fn cluster(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}
