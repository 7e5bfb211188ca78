//! A device's record files: places for records, the way of bytes to and from them, and whether the disk takes and gives any. What
//! a record is made of is [`super::place`]'s.

use super::buffer::{Buffer, Buffers, Piece};
use super::figures::{Figures, add};
use super::folder::{self, Form};
use super::health::{End, Health};
use super::key_folder::KeyName;
use super::keyring::Keyring;
use super::place::{Place, Taken, Writing};
use super::places::Places;
use super::queue::{Backend, Transfer, Way};
use super::record::{PAGE, Page, PageError, RecordHeader, SealedBytes, record_bytes};
use super::seal::DataKey;
use super::{DiskError, DiskTuning, Geometry, Patience};
use crate::view::View;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;
use tracing::{error, info, warn};

/// How often it is looked whether the last write has ended.
const CLOSE_EVERY: Duration = Duration::from_millis(2);

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
    /// One page that is no record's.
    probe: Arc<File>,
    is_direct: bool,
    backend: Arc<dyn Backend>,
    pub(super) buffers: Buffers,
    pub(super) sequence: AtomicU64,
    health: Mutex<Health>,
    pub(super) patience: Patience,
    is_open: AtomicBool,
    is_silent: AtomicBool,
    is_known: AtomicBool,
    /// The files are being made ready, which may hang too.
    is_preparing: AtomicBool,
    /// The folder may be another node's.
    pub(super) has_ended: AtomicBool,
    /// Blocks on their way to records.
    pub(super) writing: AtomicU64,
    pub(crate) figures: Figures,
    /// Under whose keys blocks are written; none writes them as they are.
    keys: Option<Arc<Keyring>>,
    view: Arc<View>,
    /// Lives of cores over it so far.
    lives: AtomicU64,
    /// Held from before the first transfer until after the last: declared last, dropped last.
    lock: Mutex<Option<File>>,
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
        keys: Option<Arc<Keyring>>,
        tuning: &DiskTuning,
    ) -> Result<Arc<Store>, DiskError> {
        let lock = folder::lock(folder, tuning.lock_limit)?;
        let form = if keys.is_some() { Form::Sealed } else { Form::Plain };
        folder::take_form(folder, form)?;
        let (files, is_direct) = folder::open(folder, form, geometry)?;
        let probe = folder::open_probe(folder)?;
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
            probe,
            is_direct,
            backend,
            buffers,
            sequence: AtomicU64::new(1),
            health: Mutex::new(Health::new(tuning.waits)),
            patience: tuning.patience,
            is_open: AtomicBool::new(true),
            is_silent: AtomicBool::new(false),
            is_preparing: AtomicBool::new(false),
            is_known: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            writing: AtomicU64::new(0),
            figures: Figures::default(),
            keys,
            view,
            lives: AtomicU64::new(0),
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
        folder::prepare(&files, &self.geometry, &self.probe)
    }

    /// Takes no more blocks, waits for those on their way, and lets go of the folder: unless the disk holds one of them for so
    /// long that it must be left behind. What it may still write to is nobody else's then, until this process has ended.
    pub(crate) async fn close(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        self.is_open.store(false, Ordering::Relaxed);
        let all_written = async {
            while self.writing.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(CLOSE_EVERY).await;
            }
        };
        if timeout(self.patience.close, all_written).await.is_err() {
            let writes = self.writing.load(Ordering::SeqCst);
            warn!(folder = %self.folder.display(), writes, "the disk has not taken all; its folder stays locked until this process ends");
            return;
        }
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of a life that begins: of no other.
    pub(crate) fn begin_life(&self) -> u64 {
        self.lives.fetch_add(1, Ordering::Relaxed) + 1
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

    /// Says whether what is on it is being looked at, so that it will take blocks soon.
    pub(crate) fn is_coming(&self) -> bool {
        self.is_open() && self.answers() && !self.is_known.load(Ordering::Relaxed)
    }

    /// Says whether it gives what it has when it is asked: one that fell silent is not asked until a probe works.
    pub(crate) fn answers(&self) -> bool {
        !self.is_silent.load(Ordering::Relaxed)
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

    /// Counts a block that there was no room to read, although that was waited for.
    pub(crate) fn starved(&self) {
        self.count_late();
        if self.note(|health| health.starved(self.view.now())) {
            self.tell_closed(&io::ErrorKind::TimedOut.into());
        }
    }

    /// Counts a block that was not asked for.
    pub(crate) fn count_late(&self) {
        add(&self.figures.late, 1);
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

    pub(super) fn give_back(&self, class: usize, number: u32) {
        self.classes[class].places.give_back(number);
    }

    pub(super) fn file(&self, class: usize) -> Arc<File> {
        self.classes[class].file.clone()
    }

    pub(super) fn at(&self, class: usize, number: u32) -> u64 {
        u64::from(number) * record_bytes(self.classes[class].frame_bytes)
    }

    /// From now on records are written with later counts than this.
    pub(super) fn go_on_after(&self, sequence: u64) {
        self.sequence.fetch_max(sequence.saturating_add(1), Ordering::Relaxed);
    }

    /// Has bytes moved, and waits for it within `limit`. Returns them unless they are still under way.
    pub(super) async fn transfer(&self, transfer: Transfer, limit: Duration) -> (io::Result<()>, Vec<Piece>) {
        let done = timeout(limit, self.backend.submit(transfer)).await;
        match done {
            Ok(Ok(done)) => (done.result, done.pieces),
            Ok(Err(_)) => (Err(io::ErrorKind::BrokenPipe.into()), Vec::new()),
            Err(_) => {
                // What has not begun yet need not begin.
                self.backend.forget_abandoned();
                (Err(io::ErrorKind::TimedOut.into()), Vec::new())
            }
        }
    }

    /// Reads one page at a record's begin.
    pub(super) async fn read_page(self: &Arc<Self>, class: usize, number: u32) -> io::Result<Buffer> {
        self.read_page_of(self.file(class), self.at(class, number)).await
    }

    async fn read_page_of(self: &Arc<Self>, file: Arc<File>, at: u64) -> io::Result<Buffer> {
        let pieces = vec![Piece::Own(self.buffers.take(PAGE))];
        let holds: Option<Box<dyn Send>> = Some(Box::new(self.clone()));
        let read = Transfer { file, at, way: Way::Read, is_asked: true, pieces, holds };
        let (result, mut pieces) = self.transfer(read, self.patience.other).await;
        result?;
        match pieces.pop() {
            Some(Piece::Own(page)) => Ok(page),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Says whether blocks are encrypted.
    pub(crate) fn is_sealed(&self) -> bool {
        self.keys.is_some()
    }

    /// Returns the key that a block is written under, made if need be; none where blocks are written as they are.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when the block's era has ended, or what the disk says.
    pub(super) async fn key_for(&self, name: KeyName) -> io::Result<Option<Arc<DataKey>>> {
        let Some(keys) = &self.keys else { return Ok(None) };
        if let Some(key) = keys.find(&name) {
            return Ok(Some(key));
        }
        let keys = keys.clone();
        let making = async {
            let turn = keys.turn().await;
            let make = move || {
                let _turn = turn;
                keys.make(name)
            };
            tokio::task::spawn_blocking(make).await
        };
        let made = timeout(self.patience.other, making).await;
        made.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)?.map(Some)
    }

    /// Reads a page as this tier writes them; with it comes what opens its block's bytes, if they are encrypted.
    pub(super) fn open_page(&self, page: &[u8]) -> Result<(RecordHeader, Option<SealedBytes>), PageError> {
        match (RecordHeader::decode(page)?, &self.keys) {
            (Page::Plain(header), None) => Ok((header, None)),
            (Page::Sealed(page), Some(keys)) => {
                let name = page.key_name();
                let key = keys.find(&name).ok_or(PageError::NoKey(name))?;
                let (header, bytes) = page.open(&key).ok_or(PageError::Forged)?;
                Ok((header, Some(bytes)))
            }
            // A tier is of one form: the other kind of records is not its own.
            (Page::Plain(_), Some(_)) | (Page::Sealed(_), None) => Err(PageError::Forged),
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
        self.is_silent.store(health.is_silent(), Ordering::Relaxed);
        change
    }

    pub(super) fn note_write(&self, result: &io::Result<()>) {
        let closed = self.note(|health| health.wrote(self.view.now(), End::from(result)));
        if let Err(error) = result {
            add(&self.figures.write_failures, 1);
            if closed {
                self.tell_closed(error);
            }
        }
    }

    pub(super) fn note_read(&self, result: &io::Result<()>) {
        let closed = self.note(|health| health.read(self.view.now(), End::from(result)));
        if let (true, Err(error)) = (closed, result) {
            self.tell_closed(error);
        }
    }

    /// Says whether it is time to look for what is on the disk: at once, or where that got no answer, when a probe would be due.
    pub(super) fn may_be_scanned(&self) -> bool {
        self.answers() || self.health().is_due(self.view.now())
    }

    /// A scan got no answer: that closes the disk, or keeps it closed for longer.
    pub(super) fn scan_got_no_answer(&self) {
        let now = self.view.now();
        let closed = self.note(|health| !health.probed(now, false) && health.wrote(now, End::Silent));
        if closed {
            self.tell_closed(&io::ErrorKind::TimedOut.into());
        }
    }

    fn tell_closed(&self, error: &io::Error) {
        add(&self.figures.closed, 1);
        error!(folder = %self.folder.display(), %error, "the disk fails; blocks stay in memory only until a probe works");
    }

    /// Tries a closed disk when it is time to.
    pub(super) async fn probe_if_due(self: &Arc<Self>) {
        // Before what is there is known it is the scan that tries the disk.
        if !self.is_known.load(Ordering::Relaxed) || !self.health().is_due(self.view.now()) {
            return;
        }
        let Some(writing) = Writing::begin(self) else { return };
        add(&self.figures.probes, 1);
        let result = self.probe(writing).await;
        if self.note(|health| health.probed(self.view.now(), result.is_ok())) {
            info!(folder = %self.folder.display(), "the disk works again");
        }
    }

    /// Writes the page that is no record's and reads it: a tier that works is full, so there need not be a free record. What is
    /// written is another each time, so that what is read is not what an earlier probe left there.
    async fn probe(self: &Arc<Self>, writing: Writing) -> io::Result<()> {
        self.prepare_again().await?;
        let written = self.sequence.fetch_add(1, Ordering::Relaxed).to_le_bytes().repeat(PAGE / 8);
        let mut page = self.buffers.take(PAGE);
        page.bytes_mut().copy_from_slice(&written);
        let holds: Option<Box<dyn Send>> = Some(Box::new((self.clone(), writing)));
        let (file, pieces) = (self.probe.clone(), vec![Piece::Own(page)]);
        let write = Transfer { file, at: 0, way: Way::Write, is_asked: false, pieces, holds };
        self.transfer(write, self.patience.other).await.0?;
        let page = self.read_page_of(self.probe.clone(), 0).await?;
        if page.bytes() != written {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }

    /// Makes the files ready once more, on a thread that may hang: on one at a time.
    async fn prepare_again(self: &Arc<Self>) -> io::Result<()> {
        if self.is_preparing.swap(true, Ordering::SeqCst) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let store = self.clone();
        let preparing = tokio::task::spawn_blocking(move || {
            let prepared = store.prepare();
            store.is_preparing.store(false, Ordering::SeqCst);
            prepared
        });
        let prepared = timeout(self.patience.other, preparing).await;
        prepared.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)?
    }
}
