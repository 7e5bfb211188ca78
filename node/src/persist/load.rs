//! Taking a snapshot in: the way of every store, from a file. Parents come before their children; nothing is pushed out.

use super::blocking::blocking;
use super::folder::{self, Manifest};
use super::lock::Lock;
use super::sealed::{Keys, Opens};
use super::segment::Meta;
use super::survey::{Candidate, Judge, Segments, Survey};
use super::{Holdings, Loaded, PersistError, PersistProgress};
use crate::actors::core::{DeviceMessage, Reserved, Sealed};
use crate::actors::device::Device;
use crate::guards::{Landing, WriteGuard};
use crate::layouts;
use kvhive_cache::Intake;
use kvhive_protocol::block::digest;
use kvhive_protocol::data::{Refusal, StoreBlock};
use kvhive_protocol::{LayoutFingerprint, TenantId};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Blocks taken in at a time.
const BATCH: usize = 32;
/// A device that does not answer within this is busy.
const LIMIT: Duration = Duration::from_secs(10);

/// Takes in the snapshot at `path`, or what of it is of the layout `only`. What is taken in before an error stays.
pub(crate) async fn load(
    holdings: &Holdings,
    path: &Path,
    only: Option<LayoutFingerprint>,
    progress: &mut (dyn FnMut(PersistProgress) + Send),
) -> Result<Loaded, PersistError> {
    // The memory that one takes is set aside once.
    let _turn = holdings.loading.acquire().await.map_err(|_| PersistError::NotServing)?;
    let serving = holdings.view.serving().ok_or(PersistError::NotServing)?;
    // Before a lock is made where there is nothing.
    let place = folder::standing(path);
    let manifest = Manifest::read(&place)?;
    let _lock = Lock::for_reading(path).await?;
    let judge = Judge { serving, only, frame_bytes: holdings.frame_bytes, frames: holdings.frames.clone() };
    let at = place.clone();
    let (survey, manifest, judge) =
        blocking(&place, move |waited| Ok((Survey::of(&at, &manifest, &judge, waited)?, manifest, judge)))
            .await?;
    survey.check(&judge)?;
    for layout in manifest.layouts.iter().filter(|layout| layouts::block_bytes(layout).is_some()) {
        holdings.view.layouts.learn(layout, layout.fingerprint());
    }
    let of_blocks = survey.wanted.iter().map(|wanted| wanted.len() as u64).sum();
    let mut done = PersistProgress { blocks: 0, of_blocks };
    let segments = Segments::of(&place, &manifest);
    let (segments, keys) = (Some(segments), holdings.keys());
    let mut loading = Loading { path: place, segments, keys, loaded: survey.loaded };
    for (number, (device, wanted)) in holdings.devices.iter().zip(&survey.wanted).enumerate() {
        let mut intake = Intake::default();
        for batch in wanted.chunks(BATCH) {
            let busy = PersistError::Busy { device: number };
            loading.take_in(device, batch, &mut intake).await?.ok_or(busy)?;
            done.blocks += batch.len() as u64;
            progress(done);
        }
    }
    Ok(loading.loaded)
}

/// A snapshot on its way in.
struct Loading {
    path: PathBuf,
    /// Away while a thread reads them.
    segments: Option<Segments>,
    /// What opens encrypted blocks.
    keys: Option<Keys>,
    loaded: Loaded,
}

/// A block that may be taken in, and what opens its bytes if they are encrypted.
struct Readable {
    at: Candidate,
    meta: Meta,
    opens: Option<Opens>,
}

/// A block on its way into a frame.
struct Filling {
    at: Candidate,
    opens: Option<Opens>,
    guard: WriteGuard,
    bytes: u64,
}

impl Loading {
    /// Has the segments read where that may block.
    async fn reading<T: Send + 'static>(
        &mut self,
        read: impl FnOnce(&mut Segments) -> io::Result<T> + Send + 'static,
    ) -> Result<T, PersistError> {
        let mut segments = self.segments.take().expect("they come back after every reading that ends well");
        let (read, segments) = blocking(&self.path, move |_| {
            let read = read(&mut segments)?;
            Ok((read, segments))
        })
        .await?;
        self.segments = Some(segments);
        Ok(read)
    }

    /// Opens what was read of a block. None, and why is counted, when it is of no use.
    fn readable(&mut self, at: Candidate, meta: Option<Meta>) -> Option<Readable> {
        let Some(meta) = meta else {
            self.loaded.damaged += 1;
            return None;
        };
        if meta.sealed.is_none() {
            return Some(Readable { at, meta, opens: None });
        }
        let Some(key) = self.keys.as_mut().and_then(|keys| keys.find(&meta.header)) else {
            self.loaded.ended += 1;
            return None;
        };
        let opened = meta.open(&key).map(|(meta, opens)| Readable { at, meta, opens: Some(opens) });
        self.loaded.damaged += u64::from(opened.is_none());
        opened
    }

    /// Takes in some blocks of one device; none when it does not answer.
    async fn take_in(
        &mut self,
        device: &Device,
        batch: &[Candidate],
        intake: &mut Intake,
    ) -> Result<Option<()>, PersistError> {
        let of_batch = batch.to_vec();
        let metas = self.reading(move |segments| {
            let meta = |one: Candidate| Ok((one, segments.meta(&one)?));
            of_batch.into_iter().map(meta).collect::<io::Result<Vec<_>>>()
        });
        let mut of_tenant: BTreeMap<TenantId, Vec<Readable>> = BTreeMap::new();
        for (at, meta) in metas.await? {
            let Some(one) = self.readable(at, meta) else { continue };
            if intake.may_fit(one.meta.header.payload_bytes) {
                of_tenant.entry(one.meta.header.tenant).or_default().push(one);
            } else {
                self.loaded.no_room += 1;
            }
        }
        for (tenant, batch) in of_tenant {
            let block = |Readable { meta, .. }: &Readable| {
                (StoreBlock { header: meta.header, parent: meta.parent }, meta.slot)
            };
            let blocks = batch.iter().map(block).collect();
            let ask = |reply| DeviceMessage::ReserveFree { tenant, blocks, reply };
            let Ok(reserved) = device.ask(LIMIT, ask).await else { return Ok(None) };
            let mut writes = Vec::with_capacity(batch.len());
            for (Readable { at, meta, opens }, reserved) in batch.into_iter().zip(reserved) {
                let bytes = meta.header.payload_bytes;
                match reserved {
                    Some(Reserved::Present(_)) => self.loaded.already += 1,
                    Some(Reserved::Write(guard)) => writes.push(Filling { at, opens, guard, bytes }),
                    Some(Reserved::Refused(Refusal::WrongEra)) => self.loaded.ended += 1,
                    // A store brings it just now.
                    Some(Reserved::Refused(Refusal::InFlight)) => self.loaded.already += 1,
                    None => {
                        intake.full(bytes);
                        self.loaded.no_room += 1;
                    }
                    // Too much is being written at this moment: the next may find room.
                    Some(Reserved::Refused(_)) => self.loaded.no_room += 1,
                }
            }
            if self.fill_and_seal(device, writes).await?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    async fn fill_and_seal(
        &mut self,
        device: &Device,
        writes: Vec<Filling>,
    ) -> Result<Option<()>, PersistError> {
        let filled = self.reading(move |segments| {
            let fill = |one: Filling| {
                let bytes = one.bytes;
                Ok((fill(segments, one)?, bytes))
            };
            writes.into_iter().map(fill).collect::<io::Result<Vec<_>>>()
        });
        let (mut blocks, mut sizes) = (Vec::new(), Vec::new());
        for (block, bytes) in filled.await? {
            let landed = match block {
                Some(landing) => landing.landed().await,
                None => None,
            };
            match landed {
                Some(block) => {
                    blocks.push(block);
                    sizes.push(bytes);
                }
                None => self.loaded.damaged += 1,
            }
        }
        let sealed = device.ask(LIMIT, |reply| DeviceMessage::Seal { blocks, pin: false, reply }).await;
        let Ok(sealed) = sealed else { return Ok(None) };
        for (sealed, bytes) in sealed.into_iter().zip(sizes) {
            match sealed {
                Sealed::Visible(_) => {
                    self.loaded.blocks += 1;
                    self.loaded.bytes += bytes;
                }
                Sealed::Ended => self.loaded.ended += 1,
            }
        }
        Ok(Some(()))
    }
}

/// Reads a block's bytes into its frame; none when they are not what was written.
fn fill(segments: &mut Segments, one: Filling) -> io::Result<Option<Landing>> {
    let Filling { at, opens, mut guard, .. } = one;
    if !segments.read(&at, guard.bytes_mut())? || opens.is_some_and(|opens| !opens.open(guard.bytes_mut())) {
        return Ok(None);
    }
    let found = digest(guard.bytes_mut());
    Ok(guard.verify(found))
}
