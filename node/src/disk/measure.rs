//! A disk tier by itself, without a node over it: what `kvhive bench disk` measures.

use super::folder::{self, Form};
use super::key_folder::KeyName;
use super::{DiskError, DiskTuning, Geometry, KeyPlaces, Keyring, Mover, Place, Store};
use crate::view::View;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use kvhive_gpu::{Arena, ClassId, HostDevice, SizeClass};
use kvhive_protocol::block::{Codec, digest};
use kvhive_protocol::data::StoreBlock;
use kvhive_protocol::{BlockHeader, BlockKey, ClusterId, Epoch, Era, LayoutFingerprint, Slot, TenantId};
use kvhive_runtime::BootClock;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Blocks written at a time: as many as a shard moves.
const WRITES_AT_A_TIME: usize = 32;

/// Whose blocks they are.
const NAME: KeyName = KeyName { tenant: TenantId(1), era: Era(1), mark: [0; 16] };

/// One file of records, filled and read as a node does it.
pub struct DiskBench {
    store: Arc<Store>,
    file: PathBuf,
    blocks: Vec<(Place, BlockHeader)>,
    runtime: tokio::runtime::Runtime,
}

impl DiskBench {
    /// Fills a file of `records` blocks of `block_bytes` in `folder`, encrypted or not; its bytes are moved by threads where that is
    /// asked, else by what is best.
    ///
    /// # Errors
    /// When the folder cannot be used, or has not the room.
    pub fn fill(
        folder: &Path,
        block_bytes: u64,
        records: u32,
        threads: bool,
        encrypted: bool,
    ) -> Result<DiskBench, DiskError> {
        let failed = |source| DiskError::Io { path: folder.to_owned(), source };
        let mover = if threads { Mover::Threads } else { Mover::Best };
        let view = Arc::new(View::new(Arc::new(BootClock), 0, 0));
        let geometry = [Geometry { frame_bytes: block_bytes, records }];
        let mover = mover.start(1).map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let tuning = DiskTuning::default();
        let keys =
            encrypted.then(|| Keyring::open(&KeyPlaces::of(folder, None), tuning.lock_limit)).transpose()?;
        if let Some(keys) = &keys {
            keys.go_by((ClusterId(1), Epoch(1)), BTreeSet::from([NAME]));
        }
        let form = if encrypted { Form::Sealed } else { Form::Plain };
        let mut bench = DiskBench {
            store: Store::open(folder, &geometry, mover, view, keys, &tuning)?,
            file: folder.join(folder::file_name(form, block_bytes)),
            blocks: Vec::with_capacity(records as usize),
            runtime: runtime.map_err(failed)?,
        };
        let size = SizeClass { frame_bytes: block_bytes, frames: WRITES_AT_A_TIME as u32 };
        let arena = Arena::new(&HostDevice::new(u64::MAX), &[size])
            .map_err(|error| failed(io::Error::other(error)))?;
        let store = bench.store.clone();
        let written = stream::iter(0..records)
            .map(|number| write(&store, &arena, number, block_bytes))
            .buffered(WRITES_AT_A_TIME)
            .try_collect();
        bench.blocks = bench.runtime.block_on(written).map_err(failed)?;
        Ok(bench)
    }

    /// Returns what moves the bytes.
    pub fn mover(&self) -> &'static str {
        self.store.backend_name()
    }

    /// Says whether the bytes go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.store.is_direct()
    }

    /// Returns the file of its records.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads and verifies the blocks with these numbers, `at_a_time` side by side; returns their bytes.
    ///
    /// # Errors
    /// When one does not come as it was written.
    pub fn read(&self, order: &[u32], at_a_time: usize) -> io::Result<u64> {
        let reads = stream::iter(order).map(|number| async move {
            let (place, header) = &self.blocks[*number as usize];
            let payload = place.read(header, None).await.map_err(io::Error::other)?;
            Ok::<u64, io::Error>(payload.bytes().len() as u64)
        });
        let sum = reads.buffer_unordered(at_a_time).try_fold(0, |sum, bytes| async move { Ok(sum + bytes) });
        self.runtime.block_on(sum)
    }
}

async fn write(
    store: &Arc<Store>,
    arena: &Arena,
    number: u32,
    bytes: u64,
) -> io::Result<(Place, BlockHeader)> {
    let full = || io::Error::from(io::ErrorKind::StorageFull);
    let mut frame = arena.take(ClassId(0), bytes).ok_or_else(full)?;
    let mut word = u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for piece in frame.bytes_mut().chunks_mut(8) {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
    }
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.to_le_bytes());
    key[4..].copy_from_slice(&[1; 28]);
    let header = BlockHeader {
        key: BlockKey::from_bytes(key),
        fingerprint: LayoutFingerprint([0; 16]),
        tenant: NAME.tenant,
        era: NAME.era,
        depth: 0,
        codec: Codec::Raw,
        payload_bytes: bytes,
        digest: digest(frame.bytes()),
    };
    let place = store.take(0).ok_or_else(full)?;
    let block = StoreBlock { header, parent: BlockKey::NONE };
    place.write(block, Slot(0), NAME.mark, frame.seal()).await?;
    Ok((place, header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_every_block_read_whole() {
        for (threads, encrypted) in [(false, true), (true, true), (false, false)] {
            let folder = tempfile::tempdir().expect("a folder");
            let bench =
                DiskBench::fill(folder.path(), 10_000, 40, threads, encrypted).expect("a little room");
            let order: Vec<u32> = (0..40).rev().collect();
            assert_eq!(bench.read(&order, 7).expect("all come"), 400_000);
            assert!(!threads || bench.mover() == "threads");
            let file = std::fs::OpenOptions::new().write(true).open(bench.file()).expect("a file");
            std::os::unix::fs::FileExt::write_all_at(&file, &[1; 9], 4096 + 500).expect("writable");
            assert!(bench.read(&order, 7).is_err(), "a damaged one does not count as read");
        }
    }
}
