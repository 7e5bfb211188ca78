//! A reader's hold on a block whose bytes must be brought first: from its disk, or from its GPU.

use crate::disk::{Place, ReadError, Room};
use crate::frames::GpuFrame;
use crate::guards::{Held, Pin, ReadGuard, Return, Unread};
use kvhive_protocol::BlockHeader;

/// Where a block's bytes are that are not in the host's memory.
#[derive(Clone)]
pub(crate) enum Source {
    Disk(Place),
    Gpu(GpuFrame),
}

/// A reader's hold on such a block.
pub(crate) struct FarGuard {
    /// Goes before the pin, as a frame does.
    source: Source,
    header: BlockHeader,
    pin: Pin,
    /// One on disk is a hit if it comes, else a miss.
    is_fetched: bool,
}

/// Why a block that is here is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unsound {
    /// Its bytes are not those that were stored.
    Damaged,
    /// They are no more.
    Gone,
}

impl FarGuard {
    pub(crate) fn new(source: Source, header: BlockHeader, pin: Pin, is_fetched: bool) -> FarGuard {
        FarGuard { source, header, pin, is_fetched }
    }

    pub(crate) fn header(&self) -> &BlockHeader {
        &self.header
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.header.payload_bytes
    }

    /// Says that the block's bytes are of no use: it goes, and can be stored anew.
    pub(crate) fn report_lost(&self) {
        self.pin.push(Return::Lost);
    }

    /// Returns its frame, if it is on a GPU.
    pub(crate) fn gpu_frame(&self) -> Option<GpuFrame> {
        match &self.source {
            Source::Disk(_) => None,
            Source::Gpu(frame) => Some(frame.clone()),
        }
    }

    pub(crate) fn is_on_disk(&self) -> bool {
        matches!(self.source, Source::Disk(_))
    }

    /// Says whether its disk or GPU gives what it is asked for.
    pub(crate) fn is_answered(&self) -> bool {
        match &self.source {
            Source::Disk(place) => place.store().answers(),
            Source::Gpu(frame) => frame.answers(),
        }
    }

    /// Looks at the bytes of a block on a GPU, as far as it gives them in time; one on disk is looked at when it is read. One that is not what
    /// was stored, or is no more, is lost.
    ///
    /// # Errors
    /// [`Unsound`]: which of the two.
    pub(crate) async fn check(&self) -> Result<(), Unsound> {
        let Source::Gpu(frame) = &self.source else { return Ok(()) };
        let found = match frame.clone().bring(None).await {
            Ok(Some(brought)) => self.header.check_bytes(brought.bytes()).map_err(|_| Unsound::Damaged),
            Ok(None) => Ok(()),
            Err(_) => Err(Unsound::Gone),
        };
        if found.is_err() {
            self.pin.push(Return::Lost);
        }
        found
    }

    /// Reads the block. The room that it takes is given back when the disk or the GPU, and the reader, have let go of its memory.
    pub(crate) async fn read(self, room: Option<Room>) -> Result<ReadGuard, Unread> {
        let FarGuard { source, header, pin, is_fetched } = self;
        let read = match source {
            Source::Disk(place) => {
                let read = place.read(&header, room).await;
                pin.tell_brought(is_fetched, read.is_ok());
                read.map(Held::Read).map_err(|error| match error {
                    ReadError::Bad(..) => Unread::Lost,
                    ReadError::Late => Unread::Late,
                })
            }
            Source::Gpu(frame) => match frame.bring(room).await {
                Ok(Some(brought)) => Ok(Held::Brought(brought)),
                Ok(None) => Err(Unread::Late),
                Err(_) => Err(Unread::Lost),
            },
        };
        match read {
            Ok(held) => Ok(ReadGuard::of(held, header, pin)),
            Err(unread) => {
                if unread == Unread::Lost {
                    pin.push(Return::Lost);
                }
                Err(unread)
            }
        }
    }

    /// Gives up a block that is not to be read.
    pub(crate) fn give_up(self) {
        if let Source::Disk(place) = &self.source {
            place.store().count_late();
            self.pin.tell_brought(self.is_fetched, false);
        }
    }

    /// Gives up a block that there was no room to read, although that was waited for.
    pub(crate) fn starve(self) {
        if let Source::Disk(place) = &self.source {
            place.store().starved();
            self.pin.tell_brought(self.is_fetched, false);
        }
    }
}
