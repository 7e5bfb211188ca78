//! How a snapshot's blocks are encrypted: as the disk tier's records are, by the same keys, each under one of its own, bound to all that
//! stands before it. What names a block stays readable; its bytes, and the digest that would tell whether a guess of them is right, do not.

use crate::disk::{DataKey, Keyring, OnceKey, Part, SALT_BYTES, TAG_BYTES, TagBytes, key_name, salt};
use crate::view::View;
use kvhive_protocol::{BlockHeader, Era, TenantId};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Bytes of the digest and the tag of a block's bytes.
pub(super) const HIDDEN_BYTES: usize = 8 + TAG_BYTES;
/// Bytes of what is sealed, behind what it is bound to: salt, hidden part, and that one's tag.
pub(super) const SEALED_BYTES: usize = SALT_BYTES + HIDDEN_BYTES + TAG_BYTES;

/// What stands behind what a block is, and opens its bytes with its tenant's key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sealed(pub(super) [u8; SEALED_BYTES]);

/// What opens the bytes of one block.
pub(super) struct Opens {
    key: OnceKey,
    bound: Vec<u8>,
    tag: TagBytes,
}

impl Sealed {
    /// Encrypts a block's bytes where they are. `said` is what stands before this.
    pub(super) fn of(key: &DataKey, said: &[u8], digest: u64, bytes: &mut [u8]) -> io::Result<Sealed> {
        let salt = salt()?;
        let bound = [said, &salt].concat();
        let key = key.once(&salt);
        let of_bytes = key.seal(Part::Bytes, &bound, bytes)?;
        let mut hidden = [0; HIDDEN_BYTES];
        hidden[..8].copy_from_slice(&digest.to_le_bytes());
        hidden[8..].copy_from_slice(&of_bytes);
        let tag = key.seal(Part::Page, &bound, &mut hidden)?;
        let mut out = [0; SEALED_BYTES];
        out[..SALT_BYTES].copy_from_slice(&salt);
        out[SALT_BYTES..SALT_BYTES + HIDDEN_BYTES].copy_from_slice(&hidden);
        out[SALT_BYTES + HIDDEN_BYTES..].copy_from_slice(&tag);
        Ok(Sealed(out))
    }

    /// Returns the digest of a block's bytes and what opens them; none when the key or what stands before this is another.
    pub(super) fn open(&self, key: &DataKey, said: &[u8]) -> Option<(u64, Opens)> {
        let (salt, rest) = self.0.split_at(SALT_BYTES);
        let (hidden, tag) = rest.split_at(HIDDEN_BYTES);
        let bound = [said, salt].concat();
        let key = key.once(salt.try_into().ok()?);
        let mut hidden: [u8; HIDDEN_BYTES] = hidden.try_into().ok()?;
        if !key.open(Part::Page, &bound, &mut hidden, tag.try_into().ok()?) {
            return None;
        }
        let (digest, tag) = hidden.split_at(8);
        let opens = Opens { key, bound, tag: tag.try_into().ok()? };
        Some((u64::from_le_bytes(digest.try_into().ok()?), opens))
    }
}

impl Opens {
    /// Decrypts a block's bytes where they are. False when they are not those that were written.
    #[must_use]
    pub(super) fn open(&self, bytes: &mut [u8]) -> bool {
        self.key.open(Part::Bytes, &self.bound, bytes, &self.tag)
    }
}

/// The keys of a node's snapshots: those of its disk tiers, or such as they would be.
pub(super) struct Keys {
    keyring: Arc<Keyring>,
    view: Arc<View>,
    /// Those that were found or made before.
    known: BTreeMap<(TenantId, Era), Arc<DataKey>>,
}

impl Keys {
    pub(super) fn new(keyring: Arc<Keyring>, view: Arc<View>) -> Keys {
        Keys { keyring, view, known: BTreeMap::new() }
    }

    /// Returns the key that a block was written under; none when it is no more.
    pub(super) fn find(&mut self, header: &BlockHeader) -> Option<Arc<DataKey>> {
        let look = |keys: &Keyring, name| Ok::<_, io::Error>(keys.find(&name));
        self.key_of(header, look).ok().flatten()
    }

    /// Returns the key that a block is written under, made if need be; none when its era has ended. Waits for the disk.
    pub(super) fn make(&mut self, header: &BlockHeader) -> io::Result<Option<Arc<DataKey>>> {
        self.key_of(header, |keys, name| match keys.make(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            made => made.map(Some),
        })
    }

    fn key_of(
        &mut self,
        header: &BlockHeader,
        get: impl FnOnce(&Keyring, crate::disk::KeyName) -> io::Result<Option<Arc<DataKey>>>,
    ) -> io::Result<Option<Arc<DataKey>>> {
        let of = (header.tenant, header.era);
        if let Some(known) = self.known.get(&of) {
            return Ok(Some(known.clone()));
        }
        let serving = self.view.serving();
        let tenant = serving.as_ref().and_then(|serving| serving.map.tenants.get(&header.tenant));
        let key = match tenant.filter(|tenant| tenant.era == header.era) {
            Some(tenant) => get(&self.keyring, key_name(header.tenant, tenant))?,
            None => None,
        };
        if let Some(key) = &key {
            self.known.insert(of, key.clone());
        }
        Ok(key)
    }
}
