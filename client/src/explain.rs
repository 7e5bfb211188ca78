//! Explaining misses: every device that should have a block is asked for it, and for the block at which a prefix ends every other
//! device too. What their answers come to is [`fold`]'s, in what words it is told `words`'s. Nothing is held, used or counted by it.

use crate::client::{Client, Shared};
use crate::error::ClientError;
use crate::fetch::{run_all, senseless};
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::retry::in_time;
use crate::rounds::Rounds;
use crate::route::{Job, every_replica, split};
use kvhive_protocol::data::{DataReply, DataRequest, MAX_KEYS_PER_MATCH};
use kvhive_protocol::explain::{ExplainRequest, Explained, Lapse, MAX_KEYS_PER_EXPLAIN};
use kvhive_protocol::{BlockKey, ClusterMap, DeviceId, KeyList, MemberState, Slot, TenantId, WireError};
use kvhive_wire::Fault;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

mod verdict;
mod words;

pub(crate) use verdict::fold;
pub use verdict::{Place, Replica, Silence, Verdict};

/// The most devices that are asked for blocks that may be anywhere.
const MAX_DEVICES: usize = 256;

/// Why the blocks of a request are there, or not.
#[derive(Clone, PartialEq, Debug)]
pub struct Explanation {
    /// Block by block.
    pub blocks: Vec<BlockExplained>,
    /// Devices whose nodes had no serving lease for a while since they started: they served nothing then.
    pub lapses: BTreeMap<DeviceId, Lapse>,
    /// The names of the nodes of all devices in it.
    pub nodes: BTreeMap<DeviceId, String>,
    /// The names of the nodes that are down: what only they held is gone, or comes back with them.
    pub down: Vec<String>,
    /// Devices that may have a block and were not asked, because the cluster has more than are asked.
    pub not_asked: usize,
}

/// Why one block is there, or not.
#[derive(Clone, PartialEq, Debug)]
pub struct BlockExplained {
    /// Which.
    pub key: BlockKey,
    /// Where it is placed; none where nobody knows.
    pub slot: Option<Slot>,
    /// What each device that was asked says.
    pub replicas: Vec<Replica>,
    /// What that comes to.
    pub verdict: Verdict,
}

impl Explanation {
    /// Returns how many blocks are there from the first on, without a gap: what of a prefix is of use.
    pub fn covered(&self) -> usize {
        self.blocks.iter().take_while(|block| block.verdict.is_here()).count()
    }
}

/// What devices have said of the keys at some positions.
#[derive(Default)]
struct Answers {
    said: BTreeMap<DeviceId, BTreeMap<usize, Explained>>,
    silent: BTreeMap<DeviceId, Silence>,
    lapses: BTreeMap<DeviceId, Lapse>,
}

impl Answers {
    fn replica(&self, device: DeviceId, at: usize, place: Place) -> Replica {
        let said = self.said.get(&device).and_then(|said| said.get(&at)).copied();
        let silence = || self.silent.get(&device).cloned().unwrap_or(Silence::NotAsked);
        Replica { device, place, said: said.ok_or_else(silence) }
    }
}

impl NamespaceClient {
    /// Says why each block of `prefix` is there, or not, and where.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] for a prefix of more than 65,536 blocks. Devices that do not answer are in the explanation.
    pub async fn explain(&self, prefix: &Prefix) -> Result<Explanation, ClientError> {
        self.check_length(prefix, "explanation")?;
        let (shared, deadline) = (self.shared(), self.deadline());
        let jobs = |map: &ClusterMap| every_replica(map, prefix);
        let (map, answers) = shared.ask_why(self.tenant, prefix.keys(), jobs, deadline).await;
        let mut blocks = Vec::with_capacity(prefix.len());
        for at in 0..prefix.len() {
            let home = prefix.home(at, map.settings.segment_blocks as usize);
            let slot = prefix.keys()[home].slot();
            let replica = |device: &DeviceId| {
                let place = if map.is_filling(slot, *device) { Place::Filling } else { Place::Whole };
                answers.replica(*device, at, place)
            };
            let replicas = map.replicas(slot).0.iter().map(replica).collect();
            blocks.push(self.judged(prefix.keys()[at], Some(slot), replicas));
        }
        let mut explanation = Explanation {
            blocks,
            lapses: answers.lapses,
            nodes: BTreeMap::new(),
            down: down(&map),
            not_asked: 0,
        };
        self.ask_others(&map, &mut explanation, deadline).await;
        explanation.name_nodes(&map);
        Ok(explanation)
    }

    fn judged(&self, key: BlockKey, slot: Option<Slot>, replicas: Vec<Replica>) -> BlockExplained {
        let verdict = fold(&replicas, Some(self.fingerprint));
        BlockExplained { key, slot, replicas, verdict }
    }

    /// Asks all others for the block at which the prefix ends, if those that it is placed on do not say why: its slot may have left
    /// one that has it.
    async fn ask_others(&self, map: &ClusterMap, explanation: &mut Explanation, deadline: Instant) {
        let covered = explanation.covered();
        let Some(block) = explanation.blocks.get_mut(covered) else { return };
        if !block.verdict.may_be_elsewhere() {
            return;
        }
        let is_asked = |device: &DeviceId| block.replicas.iter().any(|replica| replica.device == *device);
        let (others, not_asked) = some_devices(map, |device| !is_asked(device));
        let jobs = |_: &ClusterMap| everywhere(&others, 1);
        let (_, answers) = self.shared().ask_why(self.tenant, &[block.key], jobs, deadline).await;
        let others = others.into_iter().map(|device| answers.replica(device, 0, Place::Elsewhere));
        // Who knows nothing has nothing to add.
        block.replicas.extend(others.filter(|one| matches!(one.said, Ok(said) if !is_unknown(&said))));
        block.verdict = fold(&block.replicas, Some(self.fingerprint));
        explanation.not_asked = not_asked;
    }
}

impl Client {
    /// Says why blocks of a tenant are there, or not, of which nothing but the keys is known: every device is asked for them.
    ///
    /// # Errors
    /// [`ClientError::UnknownTenant`], and [`ClientError::Misuse`] for more than 65,536 keys.
    pub async fn explain_keys(&self, tenant: &str, keys: &[BlockKey]) -> Result<Explanation, ClientError> {
        if keys.len() > MAX_KEYS_PER_MATCH {
            return Err(ClientError::Misuse(format!(
                "{} keys in one explanation, at most {MAX_KEYS_PER_MATCH}",
                keys.len()
            )));
        }
        let map = self.map();
        let pool = map.tenant(tenant).and_then(|(id, _)| map.pool_of(id));
        let (pool, _) = pool.ok_or_else(|| ClientError::UnknownTenant(tenant.to_owned()))?;
        let deadline = in_time(self.shared.config.request_timeout);
        let jobs = |map: &ClusterMap| everywhere(&some_devices(map, |_| true).0, keys.len());
        let (map, answers) = self.shared.ask_why(pool, keys, jobs, deadline).await;
        let (devices, not_asked) = some_devices(&map, |_| true);
        let explain = |(at, key): (usize, &BlockKey)| {
            let replica = |device: &DeviceId| {
                let one = answers.replica(*device, at, Place::Unknown);
                Replica { place: place_of(&map, &one), ..one }
            };
            let replicas: Vec<Replica> = devices.iter().map(replica).collect();
            let slot = replicas.iter().find_map(|one| match one.said {
                Ok(Explained::Here { slot, .. }) => Some(slot),
                _ => None,
            });
            let verdict = fold(&replicas, None);
            BlockExplained { key: *key, slot, replicas, verdict }
        };
        let blocks = keys.iter().enumerate().map(explain).collect();
        let mut explanation = Explanation {
            blocks,
            lapses: answers.lapses,
            nodes: BTreeMap::new(),
            down: down(&map),
            not_asked,
        };
        explanation.name_nodes(&map);
        Ok(explanation)
    }
}

impl Explanation {
    fn name_nodes(&mut self, map: &ClusterMap) {
        for device in self.blocks.iter().flat_map(|block| &block.replicas).map(|replica| replica.device) {
            let name = || map.owner(device).map_or_else(|| device.member.to_string(), |one| one.name.clone());
            self.nodes.entry(device).or_insert_with(name);
        }
        let nodes = &self.nodes;
        self.lapses.retain(|device, _| nodes.contains_key(device));
    }
}

impl Shared {
    /// Asks for each of `jobs` until all have answered, or cannot; returns by which map they were asked at last.
    async fn ask_why(
        self: &Arc<Self>,
        tenant: TenantId,
        keys: &[BlockKey],
        jobs: impl Fn(&ClusterMap) -> Vec<Job>,
        deadline: Instant,
    ) -> (Arc<ClusterMap>, Answers) {
        let mut rounds = Rounds::until(self, deadline);
        let mut answers = Answers::default();
        let mut by = self.map();
        loop {
            let map = self.map();
            if map.epoch != by.epoch {
                // By another map other slots are a device's.
                answers.said.clear();
            }
            by = map;
            let mut open = jobs(&by);
            let avoid = &rounds.avoid;
            open.retain(|job| !answers.said.contains_key(&job.device) && !avoid.contains(&job.device));
            let tasks = open.into_iter().map(|job| self.ask_one_why(tenant, keys, &by, job, deadline));
            let mut failed = Vec::new();
            for (device, answer) in run_all(tasks.collect()).await {
                match answer {
                    Ok((said, lapse)) => {
                        answers.silent.remove(&device);
                        answers.said.insert(device, said);
                        answers.lapses.extend(lapse.map(|lapse| (device, lapse)));
                    }
                    Err(fault) => {
                        answers.silent.insert(device, silence(&fault));
                        failed.push((device, fault));
                    }
                }
            }
            if failed.is_empty() || !rounds.mend(&by, &failed).await {
                return (by, answers);
            }
        }
    }

    async fn ask_one_why(
        self: &Arc<Self>,
        tenant: TenantId,
        keys: &[BlockKey],
        map: &ClusterMap,
        job: Job,
        deadline: Instant,
    ) -> (DeviceId, Result<(BTreeMap<usize, Explained>, Option<Lapse>), Fault>) {
        let (device, mut said, mut lapsed) = (job.device, BTreeMap::new(), None);
        for part in split(job, MAX_KEYS_PER_EXPLAIN) {
            let request = DataRequest::Explain(ExplainRequest {
                epoch: map.epoch,
                device,
                tenant,
                runs: part.runs,
                keys: part.positions.iter().map(|at| keys[*at]).collect::<KeyList>(),
            });
            match self.call(map, device, &request, None, deadline).await {
                Ok(DataReply::Explained { lapse, blocks, .. }) if blocks.len() == part.positions.len() => {
                    said.extend(part.positions.into_iter().zip(blocks));
                    lapsed = lapse;
                }
                Ok(_) => return (device, Err(senseless("a question why was answered otherwise"))),
                Err(fault) => return (device, Err(fault)),
            }
        }
        (device, Ok((said, lapsed)))
    }
}

fn silence(fault: &Fault) -> Silence {
    match fault {
        Fault::Refused(WireError::NoLease) => Silence::NoLease,
        Fault::Refused(error) => Silence::Refused(error.to_string()),
        Fault::Timeout(limit) => Silence::Late(*limit),
        other => Silence::Unreachable(other.to_string()),
    }
}

fn is_unknown(said: &Explained) -> bool {
    matches!(said, Explained::Unknown { .. })
}

/// Returns the devices of those that are up that may be asked, and how many of them are too many.
fn some_devices(map: &ClusterMap, is_one: impl Fn(&DeviceId) -> bool) -> (Vec<DeviceId>, usize) {
    let mut devices: Vec<DeviceId> = map.devices_up().map(|(device, _)| device).filter(is_one).collect();
    let not_asked = devices.len().saturating_sub(MAX_DEVICES);
    devices.truncate(MAX_DEVICES);
    (devices, not_asked)
}

fn down(map: &ClusterMap) -> Vec<String> {
    let down = map.members.values().filter(|member| member.state == MemberState::Down);
    down.map(|member| member.name.clone()).collect()
}

/// Asks devices for as many keys, wherever they lie.
fn everywhere(devices: &[DeviceId], keys: usize) -> Vec<Job> {
    let job = |device: &DeviceId| Job {
        device: *device,
        runs: Vec::new(),
        positions: (0..keys).collect(),
        is_guest: false,
    };
    devices.iter().map(job).collect()
}

/// Says whether a block that is on a device is there for those who ask.
fn place_of(map: &ClusterMap, one: &Replica) -> Place {
    match one.said {
        Ok(Explained::Here { slot, .. }) if !map.replicas(slot).contains(one.device) => Place::Elsewhere,
        Ok(Explained::Here { .. }) => Place::Whole,
        _ => Place::Unknown,
    }
}
