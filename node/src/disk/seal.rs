//! The cipher of the disk tier: a tenant's data key, from it a key for one record, and what that seals: AES-256-GCM. What a record is,
//! and where keys are kept, it does not know.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use std::fmt;
use std::io;
use zeroize::Zeroizing;

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;
/// Bytes that name a use of a key, drawn at random.
pub(crate) const SALT_BYTES: usize = 24;
/// Bytes of a tag.
pub(crate) const TAG_BYTES: usize = 16;

pub(crate) type Salt = [u8; SALT_BYTES];
pub(crate) type TagBytes = [u8; TAG_BYTES];

/// A key that others are made from: a tenant's on this node, or the node's own. Wiped when it goes, and never shown.
#[derive(Clone)]
pub(crate) struct DataKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(hidden)")
    }
}

/// What is sealed under one key of a single use: each at most once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Part {
    /// The bytes of a block.
    Bytes = 0,
    /// What the page hides.
    Page = 1,
    /// Another key.
    Key = 2,
}

/// A key for one salt.
pub(crate) struct OnceKey(LessSafeKey);

impl DataKey {
    pub(crate) fn of(bytes: [u8; KEY_BYTES]) -> DataKey {
        DataKey(Zeroizing::new(bytes))
    }

    /// Draws one.
    pub(crate) fn random() -> io::Result<DataKey> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut key[..]).map_err(io::Error::other)?;
        Ok(DataKey(key))
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Returns the key of one salt.
    ///
    /// Why no nonce ever comes twice under a key: a salt is drawn anew for each sealing and is long enough that among 2^64 of them two are
    /// the same with a chance of 2^-65; each has a key of its own, under which a [`Part`] is the nonce and is sealed once. So there is
    /// no counter, and none that a crash, a second device or a restored disk could set back.
    pub(crate) fn once(&self, salt: &Salt) -> OnceKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        let key = Zeroizing::new(*hasher.update(salt).finalize().as_bytes());
        let key = UnboundKey::new(&AES_256_GCM, &key[..]).expect("it has the cipher's length");
        OnceKey(LessSafeKey::new(key))
    }
}

/// Draws a salt.
pub(crate) fn salt() -> io::Result<Salt> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt).map_err(io::Error::other)?;
    Ok(salt)
}

fn nonce(part: Part) -> Nonce {
    let mut nonce = [0; ring::aead::NONCE_LEN];
    nonce[0] = part as u8;
    Nonce::assume_unique_for_key(nonce)
}

impl OnceKey {
    /// Encrypts these bytes where they are, bound to `with`.
    pub(crate) fn seal(&self, part: Part, with: &[u8], bytes: &mut [u8]) -> io::Result<TagBytes> {
        // Refused are 64 GiB and more.
        let tag = self.0.seal_in_place_separate_tag(nonce(part), Aad::from(with), bytes);
        let tag = tag.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(tag.as_ref().try_into().expect("a tag has its length"))
    }

    /// Decrypts these bytes where they are. False when they, or `with`, are not what was sealed: then they are no use.
    #[must_use]
    pub(crate) fn open(&self, part: Part, with: &[u8], bytes: &mut [u8], tag: &TagBytes) -> bool {
        self.0.open_in_place_separate_tag(nonce(part), Aad::from(with), Tag::from(*tag), bytes, 0..).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_by_its_key_salt_part_and_binding_alone() {
        let (key, salt) = (DataKey::random().expect("random"), salt().expect("random"));
        let mut bytes = *b"what an engine computed";
        let tag = key.once(&salt).seal(Part::Bytes, b"bound", &mut bytes).expect("short");
        assert_ne!(bytes, *b"what an engine computed");
        let opens = |key: &DataKey, salt: &Salt, part, with: &[u8], tag: &TagBytes| {
            let mut bytes = bytes;
            key.once(salt).open(part, with, &mut bytes, tag) && bytes == *b"what an engine computed"
        };
        assert!(opens(&key, &salt, Part::Bytes, b"bound", &tag));
        assert!(!opens(&DataKey::random().expect("random"), &salt, Part::Bytes, b"bound", &tag));
        assert!(!opens(&key, &self::salt().expect("random"), Part::Bytes, b"bound", &tag));
        assert!(!opens(&key, &salt, Part::Page, b"bound", &tag));
        assert!(!opens(&key, &salt, Part::Bytes, b"round", &tag));
        assert!(!opens(&key, &salt, Part::Bytes, b"bound", &[0; TAG_BYTES]));
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{:?}", DataKey::of([7; KEY_BYTES])), "DataKey(hidden)");
    }
}
