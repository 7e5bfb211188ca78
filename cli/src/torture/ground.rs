//! The cluster that is broken: its processes, its folder, and when it is whole again.

use super::isolated::{Isolation, probe, wrong_clock};
use super::load::{self, Load};
use super::made::{LISTS, moved, prepared};
use super::rot::Damage;
use super::shared::Shared;
use super::whole::Whole;
use crate::admin::{Admin, Target};
use crate::cluster::end::signal;
use crate::cluster::local::{self, Begins, Cluster};
use crate::trust;
use anyhow::{Context, Result, bail};
use kvhive_client::ClientConfig;
use kvhive_oracle::Fault;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// How long a cluster may take until it is whole after a fault is over.
pub(super) const HEAL_LIMIT: Duration = Duration::from_secs(60);
/// The largest page of metrics.
const METRICS_BYTES: usize = 8 << 20;
const POLL: Duration = Duration::from_millis(100);
/// How long a coordinator may take to answer, who may be stopped.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// A cluster whose processes may be broken.
pub(super) struct Ground {
    // Dropped in this order: processes first, then their networks and disks, then their folder.
    cluster: Cluster,
    /// Networks and disks of its processes; why there are none otherwise.
    isolation: Result<Isolation, String>,
    dir: PathBuf,
    stopped: BTreeSet<String>,
    /// Who may end by itself, for what is done to it.
    excused: BTreeSet<String>,
    /// What has ended by itself and was not excused, with why, that nobody was told yet.
    ended: Vec<String>,
    /// What is known of nodes besides the map.
    pub(super) whole: Whole,
    damage: Damage,
    folder: Option<tempfile::TempDir>,
}

impl Ground {
    /// Starts a cluster of its own: three coordinators, four nodes with little memory and a disk tier each. Where nodes are to be stopped
    /// past their serving lease it is short.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn own(pauses: bool) -> Result<Ground> {
        let (folder, _) = prepared(pauses, |config| config.to_toml().context(LISTS))?;
        let cluster = Cluster::start(folder.path(), |_| {})?;
        Ok(Ground::new(
            cluster,
            Err("only with --namespaces".to_owned()),
            folder.path().to_owned(),
            Some(folder),
        ))
    }

    /// The same, each process in a network of its own and each coordinator with a disk of its own, where this machine can do that.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn isolated(pauses: bool) -> Result<Ground> {
        let can = match probe() {
            Ok(can) => can,
            Err(why) => {
                let mut ground = Ground::own(pauses)?;
                ground.isolation = Err(why);
                return Ok(ground);
            }
        };
        let has_disks = can.get(&Fault::FullDisk).is_some_and(Result::is_ok);
        let mut isolation = None;
        let (folder, config) = prepared(pauses, |config| {
            let ids: Vec<String> = config.ids().map(str::to_owned).collect();
            let made = isolation.insert(Isolation::new(&ids, can)?);
            Ok(moved(&config.to_toml().context(LISTS)?, |id| made.network().host(id)))
        })?;
        let mut isolation = isolation.context("it was made with the cluster file")?;
        let images = folder.path().join("images");
        std::fs::create_dir(&images)?;
        for one in config.coordinators.iter().filter(|_| has_disks) {
            isolation.give_disk(&one.id, &images.join(&one.id), &folder.path().join("data").join(&one.id))?;
        }
        let begins: Begins = config.ids().map(|id| (id.to_owned(), isolation.network().begin(id))).collect();
        let cluster = Cluster::start_as(folder.path(), begins, |_| {})?;
        Ok(Ground::new(cluster, Ok(isolation), folder.path().to_owned(), Some(folder)))
    }

    fn new(
        cluster: Cluster,
        isolation: Result<Isolation, String>,
        dir: PathBuf,
        folder: Option<tempfile::TempDir>,
    ) -> Ground {
        let whole = Whole::of(cluster.config().nodes.len());
        Ground {
            cluster,
            isolation,
            dir,
            stopped: BTreeSet::new(),
            excused: BTreeSet::new(),
            ended: Vec::new(),
            whole,
            damage: Damage::default(),
            folder,
        }
    }

    /// Starts the cluster that `kvhive up` made in `dir`.
    ///
    /// # Errors
    /// When there is none, it runs, or it does not start.
    pub(super) fn of(dir: &Path) -> Result<Ground> {
        if !dir.join(local::CONFIG_FILE).exists() {
            bail!("no cluster in {}: `kvhive up --dir {}` makes one", dir.display(), dir.display());
        }
        if local::Running::load(dir).is_ok() {
            bail!(
                "a cluster runs in {dir}; its processes are to be this command's own: end it with `kvhive down --dir {dir}` first",
                dir = dir.display()
            );
        }
        let cluster = Cluster::start(dir, |_| {})?;
        let why = "only a cluster of its own can have networks of its own".to_owned();
        Ok(Ground::new(cluster, Err(why), dir.canonicalize()?, None))
    }

    /// Returns the cluster's folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns how a client reaches it.
    ///
    /// # Errors
    /// When token or certificates cannot be read.
    pub(super) fn client_config(&self) -> Result<ClientConfig> {
        let token = std::fs::read_to_string(self.dir.join(local::TOKEN_FILE))?;
        let coordinators = self.cluster.running(true).coordinators;
        let config = ClientConfig::new(coordinators, token.trim().as_bytes().to_vec());
        Ok(ClientConfig { tls: trust::of_local(&self.dir)?, request_timeout: load::READ_LIMIT, ..config })
    }

    /// Returns its admin API, asked with little patience.
    ///
    /// # Errors
    /// When token or certificates cannot be read.
    pub(super) fn admin(&self) -> Result<Admin> {
        let target = Target {
            admin: Some(self.cluster.running(true).admin_urls.join(",")),
            token_file: Some(self.dir.join(local::TOKEN_FILE)),
            ca: trust::local_authority(&self.dir),
            dir: self.dir.clone(),
        };
        target.resolve_within(ANSWER_LIMIT, ANSWER_LIMIT)
    }

    /// Names its coordinators, as the cluster file does.
    pub(super) fn coordinators(&self) -> Vec<String> {
        self.cluster.config().coordinators.iter().map(|one| one.id.clone()).collect()
    }

    /// Names its nodes.
    pub(super) fn nodes(&self) -> Vec<String> {
        self.cluster.config().nodes.iter().map(|one| one.id.clone()).collect()
    }

    /// Returns how long a node may be a member, and serve, without being heard.
    pub(super) fn leases(&self) -> (Duration, Duration) {
        let settings = &self.cluster.config().cluster;
        (settings.lease, settings.serving_lease)
    }

    /// Returns who leads the coordinators, by the first of them that says so.
    pub(super) fn leader(&self) -> Option<String> {
        self.leader_but(&BTreeSet::new())
    }

    /// Returns who leads and is none of these.
    pub(super) fn leader_but(&self, gone: &BTreeSet<String>) -> Option<String> {
        let begun = Instant::now();
        while begun.elapsed() < HEAL_LIMIT {
            let answers = self.admin().ok()?.each();
            let leader = |admin: &Admin| {
                let status = admin.get::<Value>("/v1/cluster?consistency=stale").ok()?;
                status["leader"].as_str().filter(|leader| !gone.contains(*leader)).map(str::to_owned)
            };
            if let Some(leader) = answers.iter().find_map(leader) {
                return Some(leader);
            }
            std::thread::sleep(POLL);
        }
        None
    }

    /// Returns how many records of its disk a node has found to be damaged since it was last asked; 0 where it does not answer.
    pub(super) fn new_damage(&mut self, load: &Load, node: &str) -> u64 {
        let said = self.cluster.pid(node).zip(self.bad_records(load, node));
        said.map_or(0, |(pid, found)| self.damage.says(node, pid, found))
    }

    fn bad_records(&self, load: &Load, node: &str) -> Option<u64> {
        let map = load.client().map();
        let address = map.member(node).map(|(_, member)| member.metrics_address.clone());
        let page = address.and_then(|address| {
            let admin = self.admin().ok()?.of_node(&address);
            String::from_utf8(admin.get_bytes("/metrics", METRICS_BYTES).ok()?).ok()
        })?;
        let of_it = page.lines().filter(|line| line.starts_with("kvhive_node_disk_bad_records_total{"));
        Some(of_it.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
    }

    /// Kills a process at once.
    ///
    /// # Errors
    /// When it does not run.
    pub(super) fn kill(&mut self, id: &str) -> Result<()> {
        self.stopped.remove(id);
        if let Some(status) = self.cluster.kill(id)? {
            self.note_end(id, status);
        }
        Ok(())
    }

    /// Ends a process in order.
    ///
    /// # Errors
    /// When it does not run.
    pub(super) fn finish(&mut self, id: &str) -> Result<()> {
        // What has ended already is started again, and told, before it is ended.
        self.revive()?;
        self.cluster.end(id)
    }

    /// Starts a process that does not run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(&mut self, id: &str) -> Result<()> {
        self.cluster.respawn(id)
    }

    /// Stops a process where it is.
    pub(super) fn pause(&mut self, id: &str) {
        if let Some(pid) = self.cluster.pid(id) {
            self.stopped.insert(id.to_owned());
            signal(pid, Signal::STOP);
        }
    }

    /// Has a stopped process go on.
    pub(super) fn resume(&mut self, id: &str) {
        self.stopped.remove(id);
        if let Some(pid) = self.cluster.pid(id) {
            signal(pid, Signal::CONT);
        }
    }

    /// Says why a fault cannot be made that needs hosts of their own.
    pub(super) fn lacks(&self, fault: Fault) -> Option<String> {
        match &self.isolation {
            Err(why) => Some(why.clone()),
            Ok(isolation) => match isolation.can().get(&fault) {
                Some(Ok(())) => None,
                Some(Err(why)) => Some(why.clone()),
                None => Some("it is no fault of a host".to_owned()),
            },
        }
    }

    /// Returns its networks and disks.
    ///
    /// # Errors
    /// Why there are none.
    pub(super) fn isolation(&mut self) -> Result<&mut Isolation> {
        self.isolation.as_mut().map_err(|why| anyhow::anyhow!("{why}"))
    }

    /// Has a process be begun with another clock from its next start on, or as before.
    pub(super) fn set_clock(&mut self, id: &str, hours: Option<i64>) -> Result<()> {
        let begin = self.isolation()?.network().begin(id);
        self.cluster.begin_as(id, hours.map_or_else(|| begin.clone(), |hours| wrong_clock(&begin, hours)));
        Ok(())
    }

    /// Returns a process' id.
    pub(super) fn pid(&self, id: &str) -> Option<u32> {
        self.cluster.pid(id)
    }

    /// From now on until the cluster is whole again this process may end by itself, for what is done to it.
    pub(super) fn excuse(&mut self, id: &str) {
        self.excused.insert(id.to_owned());
    }

    /// Notes that a process has ended by itself.
    fn note_end(&mut self, id: &str, status: ExitStatus) {
        tracing::debug!(id, %status, "ended by itself");
        if !self.excused.contains(id) {
            let tail = self.cluster.log_tail(id);
            let last = tail.lines().last().unwrap_or_default();
            self.ended.push(format!("{id} ended ({status}); its log ends with: {last}"));
        }
    }

    /// Tells what has ended by itself: each of them is counted.
    pub(super) fn tell_ends(&mut self, shared: &Shared) {
        for ended in std::mem::take(&mut self.ended) {
            shared.figures().ended += 1;
            shared.found(ended);
        }
    }

    /// Says whether a process has ended by itself. It is not looked after any more then; others that have are started again.
    ///
    /// # Errors
    /// When the system does not say.
    pub(super) fn has_ended(&mut self, id: &str) -> Result<bool> {
        while let Some((ended, status)) = self.cluster.dead()? {
            self.note_end(&ended, status);
            if ended != id {
                self.cluster.respawn(&ended)?;
            }
        }
        Ok(self.cluster.pid(id).is_none())
    }

    /// Starts what ended by itself.
    ///
    /// # Errors
    /// When the system does not say, or it cannot be started.
    pub(super) fn revive(&mut self) -> Result<()> {
        while let Some((id, status)) = self.cluster.dead()? {
            self.note_end(&id, status);
            self.cluster.respawn(&id)?;
        }
        Ok(())
    }

    /// Starts every process that is not there, whatever was done to it, and waits until somebody leads.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub(super) fn complete(&mut self) -> Result<()> {
        self.resume_all();
        self.revive()?;
        for id in [self.coordinators(), self.nodes()].concat() {
            if self.cluster.pid(&id).is_none() {
                self.cluster.respawn(&id)?;
            }
        }
        self.leader().context("no coordinator leads").map(|_| ())
    }

    /// Waits until every process is there, every slot has all of its replicas and none of them lacks anything; what ends by itself is
    /// started again, and told. Says what is lacking if that takes too long.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub(super) fn heal(
        &mut self,
        shared: &Shared,
        runtime: &tokio::runtime::Runtime,
        load: &Load,
    ) -> Result<Result<(), String>> {
        let begun = Instant::now();
        loop {
            self.revive()?;
            self.tell_ends(shared);
            let lacking = match runtime.block_on(load.follow()) {
                Err(error) => format!("no map: {error}"),
                Ok(map) => match self.whole.lacking(&map, &BTreeSet::new()).or_else(|| self.silent()) {
                    None => {
                        self.renewed(&BTreeSet::new());
                        return Ok(Ok(()));
                    }
                    Some(lacking) => lacking,
                },
            };
            if begun.elapsed() > HEAL_LIMIT || shared.is_interrupted() {
                return Ok(Err(lacking));
            }
            std::thread::sleep(POLL);
        }
    }

    /// A node loses what it holds: it has to be heard anew.
    pub(super) fn renews(&mut self, runtime: &tokio::runtime::Runtime, load: &Load, id: &str) {
        // Where no coordinator answers, the newest map that the client has.
        if let Err(error) = runtime.block_on(load.follow()) {
            tracing::debug!(%error, "the map could not be refreshed");
        }
        if let Some((member, known)) = load.client().map().member(id) {
            self.whole.renews(id, known.generation);
            load.shared.holders().hits(member, known.generation);
        }
    }

    /// A node that was to lose what it holds has lost nothing.
    pub(super) fn stays(&mut self, load: &Load, id: &str) {
        self.whole.stays(id);
        if let Some((member, _)) = load.client().map().member(id) {
            load.shared.holders().spares(member);
        }
    }

    /// The cluster is whole without these: who is among them has still to be heard anew.
    pub(super) fn renewed(&mut self, gone: &BTreeSet<String>) {
        self.whole.renewed(gone);
        self.excused.clear();
    }

    /// Says which coordinator does not follow.
    pub(super) fn silent(&self) -> Option<String> {
        let Ok(admin) = self.admin() else { return Some("the token cannot be read".to_owned()) };
        let status = match admin.get::<Value>("/v1/cluster") {
            Ok(status) => status,
            Err(error) => return Some(format!("no status: {error:#}")),
        };
        let coordinators = status["coordinators"].as_array().map_or(&[][..], Vec::as_slice);
        let silent = coordinators.iter().find(|one| one["role"] == "unreachable")?;
        Some(format!("{} does not answer", silent["name"]))
    }

    /// Heals it for the last time and looks for every promised block.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub(super) fn settle(
        &mut self,
        shared: &Shared,
        runtime: &tokio::runtime::Runtime,
        load: &Load,
    ) -> Result<()> {
        match self.heal(shared, runtime, load)? {
            Ok(()) => {
                runtime.block_on(load.check_promises());
                // Of those, too, that were not back yet when faults ended.
                for node in self.nodes() {
                    let found = self.new_damage(load, &node);
                    shared.figures().damage_found += found;
                }
            }
            Err(lacking) => {
                shared.figures().not_healed += 1;
                shared.found(format!("not whole at the end: {lacking}"));
            }
        }
        Ok(())
    }

    /// Leaves the folder of a cluster of its own where it is, and says where that is.
    pub(super) fn keep(&mut self) -> PathBuf {
        self.folder.take().map_or_else(|| self.dir.clone(), tempfile::TempDir::keep)
    }

    fn resume_all(&mut self) {
        for id in std::mem::take(&mut self.stopped) {
            self.resume(&id);
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // A stopped process would not hear that it is to end.
        self.resume_all();
    }
}
