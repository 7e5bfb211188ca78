//! Taking a snapshot in: the way of every store, from a file. Parents come before their children; nothing is pushed out.

use super::folder::{self, Manifest, secret_check};
use super::segment::{Meta, SegmentReader};
use super::{Loaded, PersistError, PersistProgress};
use crate::actors::core::{DeviceMessage, Reserved, Sealed};
use crate::actors::device::Device;
use crate::guards::WriteGuard;
use crate::layouts;
use crate::view::{Serving, View};
use kvhive_protocol::block::digest;
use kvhive_protocol::data::{About, StoreBlock};
use kvhive_protocol::{DeviceId, TenantId};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Blocks taken in at a time.
const BATCH: usize = 32;
/// A device that does not answer within this is busy.
const LIMIT: Duration = Duration::from_secs(10);

/// A block that may be taken in.
struct Candidate {
    meta: Meta,
    segment: usize,
    at: u64,
    device: usize,
}

/// Takes in the snapshot at `path`.
pub(crate) async fn load(
    devices: &[Device],
    frame_bytes: u64,
    view: &View,
    path: &Path,
    progress: &mut (dyn FnMut(PersistProgress) + Send),
) -> Result<Loaded, PersistError> {
    let serving = view.serving().ok_or(PersistError::NotServing)?;
    let path = folder::standing(path);
    let mut loaded = Loaded::default();
    let manifest = Manifest::read(&path)?;
    check(&manifest, frame_bytes, &serving)?;
    let layouts = manifest.layouts.iter().filter(|layout| layouts::block_bytes(layout).is_some());
    for layout in layouts {
        view.layouts.learn(layout, layout.fingerprint());
    }
    let (mut files, mut wanted) = survey(&manifest, &path, &serving, &mut loaded)?;
    wanted.sort_by_key(|one| one.meta.header.depth);
    let mut done = PersistProgress { blocks: 0, of_blocks: wanted.len() as u64 };
    for (number, device) in devices.iter().enumerate() {
        let mut free = room(device).await.ok_or(PersistError::Busy { device: number })?;
        let of_device: Vec<&Candidate> = wanted.iter().filter(|one| one.device == number).collect();
        for batch in of_device.chunks(BATCH) {
            let bytes: u64 = batch.iter().map(|one| one.meta.header.payload_bytes).sum();
            done.blocks += batch.len() as u64;
            if bytes > free {
                loaded.no_room += batch.len() as u64;
                continue;
            }
            free -= bytes;
            take_in(device, batch, &mut files, &mut loaded)
                .await
                .ok_or(PersistError::Busy { device: number })?;
            progress(done);
        }
    }
    Ok(loaded)
}

fn check(manifest: &Manifest, frame_bytes: u64, serving: &Serving) -> Result<(), PersistError> {
    if manifest.largest_block > frame_bytes {
        return Err(PersistError::OtherLayout { bytes: manifest.largest_block, largest: frame_bytes });
    }
    for mark in &manifest.tenants {
        let tenant = serving.map.tenants.get(&TenantId(mark.id));
        if tenant.is_some_and(|tenant| secret_check(tenant) != mark.secret_check) {
            return Err(PersistError::OtherSecret { tenant: mark.name.clone() });
        }
    }
    Ok(())
}

/// Reads what every block is, without its bytes, and keeps those that may come in.
fn survey(
    manifest: &Manifest,
    path: &Path,
    serving: &Serving,
    loaded: &mut Loaded,
) -> Result<(Vec<SegmentReader>, Vec<Candidate>), PersistError> {
    let mut files = Vec::with_capacity(manifest.segments.len());
    let mut wanted = Vec::new();
    for mark in &manifest.segments {
        let file: PathBuf = path.join(&mark.file);
        let failed = |source: io::Error| PersistError::Io { path: file.clone(), source };
        let mut reader = SegmentReader::open(&file).map_err(failed)?;
        while let Some((meta, at)) = reader.next_meta().map_err(failed)? {
            let tenant = serving.map.tenants.get(&meta.header.tenant);
            if tenant.is_none_or(|tenant| tenant.era != meta.header.era) {
                loaded.ended += 1;
                continue;
            }
            match device_of(serving, &meta) {
                Some(device) => wanted.push(Candidate { meta, segment: files.len(), at, device }),
                None => loaded.elsewhere += 1,
            }
        }
        loaded.damaged += u64::from(reader.is_damaged());
        files.push(reader);
    }
    Ok((files, wanted))
}

fn device_of(serving: &Serving, meta: &Meta) -> Option<usize> {
    let own = |device: &&DeviceId| device.member == serving.member;
    serving.map.replicas(meta.slot).0.iter().find(own).map(|device| usize::from(device.index))
}

async fn room(device: &Device) -> Option<u64> {
    let (load, _) = device.ask(LIMIT, |reply| DeviceMessage::Load { reply }).await.ok()?;
    Some(load.capacity_bytes.saturating_sub(load.used_bytes))
}

async fn take_in(
    device: &Device,
    batch: &[&Candidate],
    files: &mut [SegmentReader],
    loaded: &mut Loaded,
) -> Option<()> {
    let mut of_tenant: HashMap<TenantId, Vec<&Candidate>> = HashMap::new();
    for one in batch {
        of_tenant.entry(one.meta.header.tenant).or_default().push(one);
    }
    for (tenant, batch) in of_tenant {
        let block = |one: &&Candidate| {
            (StoreBlock { header: one.meta.header, parent: one.meta.parent }, one.meta.slot)
        };
        let blocks = batch.iter().map(block).collect();
        let ask =
            |reply| DeviceMessage::Reserve { tenant, blocks, about: About::default(), pin: false, reply };
        let reserved = device.ask(LIMIT, ask).await.ok()?;
        let mut verified = Vec::with_capacity(batch.len());
        for (one, reserved) in batch.iter().zip(reserved) {
            match reserved {
                Reserved::Present(_) => loaded.already += 1,
                Reserved::Refused(_) => loaded.no_room += 1,
                Reserved::Write(guard) => match read(one, guard, files) {
                    Some(block) => verified.push((block, one.meta.header.payload_bytes)),
                    None => loaded.damaged += 1,
                },
            }
        }
        let (blocks, sizes): (Vec<_>, Vec<u64>) = verified.into_iter().unzip();
        let sealed =
            device.ask(LIMIT, |reply| DeviceMessage::Seal { blocks, pin: false, reply }).await.ok()?;
        for (sealed, bytes) in sealed.into_iter().zip(sizes) {
            match sealed {
                Sealed::Visible(_) => {
                    loaded.blocks += 1;
                    loaded.bytes += bytes;
                }
                Sealed::Ended => loaded.ended += 1,
            }
        }
    }
    Some(())
}

/// Reads a block's bytes into its frame; none when they cannot be read or are not what was written.
fn read(
    one: &Candidate,
    mut guard: WriteGuard,
    files: &mut [SegmentReader],
) -> Option<crate::guards::Verified> {
    files[one.segment].read_at(one.at, guard.bytes_mut()).ok()?;
    let found = digest(guard.bytes_mut());
    guard.verify(found)
}
