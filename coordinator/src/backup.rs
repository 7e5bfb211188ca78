//! A backup: the replicated state in one file, with what is needed to know it again. Guards nothing but itself: it holds the
//! tenants' secrets, and whoever keeps it keeps those.
//!
//! ```text
//! "kvhiveBU"  format  head's length  head (JSON)  state  BLAKE3 of all before it
//! ```

use kvhive_control::{MAX_SNAPSHOT_BYTES, Registry, RestoreError, STATE_VERSION};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The largest backup, in bytes.
pub const MAX_BACKUP_BYTES: usize = MAX_SNAPSHOT_BYTES + MAX_HEAD_BYTES + FRONT_BYTES + SUM_BYTES;

const MAGIC: [u8; 8] = *b"kvhiveBU";
const FORMAT: u32 = 1;
const FRONT_BYTES: usize = MAGIC.len() + 8;
const MAX_HEAD_BYTES: usize = 4096;
const SUM_BYTES: usize = 32;

/// What a backup says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupHead {
    /// The version of the state.
    pub state_version: u32,
    /// The cluster's random identity, in hexadecimal.
    pub cluster: String,
    /// The cluster's name.
    pub name: String,
    /// The map's epoch.
    pub epoch: u64,
    /// The raft term that it was taken in.
    pub term: u64,
    /// The last log entry that it contains.
    pub index: u64,
    /// When, by the clock of the coordinator that gave it: milliseconds since 1970.
    pub at_ms: u64,
    /// How many nodes it knows.
    pub members: usize,
    /// How many tenants.
    pub tenants: usize,
}

/// The replicated state of a cluster at some time.
#[derive(Clone)]
pub struct Backup {
    head: BackupHead,
    registry: Registry,
}

/// Why bytes are no backup that can be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BackupError {
    /// They never were one, or not all of one.
    #[error("it is no backup of kvhive, or not all of one: {0}")]
    Damaged(&'static str),
    /// Another build wrote them.
    #[error("it has backup format {found}, this build reads {FORMAT}: use the build that wrote it")]
    Format {
        /// Their format.
        found: u32,
    },
    /// The state in them is of another build.
    #[error(
        "it holds a cluster's state of version {found}, this build has version {STATE_VERSION}: restore it with the build that wrote it"
    )]
    State {
        /// The state's version.
        found: u32,
    },
    /// The state in them is none.
    #[error("its state cannot be used: {0}")]
    Content(#[from] RestoreError),
}

impl Backup {
    /// Makes a backup of a state; none before the cluster was started.
    pub(crate) fn of(registry: Registry, (index, term): (u64, u64), at_ms: u64) -> Option<Backup> {
        let map = registry.map()?;
        let head = BackupHead {
            state_version: STATE_VERSION,
            cluster: map.cluster.to_string(),
            name: map.name.clone(),
            epoch: map.epoch.0,
            term,
            index,
            at_ms,
            members: map.members.len(),
            tenants: map.tenants.len(),
        };
        Some(Backup { head, registry })
    }

    /// Returns what it says of itself.
    pub fn head(&self) -> &BackupHead {
        &self.head
    }

    /// Returns the state.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns its bytes. Whoever stores them guards them: the tenants' secrets are in them.
    pub fn encode(&self) -> Vec<u8> {
        let head = serde_json::to_vec(&self.head).expect("names and numbers always encode");
        let mut out = MAGIC.to_vec();
        out.extend(FORMAT.to_le_bytes());
        out.extend((head.len() as u32).to_le_bytes());
        out.extend(head);
        out.extend(self.registry.snapshot());
        let sum = blake3::hash(&out);
        out.extend(sum.as_bytes());
        out
    }

    /// Reads a backup again, and checks it whole.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn decode(bytes: &[u8]) -> Result<Backup, BackupError> {
        let damaged = BackupError::Damaged;
        let rest = bytes.strip_prefix(&MAGIC).ok_or(damaged("it does not begin as one"))?;
        let number = |rest: &[u8]| -> Result<u32, BackupError> {
            let four = rest.first_chunk::<4>().ok_or(damaged("it is cut short"))?;
            Ok(u32::from_le_bytes(*four))
        };
        let found = number(rest)?;
        if found != FORMAT {
            return Err(BackupError::Format { found });
        }
        let at = bytes.len().checked_sub(SUM_BYTES).filter(|at| *at >= FRONT_BYTES);
        let (body, sum) = bytes.split_at(at.ok_or(damaged("it is cut short"))?);
        if *blake3::hash(body).as_bytes() != *sum {
            return Err(damaged("its checksum does not match"));
        }
        let length = number(&rest[4..])? as usize;
        let (head, state) = body[FRONT_BYTES..]
            .split_at_checked(length)
            .filter(|_| length <= MAX_HEAD_BYTES)
            .ok_or(damaged("its head is not as long as it says"))?;
        let head: BackupHead =
            serde_json::from_slice(head).map_err(|_| damaged("its head cannot be understood"))?;
        if head.state_version != STATE_VERSION {
            return Err(BackupError::State { found: head.state_version });
        }
        let registry = Registry::restore(state)?;
        let again = Backup::of(registry, (head.index, head.term), head.at_ms);
        // A head beside another state would name another cluster, or have its log begin before what it holds.
        let again = again.filter(|again| again.head == head && head.index >= again.registry.applied());
        again.ok_or(damaged("its head is another state's"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use kvhive_protocol::control::{Command, Proposal};
    use kvhive_protocol::data::Ack;
    use kvhive_protocol::map::Settings;
    use kvhive_protocol::{ClusterId, RequestId, TenantRules};

    /// A cluster `ours` with two tenants, of three log entries.
    pub(crate) fn backup() -> Backup {
        let settings = Settings {
            replicas: 1,
            segment_blocks: 16,
            ack: Ack::Primary,
            lease_ms: 2000,
            heartbeat_ms: 500,
            serving_lease_ms: 2000,
        };
        let mut registry = Registry::new();
        let (cluster, name) = (ClusterId(7), "ours".to_owned());
        let begin = Command::Bootstrap {
            cluster,
            name,
            settings,
            default_secret: [1; 32],
            scaling: Default::default(),
            coordinators: Vec::new(),
            level: kvhive_protocol::Level::NEWEST,
        };
        let tenant =
            Command::CreateTenant { name: "team".into(), secret: [2; 32], rules: TenantRules::default() };
        for (index, command) in [(2, begin), (3, tenant)] {
            registry.apply(index, Proposal { request: RequestId { client: 1, sequence: index }, command });
        }
        Backup::of(registry, (5, 2), 99).expect("the cluster was started")
    }

    #[test]
    fn a_backup_reads_back_and_no_part_or_change_of_it_does() {
        let bytes = backup().encode();
        let again = Backup::decode(&bytes).expect("it is whole");
        assert_eq!(again.head(), backup().head());
        assert_eq!(again.encode(), bytes);
        assert_eq!((again.head().tenants, again.head().index), (2, 5));
        for length in 0..bytes.len() {
            assert!(Backup::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Backup::decode(&changed).is_err(), "byte {at}");
        }
        assert!(Backup::of(Registry::new(), (1, 1), 0).is_none());
    }

    #[test]
    fn one_of_another_build_is_refused_by_name() {
        let mut other = backup();
        other.head.state_version += 1;
        let error = Backup::decode(&other.encode()).err().expect("it is another's");
        assert_eq!(error, BackupError::State { found: STATE_VERSION + 1 });
        let mut other = backup().encode();
        other[8] = 9;
        assert_eq!(Backup::decode(&other).err(), Some(BackupError::Format { found: 9 }));
        let mut other = backup();
        other.head.index = 2;
        assert!(Backup::decode(&other.encode()).is_err(), "it would begin before what it holds");
    }
}
