//! Writing a snapshot while the node serves: a few blocks at a time are held, written, and let go.

use super::folder::{self, Manifest, SegmentMark};
use super::segment::{Meta, SegmentReader, SegmentWriter};
use super::{PersistError, PersistProgress, Saved};
use crate::actors::core::{DeviceMessage, Exported};
use crate::actors::device::Device;
use crate::guards::{Lent, ReadGuard};
use crate::view::View;
use kvhive_protocol::{BlockKey, Era, Slot, TenantId};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Blocks held at a time.
const BATCH: usize = 32;
/// Bytes of a segment's blocks, about.
const SEGMENT_BYTES: u64 = 256 << 20;
/// A device that does not answer within this is busy.
const LIMIT: Duration = Duration::from_secs(10);

/// Which blocks a snapshot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// Those in memory: those on disk are there after a restart without it.
    Memory,
    /// Those on disk too.
    All,
}

/// Writes what the devices hold to the folder `path`. What an earlier, interrupted run left beside it is gone on with.
pub(crate) async fn save(
    devices: &[Device],
    view: &View,
    path: &Path,
    extent: Extent,
    progress: &mut (dyn FnMut(PersistProgress) + Send),
) -> Result<Saved, PersistError> {
    let serving = view.serving().ok_or(PersistError::NotServing)?;
    let at = |source| PersistError::Io { path: path.to_owned(), source };
    let shop = folder::workshop(path);
    fs::create_dir_all(&shop).map_err(at)?;
    let mut work = Work::resume(shop).map_err(at)?;
    let mut saved = Saved { resumed: work.known.len() as u64, ..Saved::default() };
    let mut done = PersistProgress::default();
    for device in devices {
        let load = device.ask(LIMIT, |reply| DeviceMessage::Load { reply }).await;
        done.of_blocks += load.map_or(0, |(load, _)| load.blocks);
    }
    for (number, device) in devices.iter().enumerate() {
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
                    Lent::Record(record) if extent == Extent::All => {
                        // One at a time: nobody has set memory aside for more.
                        if let Ok(guard) = record.read(None).await {
                            work = written(work, vec![(guard, parent, slot)]).await.map_err(at)?;
                        }
                    }
                    Lent::Record(record) => drop(record),
                }
            }
            work = written(work, at_hand).await.map_err(at)?;
            progress(done);
        }
    }
    let (path, map, layouts) = (path.to_owned(), serving.map, view.layouts.all());
    let published = tokio::task::spawn_blocking(move || {
        work.close()?;
        let manifest = Manifest::new(&map, layouts, work.largest, work.segments);
        folder::publish(&manifest, &path)?;
        Ok(manifest)
    });
    let manifest = published.await.map_err(io::Error::other).and_then(|manifest| manifest).map_err(at)?;
    saved.blocks = manifest.segments.iter().map(|segment| segment.blocks).sum();
    saved.bytes = manifest.segments.iter().map(|segment| segment.bytes).sum();
    Ok(saved)
}

/// Writes blocks where that may block; they are held until they are written.
async fn written(mut work: Work, blocks: Vec<(ReadGuard, BlockKey, Slot)>) -> io::Result<Work> {
    let written = tokio::task::spawn_blocking(move || work.write(blocks).map(|()| work)).await;
    written.map_err(io::Error::other)?
}

/// The snapshot as far as it is made.
struct Work {
    shop: PathBuf,
    segments: Vec<SegmentMark>,
    writer: Option<(SegmentWriter, String)>,
    /// Whose blocks an interrupted run has written, under which keys.
    known: HashSet<(TenantId, Era, BlockKey)>,
    largest: u64,
}

impl Work {
    /// Keeps the whole segments of an interrupted run; what is not whole is deleted.
    fn resume(shop: PathBuf) -> io::Result<Work> {
        let mut work = Work { segments: Vec::new(), writer: None, known: HashSet::new(), largest: 0, shop };
        for entry in fs::read_dir(&work.shop)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "seg") {
                fs::remove_file(&path)?;
                continue;
            }
            let mut reader = SegmentReader::open(&path)?;
            let (mut blocks, mut bytes) = (0, 0);
            let mut keys = Vec::new();
            while let Some((meta, _)) = reader.next_meta()? {
                blocks += 1;
                bytes += meta.header.payload_bytes;
                work.largest = work.largest.max(meta.header.payload_bytes);
                keys.push((meta.header.tenant, meta.header.era, meta.header.key));
            }
            let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
            match name {
                Some(file) if !reader.is_damaged() => {
                    work.known.extend(keys);
                    work.segments.push(SegmentMark { file, blocks, bytes });
                }
                _ => fs::remove_file(&path)?,
            }
        }
        Ok(work)
    }

    fn write(&mut self, blocks: Vec<(ReadGuard, BlockKey, Slot)>) -> io::Result<()> {
        for (guard, parent, slot) in blocks {
            let header = *guard.header();
            if self.known.contains(&(header.tenant, header.era, header.key)) {
                continue;
            }
            if self.writer.as_ref().is_some_and(|(writer, _)| writer.bytes >= SEGMENT_BYTES) {
                self.close()?;
            }
            let writer = match &mut self.writer {
                Some((writer, _)) => writer,
                none => {
                    let taken = |name: &String| self.segments.iter().any(|segment| segment.file == *name);
                    let mut names = (0u32..).map(|number| format!("{number:06}.seg"));
                    let name = names.find(|name| !taken(name)).expect("there are more numbers than files");
                    &mut none.insert((SegmentWriter::create(self.shop.join(&name))?, name)).0
                }
            };
            writer.push(&Meta { header, parent, slot }, guard.bytes())?;
            self.largest = self.largest.max(header.payload_bytes);
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        if let Some((writer, file)) = self.writer.take() {
            let (blocks, bytes) = (writer.blocks, writer.bytes);
            writer.finish()?;
            self.segments.push(SegmentMark { file, blocks, bytes });
        }
        Ok(())
    }
}
