//! The handshake: a level is agreed and both ends prove that they know the cluster's token, without sending it.
//!
//! ```text
//! connecting end                        listening end
//!   Hello {versions, role, nonce}  →
//!                                  ←    Challenge {version, nonce, cluster}
//!   Proof {proof}                  →
//!                                  ←    Welcome {proof}      or Refused
//! ```
//! A proof is keyed BLAKE3 over everything both ends have said; compared in constant time. Until the proof has been
//! checked the listening end reads nothing but these frames, each at most [`crate::frame::MAX_GREETING_BYTES`].

use crate::error::WireError;
use crate::ids::ClusterId;
use crate::level::{Level, Levels};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Who connects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Role {
    /// A serving process or a tool.
    Client,
    /// A node: replication to another node, registration and heartbeats to a coordinator.
    Node,
    /// A coordinator: raft messages and forwarded requests.
    Coordinator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Client => "client",
            Role::Node => "node",
            Role::Coordinator => "coordinator",
        })
    }
}

/// The connecting end's first frame.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest level it speaks.
    pub version_min: u16,
    /// The newest level it speaks.
    pub version_max: u16,
    /// Who it is.
    pub role: Role,
    /// Its number where it has one: a coordinator's peer number, a node's member id; else 0.
    pub sender: u64,
    /// The cluster it expects, if it knows.
    pub cluster: Option<ClusterId>,
    /// Fresh random bytes.
    pub nonce: [u8; 32],
}

impl Hello {
    /// Says hello in this process's levels.
    pub fn new(role: Role, sender: u64, cluster: Option<ClusterId>, nonce: [u8; 32], levels: Levels) -> Self {
        let (version_min, version_max) = (Level::OLDEST.0, levels.newest.0);
        Hello { version_min, version_max, role, sender, cluster, nonce }
    }
}

/// The listening end's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Challenge {
    /// The level both ends will speak.
    pub version: u16,
    /// The listening end's cluster, if it knows it already.
    pub cluster: Option<ClusterId>,
    /// Fresh random bytes.
    pub nonce: [u8; 32],
}

/// The connecting end's second frame.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proof {
    /// Keyed hash over both greetings.
    pub proof: [u8; 32],
}

/// The listening end's own proof: the connection stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// Keyed hash over both greetings, under another label than the connecting end's.
    pub proof: [u8; 32],
}

/// Agrees on the newest level that both ends speak.
///
/// # Errors
/// [`WireError::Version`] when there is none, [`WireError::TooOld`] for a member that does not speak its cluster's.
pub fn agree(hello: &Hello, levels: Levels) -> Result<Level, WireError> {
    let level = Level(hello.version_max).min(levels.newest);
    if level.0 < hello.version_min || level < Level::OLDEST {
        return Err(WireError::Version {
            ours_min: Level::OLDEST.0,
            ours_max: levels.newest.0,
            theirs_min: hello.version_min,
            theirs_max: hello.version_max,
        });
    }
    check_member(hello.role, level, levels)?;
    Ok(level)
}

/// Says whether a connection at this level may be had with a member, or by one. Who is no member need not speak the cluster's.
///
/// # Errors
/// [`WireError::TooOld`] when it may not.
pub fn check_member(role: Role, agreed: Level, levels: Levels) -> Result<(), WireError> {
    if role != Role::Client && agreed < levels.cluster {
        return Err(WireError::TooOld { speaks: agreed, cluster: levels.cluster });
    }
    Ok(())
}

/// The shared token, hashed at once so that the token itself is not kept.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl TokenKey {
    /// Derives the proof key from the token's bytes.
    pub fn new(token: &[u8]) -> Self {
        TokenKey(blake3::derive_key("kvhive 2026-11 handshake token v1", token))
    }

    /// Derives the key for one secure channel, of what both its ends know of it and nobody else.
    pub fn bound_to(&self, channel: &[u8; 32]) -> Self {
        let mut both = [0; 64];
        both[..32].copy_from_slice(&self.0);
        both[32..].copy_from_slice(channel);
        TokenKey(blake3::derive_key("kvhive 2026-11 handshake channel v1", &both))
    }

    /// The connecting end's proof.
    pub fn client_proof(&self, hello: &Hello, challenge: &Challenge) -> [u8; 32] {
        self.prove(b"connecting", hello, challenge)
    }

    /// The listening end's proof.
    pub fn server_proof(&self, hello: &Hello, challenge: &Challenge) -> [u8; 32] {
        self.prove(b"listening.", hello, challenge)
    }

    /// Compares two proofs in constant time.
    pub fn same(ours: &[u8; 32], theirs: &[u8; 32]) -> bool {
        // blake3's Hash compares in constant time.
        blake3::Hash::from_bytes(*ours) == blake3::Hash::from_bytes(*theirs)
    }

    fn prove(&self, label: &[u8; 10], hello: &Hello, challenge: &Challenge) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(label);
        hasher.update(&hello.version_min.to_le_bytes());
        hasher.update(&hello.version_max.to_le_bytes());
        hasher.update(&[hello.role as u8]);
        hasher.update(&hello.sender.to_le_bytes());
        hasher.update(&hello.nonce);
        hasher.update(&challenge.version.to_le_bytes());
        for cluster in [hello.cluster, challenge.cluster] {
            hasher.update(&[u8::from(cluster.is_some())]);
            hasher.update(&cluster.unwrap_or_default().0.to_le_bytes());
        }
        hasher.update(&challenge.nonce);
        *hasher.finalize().as_bytes()
    }
}

/// Hashes `bytes` under a random key: two values can then be compared in constant time, whatever their lengths.
pub fn keyed_digest(key: &[u8; 32], bytes: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(key, bytes).as_bytes()
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(secret)")
    }
}
