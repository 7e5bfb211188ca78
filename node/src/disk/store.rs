//! A device's records: places for them, blocks written to them and read from them. Nothing that a read gives out is
//! unverified: the page must be of this record and this block, the bytes must match its digest.

use super::buffer::{Buffer, Buffers, Piece, is_direct};
use super::figures::{Bad, Figures, add};
use super::folder;
use super::health::Health;
use super::places::Places;
use super::queue::{Backend, Transfer, Way};
use super::record::{PAGE, PageError, RecordHeader, TenantMark, record_bytes, whole_pages};
use super::{DiskError, DiskTuning, Geometry};
use crate::view::View;
use kvhive_gpu::{ReadFrame, WriteFrame};
use kvhive_protocol::BlockHeader;
use kvhive_protocol::Slot;
use kvhive_protocol::data::StoreBlock;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tracing::{error, info};

/// How often it is looked whether the last write has ended.
const CLOSE_EVERY: Duration = Duration::from_millis(2);

/// Why a block did not come from its record.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    /// Its record is of no use: the block is lost.
    #[error("the record is of no use ({0:?}): {1}")]
    Bad(Bad, String),
    /// Too many wait for the disk.
    #[error("too many wait for the disk")]
    Late,
}

/// One file of records.
struct Class {
    frame_bytes: u64,
    file: Arc<File>,
    places: Places,
}

/// A device's record files.
pub(crate) struct Store {
    folder: PathBuf,
    geometry: Vec<Geometry>,
    classes: Vec<Class>,
    is_direct: bool,
    backend: Arc<dyn Backend>,
    buffers: Buffers,
    sequence: AtomicU64,
    health: Mutex<Health>,
    is_open: AtomicBool,
    is_known: AtomicBool,
    /// The folder may be another node's.
    has_ended: AtomicBool,
    /// Blocks on their way to records.
    writing: AtomicU64,
    pub(crate) figures: Figures,
    view: Arc<View>,
    /// Held from before the first transfer until after the last: declared last, dropped last.
    lock: Mutex<Option<File>>,
}

/// A place for a record, taken until its last clone is gone.
#[derive(Clone)]
pub(crate) struct Place(Arc<Taken>);

struct Taken {
    store: Arc<Store>,
    class: usize,
    number: u32,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.store.classes[self.class].places.give_back(self.number);
    }
}

/// Bytes read from a record, and checked.
pub(crate) struct Payload {
    buffer: Buffer,
    len: usize,
}

impl Payload {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer.bytes()[..self.len]
    }
}

impl Store {
    /// Opens or makes the record files in `folder`. A disk that has no room for them, or fails, leaves the store closed.
    ///
    /// # Errors
    /// When another node uses the folder, or it cannot be used at all.
    pub(crate) fn open(
        folder: &Path,
        geometry: &[Geometry],
        backend: Arc<dyn Backend>,
        view: Arc<View>,
        tuning: &DiskTuning,
    ) -> Result<Arc<Store>, DiskError> {
        let lock = folder::lock(folder, tuning.lock_limit)?;
        let (files, is_direct) = folder::open(folder, geometry)?;
        let buffers = Buffers::new(geometry.iter().map(|class| class.frame_bytes))?;
        let class = |(file, class): (Arc<File>, &Geometry)| Class {
            frame_bytes: class.frame_bytes,
            file,
            places: Places::new(class.records),
        };
        let store = Store {
            folder: folder.to_owned(),
            geometry: geometry.to_vec(),
            classes: files.into_iter().zip(geometry).map(class).collect(),
            is_direct,
            backend,
            buffers,
            sequence: AtomicU64::new(1),
            health: Mutex::new(Health::new(tuning.waits)),
            is_open: AtomicBool::new(true),
            is_known: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            writing: AtomicU64::new(0),
            figures: Figures::default(),
            view,
            lock: Mutex::new(Some(lock)),
        };
        let prepared = store.prepare();
        if prepared.is_err() {
            store.note_write(&prepared);
        }
        let (records, backend) =
            (geometry.iter().map(|class| u64::from(class.records)).sum::<u64>(), store.backend.name());
        info!(folder = %folder.display(), records, backend, is_direct, "disk tier");
        Ok(Arc::new(store))
    }

    fn prepare(&self) -> io::Result<()> {
        let files: Vec<Arc<File>> = self.classes.iter().map(|class| class.file.clone()).collect();
        folder::prepare(&files, &self.geometry)
    }

    /// Takes no more blocks, waits for those on their way, and lets go of the folder.
    pub(crate) async fn close(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        self.is_open.store(false, Ordering::Relaxed);
        while self.writing.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(CLOSE_EVERY).await;
        }
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is on disk is known, or not yet.
    pub(crate) fn set_known(&self, known: bool) {
        self.is_known.store(known, Ordering::Relaxed);
    }

    /// Says whether blocks go there now.
    pub(super) fn takes_blocks(&self) -> bool {
        self.is_open() && self.is_known.load(Ordering::Relaxed)
    }

    /// Says whether it works.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Returns the most bytes of memory that its buffers take.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        self.buffers.most_bytes()
    }

    /// Says whether bytes go past the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Returns the name of what moves the bytes.
    pub(crate) fn backend_name(&self) -> &'static str {
        self.backend.name()
    }

    /// Counts a block that there was no room to read.
    pub(crate) fn count_late(&self) {
        add(&self.figures.late, 1);
    }

    /// A read was not waited for any longer: a disk that does so again and again fails.
    pub(crate) fn was_silent(&self) {
        self.count_late();
        self.note_read(&Err(io::ErrorKind::TimedOut.into()));
    }

    /// Returns how many transfers wait to begin.
    pub(crate) fn waiting(&self) -> usize {
        self.backend.waiting()
    }

    /// Returns how many records each class has.
    pub(crate) fn records(&self) -> Vec<u32> {
        self.classes.iter().map(|class| class.places.records()).collect()
    }

    /// Returns the bytes of blocks that it has places for.
    pub(crate) fn tier_bytes(&self) -> u64 {
        self.classes.iter().map(|class| class.frame_bytes * u64::from(class.places.records())).sum()
    }

    /// Returns how many records of all classes are free.
    #[cfg(test)]
    pub(crate) fn free_records(&self) -> u32 {
        self.classes.iter().map(|class| class.places.free()).sum()
    }

    /// Returns the bytes of a class's frames.
    pub(crate) fn frame_bytes(&self, class: usize) -> u64 {
        self.classes[class].frame_bytes
    }

    /// Takes a free place.
    pub(crate) fn take(self: &Arc<Self>, class: usize) -> Option<Place> {
        let number = self.classes.get(class)?.places.take()?;
        Some(Place(Arc::new(Taken { store: self.clone(), class, number })))
    }

    /// Takes the place of a record that is there.
    pub(crate) fn take_this(self: &Arc<Self>, class: usize, number: u32) -> Option<Place> {
        let taken = self.classes.get(class)?.places.take_this(number);
        taken.then(|| Place(Arc::new(Taken { store: self.clone(), class, number })))
    }

    fn at(&self, class: usize, number: u32) -> u64 {
        u64::from(number) * record_bytes(self.classes[class].frame_bytes)
    }

    /// From now on records are written with later counts than this.
    pub(super) fn go_on_after(&self, sequence: u64) {
        self.sequence.fetch_max(sequence.saturating_add(1), Ordering::Relaxed);
    }

    async fn transfer(&self, transfer: Transfer) -> (io::Result<()>, Vec<Piece>) {
        match self.backend.submit(transfer).await {
            Ok(done) => (done.result, done.pieces),
            Err(_) => (Err(io::ErrorKind::BrokenPipe.into()), Vec::new()),
        }
    }

    /// Reads one page at a record's begin.
    pub(super) async fn read_page(&self, class: usize, number: u32) -> io::Result<Buffer> {
        let (file, at) = (self.classes[class].file.clone(), self.at(class, number));
        let pieces = vec![Piece::Own(self.buffers.take(PAGE))];
        let (result, mut pieces) = self.transfer(Transfer { file, at, way: Way::Read, pieces }).await;
        result?;
        match pieces.pop() {
            Some(Piece::Own(page)) => Ok(page),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Returns how many records a file has room for as it is now.
    pub(super) fn records_within(&self, class: usize) -> io::Result<u32> {
        let Class { file, frame_bytes, places } = &self.classes[class];
        let whole = file.metadata()?.len() / record_bytes(*frame_bytes);
        Ok(u32::try_from(whole).unwrap_or(u32::MAX).min(places.records()))
    }

    /// Changes its health; what everybody sees of it changes with it.
    fn note<T>(&self, what: impl FnOnce(&mut Health) -> T) -> T {
        let mut health = self.health();
        let change = what(&mut health);
        self.is_open.store(health.is_open() && !self.has_ended.load(Ordering::SeqCst), Ordering::Relaxed);
        change
    }

    fn note_write(&self, result: &io::Result<()>) {
        let closed = self.note(|health| health.wrote(self.view.now(), result.is_ok()));
        if let Err(error) = result {
            add(&self.figures.write_failures, 1);
            if closed {
                self.tell_closed(error);
            }
        }
    }

    fn note_read(&self, result: &io::Result<()>) {
        let closed = self.note(|health| health.read(self.view.now(), result.is_ok()));
        if let (true, Err(error)) = (closed, result) {
            self.tell_closed(error);
        }
    }

    fn tell_closed(&self, error: &io::Error) {
        add(&self.figures.closed, 1);
        error!(folder = %self.folder.display(), %error, "the disk fails; blocks stay in memory only until a probe works");
    }

    /// Tries a closed disk when it is time to.
    pub(super) async fn probe_if_due(self: &Arc<Self>) {
        // Before what is there is known, any place may hold a record, which a probe would write over.
        if !self.is_known.load(Ordering::Relaxed) || !self.health().is_due(self.view.now()) {
            return;
        }
        let Some(_writing) = Writing::begin(self) else { return };
        add(&self.figures.probes, 1);
        let result = self.probe().await;
        if self.note(|health| health.probed(self.view.now(), result.is_ok())) {
            info!(folder = %self.folder.display(), "the disk works again");
        }
    }

    /// Writes and reads an empty page, where no record is.
    async fn probe(self: &Arc<Self>) -> io::Result<()> {
        let store = self.clone();
        let prepared = tokio::task::spawn_blocking(move || store.prepare()).await;
        prepared.map_err(io::Error::other)??;
        let Some(place) = (0..self.classes.len()).find_map(|class| self.take(class)) else { return Ok(()) };
        let Taken { class, number, .. } = &*place.0;
        let mut page = self.buffers.take(PAGE);
        page.bytes_mut().fill(0);
        let (file, at) = (self.classes[*class].file.clone(), self.at(*class, *number));
        let pieces = vec![Piece::Own(page)];
        self.transfer(Transfer { file, at, way: Way::Write, pieces }).await.0?;
        let page = self.read_page(*class, *number).await?;
        if page.bytes().iter().any(|byte| *byte != 0) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }
}

/// A write under way, counted before it is looked whether the folder is still ours.
struct Writing<'a>(&'a Store);

impl<'a> Writing<'a> {
    fn begin(store: &'a Store) -> Option<Writing<'a>> {
        store.writing.fetch_add(1, Ordering::SeqCst);
        let writing = Writing(store);
        (!store.has_ended.load(Ordering::SeqCst)).then_some(writing)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writing.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Says whether nobody moved the bytes any more: that is not the record's end.
fn was_given_up(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe && error.raw_os_error().is_none()
}

/// Says whether a transfer found no room in the queue, rather than failed.
fn is_late(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::QuotaExceeded && error.raw_os_error().is_none()
}

impl Place {
    /// Returns its store.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// Writes a block to it.
    pub(crate) async fn write(
        &self,
        block: StoreBlock,
        slot: Slot,
        mark: TenantMark,
        frame: ReadFrame,
    ) -> io::Result<()> {
        let Taken { store, class, number } = &*self.0;
        let header = RecordHeader {
            number: *number,
            frame_bytes: store.classes[*class].frame_bytes,
            sequence: store.sequence.fetch_add(1, Ordering::Relaxed),
            mark,
            block,
            slot,
        };
        let bytes = frame.len() as u64;
        let mut page = store.buffers.take(PAGE);
        header.encode(page.bytes_mut());
        let body = if is_direct(frame.bytes()) {
            Piece::Sealed(frame)
        } else {
            let mut copy = store.buffers.take(frame.len());
            copy.bytes_mut()[..frame.len()].copy_from_slice(frame.bytes());
            copy.bytes_mut()[frame.len()..].fill(0);
            Piece::Own(copy)
        };
        let (file, at) = (store.classes[*class].file.clone(), store.at(*class, *number));
        let pieces = vec![Piece::Own(page), body];
        let _writing = Writing::begin(store).ok_or(io::ErrorKind::BrokenPipe)?;
        let (result, _) = store.transfer(Transfer { file, at, way: Way::Write, pieces }).await;
        if result.as_ref().err().is_some_and(is_late) {
            return result;
        }
        store.note_write(&result);
        if result.is_ok() {
            add(&store.figures.writes, 1);
            add(&store.figures.written_bytes, bytes);
        }
        result
    }

    /// Reads the block that this record is of into a buffer.
    pub(crate) async fn read(&self, wanted: &BlockHeader) -> Result<Payload, ReadError> {
        let len = wanted.payload_bytes as usize;
        let body = Piece::Own(self.0.store.buffers.take(len));
        match self.read_piece(wanted, body).await? {
            Piece::Own(buffer) => Ok(Payload { buffer, len }),
            _ => Err(ReadError::Late),
        }
    }

    /// Returns for how many bytes a frame of `frame_bytes` is best taken that [`Place::read_into`] fills.
    pub(crate) fn fitting(wanted: &BlockHeader, frame_bytes: u64) -> u64 {
        let whole = whole_pages(wanted.payload_bytes);
        if whole <= frame_bytes { whole } else { wanted.payload_bytes }
    }

    /// Reads the block that this record is of into a frame.
    pub(crate) async fn read_into(
        &self,
        wanted: &BlockHeader,
        mut frame: WriteFrame,
    ) -> Result<ReadFrame, ReadError> {
        let len = wanted.payload_bytes as usize;
        if is_direct(frame.bytes()) {
            return match self.read_piece(wanted, Piece::Fill(frame)).await? {
                Piece::Fill(mut frame) => {
                    frame.truncate(len);
                    Ok(frame.seal())
                }
                _ => Err(ReadError::Late),
            };
        }
        let payload = self.read(wanted).await?;
        frame.truncate(len);
        frame.bytes_mut().copy_from_slice(payload.bytes());
        Ok(frame.seal())
    }

    async fn read_piece(&self, wanted: &BlockHeader, body: Piece) -> Result<Piece, ReadError> {
        let store = &self.0.store;
        let read = self.try_read(wanted, body).await;
        match &read {
            Ok(_) => {
                add(&store.figures.reads, 1);
                add(&store.figures.read_bytes, wanted.payload_bytes);
            }
            Err(error) => store.figures.count_bad(error),
        }
        read
    }

    async fn try_read(&self, wanted: &BlockHeader, body: Piece) -> Result<Piece, ReadError> {
        let Taken { store, class, number } = &*self.0;
        let (file, at) = (store.classes[*class].file.clone(), store.at(*class, *number));
        let pieces = vec![Piece::Own(store.buffers.take(PAGE)), body];
        let (result, mut pieces) = store.transfer(Transfer { file, at, way: Way::Read, pieces }).await;
        if result.as_ref().err().is_some_and(is_late) {
            return Err(ReadError::Late);
        }
        store.note_read(&result);
        if result.as_ref().err().is_some_and(was_given_up) {
            return Err(ReadError::Late);
        }
        let bad = |bad, why: &dyn ToString| ReadError::Bad(bad, why.to_string());
        result.map_err(|error| bad(Bad::Io, &error))?;
        let (Some(body), Some(page)) = (pieces.pop(), pieces.pop()) else {
            return Err(bad(Bad::Io, &"its memory is gone"));
        };
        let header = RecordHeader::decode(page.bytes()).map_err(|error| match error {
            PageError::Empty => bad(Bad::Missing, &error),
            PageError::Damaged => bad(Bad::Damaged, &error),
        })?;
        let is_this = header.number == *number && header.frame_bytes == store.classes[*class].frame_bytes;
        if !is_this || header.block.header != *wanted {
            return Err(bad(Bad::Foreign, &"it is of another block"));
        }
        let bytes = body.bytes().get(..wanted.payload_bytes as usize).unwrap_or_default();
        wanted.check_bytes(bytes).map_err(|error| bad(Bad::Torn, &error))?;
        Ok(body)
    }
}
