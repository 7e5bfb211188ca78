//! Writing a snapshot: what the devices hold, device by device, into segments; then the manifest, then its place.

use super::blocking::{Waited, blocking};
use super::folder::{self, Manifest};
use super::lock::Lock;
use super::work::{Run, Work};
use super::{Holdings, PersistError, PersistProgress, Saved};
use crate::actors::core::{DeviceMessage, Exported};
use crate::guards::{Lent, ReadGuard};
use kvhive_protocol::{BlockKey, Slot};
use std::io;
use std::path::Path;
use std::time::Duration;
use tracing::warn;

/// Blocks held at a time.
const BATCH: usize = 32;
/// A device that does not answer within this is busy.
const LIMIT: Duration = Duration::from_secs(10);
/// How long one who writes or reads the snapshot is waited for: a run that was given up ends its last piece of work.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Which blocks a snapshot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// Those in memory: those on disk are there after a restart without it.
    Memory,
    /// Those on disk too.
    All,
}

/// Writes what the devices hold to the folder `path`. What an earlier, interrupted run left beside it is gone on with, as far as
/// it is held still. One that stands there is replaced, or moved `aside`.
pub(crate) async fn save(
    holdings: &Holdings,
    path: &Path,
    aside: Option<&Path>,
    extent: Extent,
    progress: &mut (dyn FnMut(PersistProgress) + Send),
) -> Result<Saved, PersistError> {
    // What one remembers is set aside once.
    let _turn = holdings.saving.acquire().await.map_err(|_| PersistError::NotServing)?;
    let serving = holdings.view.serving().ok_or(PersistError::NotServing)?;
    // Before a lock is made beside it, and again when nobody else changes it.
    if let Err(error @ PersistError::Foreign { .. }) = folder::check_ours(path) {
        return Err(error);
    }
    let lock = Lock::for_writing(path, LOCK_LIMIT).await?;
    folder::check_ours(path)?;
    let run = Run::new(&serving.map, holdings.frame_bytes, holdings.keys.is_some());
    let frames = holdings.frames.iter().map(|frames| *frames as usize).sum();
    let mut anew = false;
    loop {
        let (run, lock, shop) = (run.clone(), lock.clone(), folder::workshop(path));
        let keys = holdings.keys();
        let begin = move |waited: &Waited| Work::begin(shop, &run, anew, frames, keys, lock, waited);
        let begun = blocking(path, begin).await?;
        let resumed = begun.has_resumed();
        match gather(holdings, begun, path, aside, extent, progress).await {
            Err(PersistError::Io { source, .. })
                if source.kind() == io::ErrorKind::StorageFull && resumed =>
            {
                warn!(path = %path.display(), "no room to go on with what an interrupted run has written: it is written anew");
                anew = true;
            }
            saved => return saved,
        }
    }
}

async fn gather(
    holdings: &Holdings,
    mut work: Work,
    path: &Path,
    aside: Option<&Path>,
    extent: Extent,
    progress: &mut (dyn FnMut(PersistProgress) + Send),
) -> Result<Saved, PersistError> {
    let restarts = holdings.restarts();
    let mut done = PersistProgress::default();
    for device in &holdings.devices {
        let load = device.ask(LIMIT, |reply| DeviceMessage::Load { reply }).await;
        done.of_blocks += load.map_or(0, |(load, _)| load.blocks);
    }
    for (number, device) in holdings.devices.iter().enumerate() {
        let mut next = Some(0);
        while let Some(from) = next {
            let asked = device.ask(LIMIT, |reply| DeviceMessage::Export { from, limit: BATCH, reply }).await;
            let (exported, after) = asked.map_err(|_| PersistError::Busy { device: number })?;
            next = after;
            done.blocks += exported.len() as u64;
            let mut at_hand = Vec::with_capacity(exported.len());
            for Exported { block, parent, slot } in exported {
                match block {
                    Lent::Guard(guard) => at_hand.push((guard, parent, slot)),
                    Lent::Far(far) if extent == Extent::All || !far.is_on_disk() => {
                        // One at a time: nobody has set memory aside for more.
                        if let Ok(guard) = far.read(None).await {
                            work = written(path, work, vec![(guard, parent, slot)]).await?;
                        }
                    }
                    Lent::Far(far) => drop(far),
                }
            }
            work = written(path, work, at_hand).await?;
            progress(done);
        }
    }
    if holdings.restarts() != restarts {
        return Err(PersistError::Emptied);
    }
    // The map as it is now: tenants that came meanwhile have blocks here too.
    let serving = holdings.view.serving().ok_or(PersistError::NotServing)?;
    let (place, aside, layouts) = (path.to_owned(), aside.map(Path::to_owned), holdings.view.layouts.all());
    let is_sealed = holdings.keys.is_some();
    let (manifest, resumed) = blocking(path, move |waited| {
        work.drop_stale(waited)?;
        work.close()?;
        let layouts =
            layouts.into_iter().filter(|layout| work.layouts.contains(&layout.fingerprint())).collect();
        let segments = std::mem::take(&mut work.segments);
        let manifest = Manifest::new(&serving.map, layouts, work.largest, segments, is_sealed);
        folder::publish(&manifest, &place, aside.as_deref())?;
        Ok((manifest, work.resumed()))
    })
    .await?;
    Ok(Saved {
        blocks: manifest.segments.iter().map(|segment| segment.blocks).sum(),
        bytes: manifest.segments.iter().map(|segment| segment.bytes).sum(),
        resumed,
    })
}

/// Writes blocks where that may block; they are held until they are written.
async fn written(
    path: &Path,
    mut work: Work,
    blocks: Vec<(ReadGuard, BlockKey, Slot)>,
) -> Result<Work, PersistError> {
    blocking(path, move |_| work.write(blocks).map(|()| work)).await
}
