//! Memory of the host that blocks of a GPU pass through, between it and a socket.
#![allow(unsafe_code, reason = "copies from and to addresses")]

use crate::errors::{Failure, Kind};
use kvhive_gpu::cuda::{Copier, Cuda, CudaError, Direction, Gpu, Piece, Pinned};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Bytes that are on their way at a time: enough that a copy costs what its bytes cost, few enough that many calls have room.
const WINDOW_BYTES: usize = 32 << 20;

/// What blocks of one GPU pass through.
pub(super) struct Passage {
    copier: Copier,
    /// Taken when something passes.
    pinned: Option<Pinned>,
}

/// GPUs that were used, for as long as the process runs: to open one anew takes longer than most calls.
static OPEN: Mutex<BTreeMap<u32, Arc<Gpu>>> = Mutex::new(BTreeMap::new());

fn open(ordinal: u32) -> Result<Arc<Gpu>, CudaError> {
    // Nothing is left half-done under this lock.
    let mut open = OPEN.lock().unwrap_or_else(|poison| poison.into_inner());
    if let Some(gpu) = open.get(&ordinal) {
        return Ok(gpu.clone());
    }
    let gpu = Cuda::find()?.open(ordinal)?;
    open.insert(ordinal, gpu.clone());
    Ok(gpu)
}

impl Passage {
    /// Makes one beside the GPU of this number.
    ///
    /// # Errors
    /// Why that GPU cannot be reached.
    pub(super) fn open(ordinal: u32) -> Result<Passage, String> {
        let copier = open(ordinal).and_then(|gpu| Copier::new(&gpu));
        Ok(Passage { copier: copier.map_err(|error| error.to_string())?, pinned: None })
    }

    /// Returns the number of the stream that copies, as DLPack has it.
    pub(super) fn stream(&self) -> usize {
        self.copier.stream().number()
    }

    /// Returns the GPU.
    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        self.copier.stream().gpu()
    }

    /// Copies blocks of the GPU's, each from the first of two addresses to the second.
    ///
    /// # Safety
    /// A block of the stream's GPU is at each address. Nobody writes those that are read meanwhile, and nobody else uses those that are written.
    pub(super) unsafe fn within(
        &mut self,
        blocks: impl Iterator<Item = (u64, u64)>,
        block_bytes: usize,
    ) -> Result<(), Failure> {
        let pieces: Vec<Piece> = blocks.map(|(from, to)| Piece { from, to, bytes: block_bytes }).collect();
        // SAFETY: as the caller says.
        tokio::task::block_in_place(|| unsafe { self.copier.copy(Direction::Within, &pieces) })
            .map_err(failed)
    }

    /// Cuts so many blocks into parts that pass at a time.
    pub(super) fn windows(&self, blocks: usize, block_bytes: usize) -> Vec<Range<usize>> {
        let step = (WINDOW_BYTES / block_bytes).max(1);
        (0..blocks).step_by(step).map(|start| start..(start + step).min(blocks)).collect()
    }

    fn room(&mut self, bytes: usize) -> Result<&mut [u8], Failure> {
        if self.pinned.as_mut().is_none_or(|pinned| pinned.bytes().len() < bytes) {
            self.pinned = None;
            // As much for every call, so that it serves the next one too.
            let taken = Pinned::for_a_while(self.copier.stream().gpu(), bytes.max(WINDOW_BYTES));
            self.pinned = Some(taken.map_err(failed)?);
        }
        let pinned = self.pinned.as_mut().expect("it was just taken, if it was not there");
        Ok(&mut pinned.bytes_mut()[..bytes])
    }

    /// Returns memory of the host for so many blocks. What is in it is nobody's business.
    pub(super) fn slices(&mut self, blocks: usize, block_bytes: usize) -> Result<Vec<&mut [u8]>, Failure> {
        Ok(self.room(blocks * block_bytes)?.chunks_exact_mut(block_bytes).collect())
    }

    /// Copies blocks from the GPU, and returns them.
    ///
    /// # Safety
    /// A block of the stream's GPU is at each address, and nobody writes it meanwhile.
    pub(super) unsafe fn fetch(
        &mut self,
        addresses: &[u64],
        block_bytes: usize,
    ) -> Result<Vec<&[u8]>, Failure> {
        let room = self.room(addresses.len() * block_bytes)?;
        let base = room.as_mut_ptr().expose_provenance() as u64;
        let pieces = pieces(addresses, block_bytes, base, |gpu, host| (gpu, host));
        // SAFETY: the blocks are there, as the caller says, and the room is this one's own, pinned, with as many bytes.
        tokio::task::block_in_place(|| unsafe { self.copier.copy(Direction::ToHost, &pieces) })
            .map_err(failed)?;
        Ok(self.room(addresses.len() * block_bytes)?.chunks_exact(block_bytes).collect())
    }

    /// Copies blocks to the GPU: those of the last slices that were written.
    ///
    /// # Safety
    /// A block of the stream's GPU is at each address, and nobody else uses it meanwhile.
    pub(super) unsafe fn send(
        &mut self,
        addresses: &[u64],
        block_bytes: usize,
        is_written: impl Fn(usize) -> bool,
    ) -> Result<(), Failure> {
        let base = self.room(addresses.len() * block_bytes)?.as_mut_ptr().expose_provenance() as u64;
        let mut pieces = pieces(addresses, block_bytes, base, |gpu, host| (host, gpu));
        let mut at = 0..;
        pieces.retain(|_| at.next().is_some_and(&is_written));
        // SAFETY: as above.
        tokio::task::block_in_place(|| unsafe { self.copier.copy(Direction::ToGpu, &pieces) }).map_err(failed)
    }
}

fn pieces(
    addresses: &[u64],
    block_bytes: usize,
    base: u64,
    order: impl Fn(u64, u64) -> (u64, u64),
) -> Vec<Piece> {
    let hosts = (base..).step_by(block_bytes);
    let both = addresses.iter().zip(hosts).map(|(gpu, host)| order(*gpu, host));
    both.map(|(from, to)| Piece { from, to, bytes: block_bytes }).collect()
}

fn failed(error: CudaError) -> Failure {
    Failure::new(Kind::Gpu, error.to_string())
}
