//! What a node and its worker tell each other: small messages of fixed parts, each in one datagram. Both ends take what comes as
//! something that may be anything.

use super::plan::Packing;
use nccl_rs::{Rank, UniqueId};
use std::time::Duration;
use thiserror::Error;

/// Bytes of the longest message.
pub(super) const MESSAGE_BYTES: usize = 68 << 10;
/// Extents of one transfer.
pub(super) const EXTENTS: usize = 4096;
/// Bytes of one transfer.
pub(super) const TRANSFER_BYTES: u64 = 1 << 30;
/// Ranks of one communicator.
pub(super) const RANKS: u32 = 64;
/// The longest time that anything may be told to take.
const LONGEST: Duration = Duration::from_secs(600);
/// Bytes of a sentence.
const SAID_BYTES: usize = 512;
/// What the kind of a transfer is more by, where it is packed so.
const TOGETHER: u8 = 6;

/// A communicator of this worker, as the node calls it. One that stood before, between the same two, has another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PairId(pub u64);

/// A transfer of this worker, as the node calls it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TransferId(pub u64);

/// Bytes of the slab.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extent {
    /// Where they begin.
    pub at: u64,
    /// How many.
    pub bytes: u64,
}

/// What a worker is told first, with the handle of the slab.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setup {
    /// The GPU's number.
    pub gpu: u32,
    /// The slab's size.
    pub slab_bytes: u64,
    /// A call that does not return for so long ends the worker.
    pub watchdog: Duration,
    /// Loading libraries and opening the GPU may take so long.
    pub start: Duration,
    /// The thread blocks that one operation runs on, at least and at most: each has buffers of its own.
    pub ctas: (u32, u32),
    /// Bytes of each of NCCL's buffers, of which a pair has one for each thread block and direction; none where that is NCCL's to say.
    pub buffer_bytes: Option<u64>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            gpu: 0,
            slab_bytes: 0,
            watchdog: Duration::from_secs(5),
            start: Duration::from_secs(60),
            ctas: (1, 2),
            buffer_bytes: Some(1 << 20),
        }
    }
}

/// What a worker is told to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Make an id: this process will be rank 0, and the id is of no use without it.
    MakeId {
        /// For which communicator.
        pair: PairId,
    },
    /// Join a communicator. All its ranks do, within this time.
    Join {
        /// Which.
        pair: PairId,
        /// What rank 0 made.
        id: UniqueId,
        /// Which of the ranks this one is.
        rank: Rank,
        /// How long that may take.
        within: Duration,
    },
    /// Send what these extents hold.
    Send {
        /// By which communicator.
        pair: PairId,
        /// What the transfer is called.
        transfer: TransferId,
        /// To which rank. It receives extents of the same lengths, in the same order.
        to: u32,
        /// How long that may take, what waits before it included.
        within: Duration,
        /// How they are cut: alike at all ends.
        packing: Packing,
        /// Which bytes.
        extents: Vec<Extent>,
    },
    /// Receive into these extents.
    Receive {
        /// By which communicator.
        pair: PairId,
        /// What the transfer is called.
        transfer: TransferId,
        /// From which rank. It sends extents of the same lengths, in the same order.
        from: u32,
        /// How long that may take, what waits before it included.
        within: Duration,
        /// How they are cut: alike at all ends.
        packing: Packing,
        /// Which bytes; nobody uses them until the answer.
        extents: Vec<Extent>,
    },
    /// Have what these extents of one rank hold be in those of all others.
    Broadcast {
        /// By which communicator.
        pair: PairId,
        /// What the transfer is called.
        transfer: TransferId,
        /// Whose bytes.
        root: u32,
        /// How long that may take, what waits before it included.
        within: Duration,
        /// How they are cut: alike at all ends.
        packing: Packing,
        /// Which bytes; at all ranks but one nobody uses them until the answer.
        extents: Vec<Extent>,
    },
    /// Let go of a communicator, whatever is under way.
    Abort {
        /// Which.
        pair: PairId,
    },
    /// Let go of a communicator in good order; all its ranks do, within this time.
    Close {
        /// Which.
        pair: PairId,
        /// How long that may take.
        within: Duration,
    },
    /// Let go of all, and end.
    End,
}

/// What a worker answers, in its own time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It has the GPU, its memory and NCCL.
    Started {
        /// NCCL's version.
        nccl: String,
    },
    /// It cannot work here, and ends.
    Unfit {
        /// None can: the driver or NCCL is not on this machine, or too old.
        is_lasting: bool,
        /// Why.
        said: String,
    },
    /// An id, for all ranks.
    IdMade {
        /// For which communicator.
        pair: PairId,
        /// The id.
        id: UniqueId,
    },
    /// The communicator stands.
    Ready {
        /// Which.
        pair: PairId,
    },
    /// A transfer is over: its bytes are where they should be, or have been read.
    Done {
        /// By which communicator.
        pair: PairId,
        /// Which.
        transfer: TransferId,
        /// How long it took from when it was begun.
        took: Duration,
    },
    /// The communicator is lost, if there was one, and let go of: nothing of it touches the slab any more. Each transfer that it had
    /// has an answer of its own.
    Failed {
        /// Which.
        pair: PairId,
        /// The transfer that this answers, if any.
        transfer: Option<TransferId>,
        /// Why.
        why: Why,
        /// What is said of it.
        said: String,
    },
    /// The communicator was let go of, as was told.
    Closed {
        /// Which.
        pair: PairId,
    },
}

/// Why something failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Why {
    /// Its time was over.
    Late,
    /// The other end has gone, or the network to it.
    Peer,
    /// NCCL said no.
    Nccl,
    /// What was asked makes no sense: no such communicator, one twice, bytes outside of the slab.
    Senseless,
    /// More waits than may.
    Busy,
    /// It was told so.
    Aborted,
}

/// Bytes that are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{bytes} bytes are no message of a GPU's worker")]
pub struct Garbled {
    /// How many there were.
    pub bytes: usize,
}

const WHYS: [Why; 6] = [Why::Late, Why::Peer, Why::Nccl, Why::Senseless, Why::Busy, Why::Aborted];

/// Writes a message.
struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Writer {
        Writer(vec![kind])
    }

    fn u32(mut self, value: u32) -> Writer {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Writer {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn time(self, time: Duration) -> Writer {
        self.u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }

    fn id(mut self, id: &UniqueId) -> Writer {
        self.0.extend(id.0);
        self
    }

    fn said(mut self, said: &str) -> Writer {
        let bytes = &said.as_bytes()[..said.len().min(SAID_BYTES)];
        self.0.extend((bytes.len() as u32).to_le_bytes());
        self.0.extend(bytes);
        self
    }

    fn transfer(self, pair: PairId, transfer: TransferId, peer: u32, within: Duration) -> Writer {
        self.u64(pair.0).u64(transfer.0).u32(peer).time(within)
    }

    fn extents(self, extents: &[Extent]) -> Writer {
        let begun = self.u32(extents.len() as u32);
        extents.iter().fold(begun, |writer, extent| writer.u64(extent.at).u64(extent.bytes))
    }
}

/// Reads a message. What is not there is none.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn pair(&mut self) -> Option<PairId> {
        self.u64().map(PairId)
    }

    fn transfer(&mut self) -> Option<TransferId> {
        self.u64().map(TransferId)
    }

    fn time(&mut self) -> Option<Duration> {
        self.u64().map(Duration::from_micros).filter(|time| *time <= LONGEST)
    }

    fn id(&mut self) -> Option<UniqueId> {
        self.array().map(UniqueId)
    }

    fn said(&mut self) -> Option<String> {
        let bytes = self.u32().map(|bytes| bytes as usize).filter(|bytes| *bytes <= SAID_BYTES)?;
        Some(String::from_utf8_lossy(self.take(bytes)?).into_owned())
    }

    /// Extents of which there are neither none nor too many, none of them empty.
    fn extents(&mut self) -> Option<Vec<Extent>> {
        let count = self.u32().map(|count| count as usize).filter(|count| (1..=EXTENTS).contains(count))?;
        let mut total = 0u64;
        let mut extents = Vec::with_capacity(count);
        for _ in 0..count {
            let extent = Extent { at: self.u64()?, bytes: self.u64()? };
            extent.at.checked_add(extent.bytes).filter(|_| extent.bytes > 0)?;
            total = total.checked_add(extent.bytes).filter(|total| *total <= TRANSFER_BYTES)?;
            extents.push(extent);
        }
        Some(extents)
    }

    /// Returns what was read, if nothing is left.
    fn end<T>(self, read: T) -> Option<T> {
        self.0.is_empty().then_some(read)
    }
}

impl Setup {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (least, most) = self.ctas;
        Writer::new(0)
            .u32(self.gpu)
            .u64(self.slab_bytes)
            .time(self.watchdog)
            .time(self.start)
            .u32(least)
            .u32(most)
            .u64(self.buffer_bytes.unwrap_or(0))
            .0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Setup, Garbled> {
        let read = || {
            let mut reader = Reader(bytes);
            let _kind = reader.u8().filter(|kind| *kind == 0)?;
            let (gpu, slab_bytes) = (reader.u32()?, reader.u64()?);
            let (watchdog, start) = (reader.time()?, reader.time()?);
            let ctas = (reader.u32()?, reader.u32()?);
            let buffer_bytes = Some(reader.u64()?).filter(|bytes| *bytes > 0);
            reader.end(Setup { gpu, slab_bytes, watchdog, start, ctas, buffer_bytes })
        };
        read().ok_or(Garbled { bytes: bytes.len() })
    }
}

impl Command {
    /// Writes it; one with more than may be in it is none.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let carry = |kind: u8, (pair, transfer): (&PairId, &TransferId), peer, within: &Duration, how| {
            let kind = if how == &Packing::Together { kind + TOGETHER } else { kind };
            Writer::new(kind).transfer(*pair, *transfer, peer, *within)
        };
        let written = match self {
            Command::MakeId { pair } => Writer::new(1).u64(pair.0),
            Command::Join { pair, id, rank, within } => {
                Writer::new(2).u64(pair.0).id(id).u32(rank.at).u32(rank.of).time(*within)
            }
            Command::Send { pair, transfer, to, within, packing, extents } => {
                carry(3, (pair, transfer), *to, within, packing).extents(extents)
            }
            Command::Receive { pair, transfer, from, within, packing, extents } => {
                carry(4, (pair, transfer), *from, within, packing).extents(extents)
            }
            Command::Broadcast { pair, transfer, root, within, packing, extents } => {
                carry(5, (pair, transfer), *root, within, packing).extents(extents)
            }
            Command::Abort { pair } => Writer::new(6).u64(pair.0),
            Command::Close { pair, within } => Writer::new(7).u64(pair.0).time(*within),
            Command::End => Writer::new(8),
        };
        // What would not be taken there is not sent from here.
        Command::decode(&written.0).is_ok().then_some(written.0)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Command, Garbled> {
        let read = || {
            let mut reader = Reader(bytes);
            let command = match reader.u8()? {
                1 => Command::MakeId { pair: reader.pair()? },
                2 => {
                    let (pair, id) = (reader.pair()?, reader.id()?);
                    let rank = Rank { at: reader.u32()?, of: reader.u32()? };
                    let rank = Some(rank).filter(|rank| rank.at < rank.of && rank.of <= RANKS)?;
                    Command::Join { pair, id, rank, within: reader.time()? }
                }
                kind @ (3..=5 | 9..=11) => {
                    let (pair, transfer, peer) = (reader.pair()?, reader.transfer()?, reader.u32()?);
                    let (within, extents) = (reader.time()?, reader.extents()?);
                    let packing = if kind > TOGETHER { Packing::Together } else { Packing::Apart };
                    match kind % TOGETHER {
                        3 => Command::Send { pair, transfer, to: peer, within, packing, extents },
                        4 => Command::Receive { pair, transfer, from: peer, within, packing, extents },
                        _ => Command::Broadcast { pair, transfer, root: peer, within, packing, extents },
                    }
                }
                6 => Command::Abort { pair: reader.pair()? },
                7 => Command::Close { pair: reader.pair()?, within: reader.time()? },
                8 => Command::End,
                _ => return None,
            };
            reader.end(command)
        };
        read().ok_or(Garbled { bytes: bytes.len() })
    }
}

impl Answer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let written = match self {
            Answer::Started { nccl } => Writer::new(1).said(nccl),
            Answer::Unfit { is_lasting, said } => Writer::new(2).u32(u32::from(*is_lasting)).said(said),
            Answer::IdMade { pair, id } => Writer::new(3).u64(pair.0).id(id),
            Answer::Ready { pair } => Writer::new(4).u64(pair.0),
            Answer::Done { pair, transfer, took } => {
                Writer::new(5).u64(pair.0).u64(transfer.0).time((*took).min(LONGEST))
            }
            Answer::Failed { pair, transfer, why, said } => {
                let why = WHYS.iter().position(|one| one == why).unwrap_or_default() as u32;
                let (is_one, transfer) = (u32::from(transfer.is_some()), transfer.map_or(0, |one| one.0));
                Writer::new(6).u64(pair.0).u32(is_one).u64(transfer).u32(why).said(said)
            }
            Answer::Closed { pair } => Writer::new(7).u64(pair.0),
        };
        written.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Answer, Garbled> {
        let read = || {
            let mut reader = Reader(bytes);
            let answer = match reader.u8()? {
                1 => Answer::Started { nccl: reader.said()? },
                2 => Answer::Unfit { is_lasting: reader.u32()? == 1, said: reader.said()? },
                3 => Answer::IdMade { pair: reader.pair()?, id: reader.id()? },
                4 => Answer::Ready { pair: reader.pair()? },
                5 => {
                    Answer::Done { pair: reader.pair()?, transfer: reader.transfer()?, took: reader.time()? }
                }
                6 => {
                    let (pair, is_one) = (reader.pair()?, reader.u32()?);
                    let transfer = reader.transfer()?;
                    let transfer = (is_one == 1).then_some(transfer);
                    let why = *WHYS.get(reader.u32()? as usize)?;
                    Answer::Failed { pair, transfer, why, said: reader.said()? }
                }
                7 => Answer::Closed { pair: reader.pair()? },
                _ => return None,
            };
            reader.end(answer)
        };
        read().ok_or(Garbled { bytes: bytes.len() })
    }
}

/// Reads what either end may be told, and writes it again; the first byte says which. For `kvhive-fuzz` alone.
pub fn fuzz_messages(bytes: &[u8]) -> Option<Vec<u8>> {
    let (which, bytes) = bytes.split_first()?;
    let again = match which % 3 {
        0 => Setup::decode(bytes).ok()?.encode(),
        1 => Command::decode(bytes).ok()?.encode()?,
        _ => Answer::decode(bytes).ok()?.encode(),
    };
    Some([&[*which], again.as_slice()].concat())
}

#[cfg(test)]
#[path = "message_test.rs"]
mod tests;
